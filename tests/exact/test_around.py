"""0 differing bits from torch in what stands around the optimizer, in a process where neither side fuses arithmetic."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import report
from tests.exact.compare import SETTINGS

pytest.importorskip("torch")


def test_averages_clipping_and_scaling_have_torchs_bits(request: pytest.FixtureRequest) -> None:
    command = [sys.executable, "-m", "tests.exact.around"]
    environment = {**os.environ, **SETTINGS}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    values, bits = (sum(each[key] for each in found.values()) for key in ("values", "bits"))
    line = f"bit parity with torch, averages, clipping and GradScaler: {len(found)} cases, {values} arrays, {bits} bits"
    request.config.stash.setdefault(report, []).append(f"{line} differ")
    assert values > 0
    assert not {label: each for label, each in found.items() if each["bits"]}

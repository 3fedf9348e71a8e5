"""5 steps in torch and 5 here are 10 in torch, and the other way round, with 0 differing bits."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jaxopt_port
from tests.exact.compare import SETTINGS
from tests.exact.test_exact import LIMITS

pytest.importorskip("torch")
RUNS = [(name, dtype) for name in jaxopt_port.optimizers if name != "nonlinear_cg" for dtype in ("float32", "float64")]
RUNS = [run for run in RUNS if run[0] != "lbfgs"] + [("lbfgs", "None"), ("lbfgs", "strong_wolfe")]


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], list[Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.torch_interop.resume"],
        env={**os.environ, **SETTINGS},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {(name, kind): rest for name, kind, *rest in lines}


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_a_run_goes_on_where_it_was(found: dict[tuple[str, str], list[Any]], name: str, kind: str) -> None:
    bits_here, distance_here, bits_there, distance_there, not_torchs = found[name, kind]
    limits = LIMITS.get((name, kind))
    if name != "adafactor":  # whose sums are in another order
        assert not_torchs == []  # the state dict that we write after 5 steps is torch's own
    if limits is None:
        assert (bits_here, bits_there) == (0, 0)
    else:
        assert max(distance_here, distance_there) <= limits[100]

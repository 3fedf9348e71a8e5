"""A short run of draws.py, in a process of its own: no bit differs from torch's, whatever the hyper-parameters."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")


def test_no_bit_differs_in_random_runs() -> None:
    command = [sys.executable, "-m", "tests.exact.draws", "--draws", "15"]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("no bit differs") == 14

"""The recipe that steps with closures: full batches, and the loss at every evaluation."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.__main__ import main
from train.model import convolve_by_rows
from train.recipes import RECIPES


def test_every_evaluation_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--option line_search_fn=strong_wolfe --option max_iter=3 --option max_eval=4"
    argv = f"lbfgs --limit 4 --epochs 2 {options} --run-dir {tmp_path / 'run'}"
    monkeypatch.setattr(sys, "argv", ["train", *argv.split()])
    assert main() == 0
    printed = capsys.readouterr().out
    first, second, _ = re.split(r"\n +\d +\d .*", printed)  # the line of an epoch, which is a step
    losses = [[float(x) for x in re.findall(r"closure: loss (\S+)", part)] for part in (first, second)]
    assert all(4 <= len(step) <= 8 for step in losses)  # a step's last search may take it past max_eval
    running = [float(line.split()[2]) for line in re.findall(r"\n( +\d +\d .*)", printed)]
    assert running == pytest.approx([step[0] for step in losses], abs=1e-4)
    assert losses[1][0] < losses[0][0]


def test_a_step_takes_the_whole_split() -> None:
    config = RECIPES["lbfgs"]()
    assert (config.dataset, config.split, config.batch_size) == ("digits", "test", 360)


def test_convolution_by_rows() -> None:
    rng = np.random.default_rng(0)
    images, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 6, 8, 3), (5, 5, 3, 4)))
    padding = [(2, 2), (2, 2)]
    expected = jax.lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(convolve_by_rows(images, kernel, (1, 1), padding), expected, 1e-4, 1e-4)

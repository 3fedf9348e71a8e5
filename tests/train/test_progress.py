"""What is seen on a terminal, wide or narrow, and on what is none."""

import io
import re
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from train import progress
from train.config import Config
from train.epoch import Columns, Epoch, Steps
from train.loop import Moment
from train.progress import Bar

CONFIG = Config(batch_size=4, ema=0.5, evaluate=True)
EPOCH = Epoch(12, 1234567, np.full(2, 1e6), np.ones(2), np.full(2, 4), 0.1, np.ones((2, 1)), (1.5, 0.25), (0.5, 0.75))


def under_way(step: int) -> Moment:
    columns = Columns(np.array([1.0, 1.5]), np.array([1, 2]), np.ones((2, 1)), np.ones((2, 1)))
    return Moment(Any, 1, step, Steps(columns))  # pyright: ignore[reportArgumentType]


def seen(width: int, *steps: int, config: Config = CONFIG, terminal: bool = True) -> list[str]:
    """All lines that a terminal would show, one after the other."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, color_system="standard")
    with Bar(console, config, 400, 2000, Moment(Any, 1, steps[0])) as bar:  # pyright: ignore[reportArgumentType]
        for step in steps[1:]:
            time.sleep(0.15)
            bar.look(under_way(step))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_line_that_moves_fits(width: int) -> None:
    lines = seen(width, 0, 100, 101, 102)
    assert max(map(len, lines)) <= width
    assert "compiling the step" in lines[0]
    last = lines[-1]
    assert "loss 1.25" in last
    assert "accuracy 37.5%" in last
    speed = re.search(r"([\d,]+) images/s", last)
    left = re.search(r"(\d+):(\d\d):(\d\d) left", last)
    assert left is not None
    assert (speed is None) == (width == 40)
    if speed is not None:  # both from the steps after the first, in which the step was compiled
        images, seconds = float(speed[1].replace(",", "")), int(left[1]) * 3600 + int(left[2]) * 60 + int(left[3])
        assert 0 < images < 2 * 4 / 0.15
        assert seconds * images == pytest.approx((2000 - 102) * 4, rel=0.1)
    assert ("━" in last) == (width == 80)
    assert ("102/2,000" in last) == (width > 40)


def test_no_line_moves_on_what_is_no_terminal_or_quietly() -> None:
    assert seen(80, 0, 1, terminal=False) == []
    assert seen(80, 0, 1, config=replace(CONFIG, quiet=True)) == []


@pytest.mark.parametrize("width", [None, 120, 80, 40])
def test_lines_of_the_epochs_keep_their_columns(width: int | None) -> None:
    """On a narrow terminal they go on below, and nothing is left out."""
    titles, values = (text.split("\n") for text in (progress.header(CONFIG, width), progress.line(EPOCH, width)))
    assert [len(line) for line in titles] == [len(line) for line in values]
    assert max(map(len, titles)) <= (width or 120)
    assert len(titles) == {None: 1, 120: 1, 80: 2, 40: 3}[width]
    expected = "epoch steps running loss accuracy images/s test loss test accuracy EMA loss EMA accuracy"
    assert " ".join(titles).split() == expected.split()
    expected = "12 1,234,567 2,000,000.0000 25.00% 80 1.5000 25.00% 0.5000 75.00%"
    assert " ".join(values).split() == expected.split()

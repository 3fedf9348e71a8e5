"""The picture of a run: loss, accuracy and learning rate, step by step and epoch by epoch."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from train.config import Config
from train.epoch import Epoch

TITLE_WIDTH = 105  # characters
BINS = 250  # points of a curve over the steps
TRAIN, TEST, EMA, STOP = "#2563eb", "#ea580c", "#16a34a", "#dc2626"


def save(config: Config, epochs: Sequence[Epoch], path: Path) -> None:
    """Draw the run. The x axis counts epochs, or, in a run of one, steps."""
    figure = Figure(figsize=(9, 7.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, lr = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    scale = len(epochs[0].losses) if len(epochs) > 1 else 1  # steps to a unit of x
    ends = np.array([epoch.step for epoch in epochs]) / scale
    middles = (np.array([0, *ends[:-1]]) + ends) / 2  # where the mean of an epoch belongs
    losses = np.concatenate([epoch.losses for epoch in epochs])
    correct = np.concatenate([epoch.correct for epoch in epochs])
    examples = np.concatenate([epoch.examples for epoch in epochs])

    loss_steps = np.isfinite(losses).sum()  # all but perhaps the last
    steps, mean_loss = _binned(losses[:loss_steps], np.ones(loss_steps))
    _curves(loss, steps / scale, mean_loss, middles, [epoch.running_loss / len(epoch.losses) for epoch in epochs])
    steps, mean_accuracy = _binned(correct, examples)
    _curves(accuracy, steps / scale, mean_accuracy, middles, [epoch.accuracy for epoch in epochs])
    for of, color, label in (("test", TEST, "test split"), ("ema_test", EMA, "test split, average of weights")):
        if getattr(epochs[0], of) is not None:
            tests = np.array([getattr(epoch, of) for epoch in epochs])
            for axes, values in ((loss, tests[:, 0]), (accuracy, tests[:, 1])):
                axes.plot(ends, values, "s--", color=color, markersize=5, label=f"{label}, after the epoch")
    _learning_rates(lr, np.concatenate([epoch.lr for epoch in epochs]), scale)

    positive = mean_loss[mean_loss > 0]
    if len(positive) and positive.max() > 30 * positive.min():
        loss.set_yscale("log")
        loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    loss.set_ylabel("loss an example")
    accuracy.set_ylabel("accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    lr.set_xlabel("epoch" if len(epochs) > 1 else "step")
    lr.xaxis.set_major_locator(MaxNLocator(integer=True))
    lr.set_xlim(0, ends[-1] * 1.01)
    if not epochs[-1].finite:
        loss.axvline(ends[-1], color=STOP, linestyle=":")
        text = f"not finite at step {epochs[-1].step:,} "
        loss.annotate(text, (ends[-1], 0.95), xycoords=("data", "axes fraction"), color=STOP, ha="right", va="top")
    for axes in (loss, accuracy, lr):
        axes.grid(color="#e5e7eb")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    loss.legend(frameon=False)
    figure.suptitle(_title(config, examples.sum()), x=0.01, ha="left", fontsize=11)
    figure.savefig(path)


def _learning_rates(axes: Axes, lr: np.ndarray, scale: float) -> None:
    """The rate of each parameter group, over every step."""
    for group, rates in enumerate(lr.T):
        axes.step(np.arange(len(rates) + 1) / scale, [*rates, rates[-1]], where="post", label=f"group {group}")
    if lr.shape[1] > 1:
        axes.legend(frameon=False)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")


def _binned(sums: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over each of at most BINS stretches of steps, and the steps that their middles are at."""
    bounds = np.linspace(0, len(sums), min(BINS, len(sums)) + 1).astype(int)
    if len(sums) == 0:
        return np.empty(0), np.empty(0)
    means = np.add.reduceat(sums, bounds[:-1]) / np.add.reduceat(weights, bounds[:-1])
    return (bounds[:-1] + bounds[1:]) / 2, means


def _curves(axes: Axes, x: np.ndarray, steps: np.ndarray, middles: np.ndarray, epochs: Sequence[float]) -> None:
    axes.plot(x, steps, color=TRAIN, alpha=0.35, linewidth=1, label="training, by the step")
    axes.plot(middles, epochs, "o-", color=TRAIN, markersize=5, label="training, mean of the epoch")


def _title(config: Config, images: int) -> str:
    return "\n".join(textwrap.wrap("; ".join([*config.described, f"{images:,} pictures seen"]), TITLE_WIDTH))

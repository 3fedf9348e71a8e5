"""The picture of a run, and of some laid over each other: `python -m train.plot RUN [RUN ...]`."""

import argparse
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from train import output, run_folder, run_settings
from train.config import Config
from train.epoch import Epoch
from train.errors import UsageError, one_line

TITLE_WIDTH = 105  # characters
BINS = 250  # points of a curve over the steps
FLAT = 1.5  # inches of the panel of the rates; the others have more
LARGE = 30  # a ratio from which on an axis is logarithmic
OUT_OF_SIGHT = 1000  # times the median: a loss on its way to infinity must not squeeze the others
TRAINING, TEST, AVERAGE, STOP = "#2563eb", "#ea580c", "#16a34a", "#dc2626"
RUNS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#0891b2", "#a16207", "#db2777", "#4b5563")


class Run(NamedTuple):
    """What is drawn of a run.

    Args:
      name: what to call it beside others.
      config: its settings.
      epochs: at least one.
    """

    name: str
    config: Config
    epochs: Sequence[Epoch]

    @property
    def rates(self) -> np.ndarray:
        """The learning rate of each parameter group, a row a step."""
        return np.concatenate([epoch.lr for epoch in self.epochs])


class _Curve(NamedTuple):
    """A line of a picture, over the steps of the run."""

    label: str
    color: str
    marker: str
    line: Any  # a line style of matplotlib
    x: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    alpha: float = 1.0


def read(path: Path, name: str) -> Run:
    """A run from its folder.

    Raises:
      UsageError: there is none, or no epoch of it is recorded.
    """
    settings = run_settings.load(path, "RUN")
    try:
        epochs = run_folder.read(path)
    except (OSError, ValueError, LookupError) as error:
        raise UsageError(f"RUN {path}: its records cannot be read ({one_line(error)})") from error
    if not epochs:
        raise UsageError(f"RUN {path}: no epoch of it is recorded yet; wait for one")
    return Run(name, settings.config, epochs)


def save(runs: Sequence[Run], path: Path) -> None:
    """Draw one run, or some laid over each other.

    The x axis counts epochs, or, where no run has more than one, steps. There is a panel for the loss, for the
    accuracy, and for the learning rates, but for what never changes.
    """
    several = len(runs) > 1
    by_epoch = any(len(run.epochs) > 1 for run in runs)
    scales = [max(len(epoch.losses) for epoch in run.epochs) if by_epoch else 1 for run in runs]
    curves = [list(_curves(run, by_step=not (several and by_epoch))) for run in runs]
    moving = any(np.ptp(run.rates, axis=0).any() for run in runs)
    right = np.concatenate([curve.accuracy for of in curves for curve in of])
    heights = {"loss": 3.0, "accuracy": 2.0 if len(set(right)) > 1 else 0.0, "rates": FLAT if moving else 0.0}
    heights = {name: height for name, height in heights.items() if height}
    title, names = _title(runs, moving), [_differs(run, runs) for run in runs] if several else []
    figure = Figure(figsize=(9, sum(heights.values()) + 1.5 + 0.2 * len(names)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=list(heights.values()))
    panels: dict[str, Axes] = dict(zip(heights, grid[:, 0], strict=True))

    for number, (run, scale, of) in enumerate(zip(runs, scales, curves, strict=True)):
        own = RUNS[number % len(RUNS)] if several else None
        for curve in of:
            style = {"color": own or curve.color, "linestyle": curve.line, "alpha": curve.alpha, "markersize": 5}
            style["linewidth"] = 1.5 * curve.alpha**0.5
            style["marker"] = curve.marker or ("." if len(curve.x) == 1 else "")  # a line of one point is none
            for name, values in (("loss", curve.loss), ("accuracy", curve.accuracy)):
                if name in panels:
                    panels[name].plot(curve.x / scale, values, **style)
        if moving:
            _learning_rates(panels["rates"], run, scale, own)
    _loss_axis(panels["loss"], np.concatenate([curve.loss for of in curves for curve in of]))
    if moving:
        _rates_axis(panels["rates"], [run.rates for run in runs])
    if "accuracy" in panels:
        panels["accuracy"].set_ylabel("accuracy")
        panels["accuracy"].yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    for axes in panels.values():
        axes.grid(color="#e5e7eb")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    last = grid[-1, 0]
    last.set_xlabel("epoch" if by_epoch else "step")
    last.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    firsts = [(run.epochs[0].step - len(run.epochs[0].losses)) / scale for run, scale in zip(runs, scales, strict=True)]
    ends = [run.epochs[-1].step / scale for run, scale in zip(runs, scales, strict=True)]
    last.set_xlim(min(firsts), max(ends) + 0.01 * (max(ends) - min(firsts)))
    _mark_ends(panels["loss"], runs, ends)
    kinds = list({curve.label: curve for of in curves for curve in of}.values())
    _legend(figure, kinds, names, title)
    figure.align_ylabels()
    if not several:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path)


def _curves(run: Run, by_step: bool) -> Iterator[_Curve]:
    """What is known of the loss and the accuracy: by the step, of an epoch, and after it."""
    epochs = run.epochs
    losses, correct, examples = (
        np.concatenate([getattr(epoch, of) for epoch in epochs]) for of in ("losses", "correct", "examples")
    )
    finite = int(np.isfinite(losses).sum())  # all but perhaps the last
    bounds = np.linspace(0, finite, min(BINS, finite) + 1).astype(int)
    middles = epochs[0].step - len(epochs[0].losses) + (bounds[:-1] + bounds[1:]) / 2
    loss = _means(losses, np.ones(len(losses)), bounds)
    accuracy = _means(correct, examples, bounds)
    if by_step:
        yield _Curve("training, by the step", TRAINING, "", "-", middles, loss, accuracy, alpha=0.35)

    ends = np.array([epoch.step for epoch in epochs])
    middles = ends - np.array([len(epoch.losses) for epoch in epochs]) / 2  # where the mean of an epoch belongs
    loss, accuracy = (np.array([getattr(epoch, of) for epoch in epochs]) for of in ("loss", "accuracy"))
    if np.isfinite(loss).any():
        yield _Curve("training, mean of the epoch", TRAINING, "o", "-", middles, loss, accuracy)

    for of, color, marker, line, label in (
        ("test", TEST, "s", "--", "test split, after the epoch"),
        ("ema_test", AVERAGE, "^", ":", "test split, average of weights"),
    ):
        tests = [(epoch.step, *getattr(epoch, of)) for epoch in epochs if getattr(epoch, of) is not None]
        if tests:
            yield _Curve(label, color, marker, line, *np.array(tests).T)


def _means(sums: np.ndarray, weights: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The mean over each stretch of steps."""
    if len(bounds) < 2:
        return np.empty(0)
    end = bounds[-1]
    return np.add.reduceat(sums[:end], bounds[:-1]) / np.add.reduceat(weights[:end], bounds[:-1])


def _learning_rates(axes: Axes, run: Run, scale: float, color: str | None) -> None:
    """The rate of each parameter group, over every step; groups of the same rates are one line."""
    first, rates = run.epochs[0].step - len(run.epochs[0].losses), run.rates
    same = (rates == rates[:, :1]).all()
    for group, of in enumerate(rates.T[:1] if same else rates.T):
        x = np.arange(first, first + len(of) + 1) / scale
        style: Any = {} if color is None else {"color": color, "linestyle": ("-", "--", ":", "-.")[group % 4]}
        axes.step(x, [*of, of[-1]], where="post", label=f"group {group}", **style)
    if not same and color is None:
        axes.legend(frameon=False)


def _rates_axis(axes: Axes, rates: Sequence[np.ndarray]) -> None:
    axes.set_ylabel("learning rate")
    low = min(np.quantile(of, 0.2) for of in rates)  # of a decay, and not of the end of a cosine
    if 0 < low < max(of.max() for of in rates) / LARGE:
        _logarithmic(axes, bottom=float(low) / LARGE)
    else:
        axes.set_ylim(bottom=0)


def _loss_axis(axes: Axes, losses: np.ndarray) -> None:
    axes.set_ylabel("loss per example")
    positive = losses[np.isfinite(losses) & (losses > 0)]
    if len(positive) and positive.max() > LARGE * positive.min():
        _logarithmic(axes, top=OUT_OF_SIGHT * float(np.median(positive)))


def _logarithmic(axes: Axes, top: float = np.inf, bottom: float = 0.0) -> None:
    """From `bottom` and up to `top` at most, with few numbers, but never fewer than two."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    low, high = max(low, bottom), min(high, top)
    axes.set_ylim(low, high)
    decades = np.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 3.0), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _mark_ends(axes: Axes, runs: Sequence[Run], ends: Sequence[float]) -> None:
    """Where a loss was no longer finite."""
    for number, (run, end) in enumerate(zip(runs, ends, strict=True)):
        if not run.epochs[-1].finite:
            color = STOP if len(runs) == 1 else RUNS[number % len(RUNS)]
            axes.axvline(end, color=color, linestyle=":")
            left = end < sum(axes.get_xlim()) / 2
            axes.annotate(
                f" not finite at step {run.epochs[-1].step:,} ",
                (end, 0.97 - 0.09 * number),
                xycoords=("data", "axes fraction"),
                color=color,
                ha="left" if left else "right",
                va="top",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0},
            )


def _legend(figure: Figure, kinds: Sequence[_Curve], names: Sequence[str], title: str) -> None:
    """Around the panels, where it hides nothing: above what the colours are, below what the lines are."""
    if names:
        colors = [Line2D([], [], color=RUNS[number % len(RUNS)], linewidth=3) for number in range(len(names))]
        figure.legend(
            colors,
            names,
            loc="outside upper left",
            frameon=False,
            title=title or None,
            title_fontsize=11,
            alignment="left",
        )
    lines = [
        Line2D(
            [], [], color="black" if names else kind.color, marker=kind.marker, linestyle=kind.line, alpha=kind.alpha
        )
        for kind in kinds
    ]
    figure.legend(lines, [kind.label for kind in kinds], loc="outside lower left", ncols=2, frameon=False)


def _differs(run: Run, runs: Sequence[Run]) -> str:
    """A run's name, and what it does other than the others."""
    everywhere = set.intersection(*(set(_parts(other)) for other in runs))
    parts = [part for part in _parts(run) if part not in everywhere]
    return "\n".join(textwrap.wrap(f"{run.name}: {'; '.join(parts)}" if parts else run.name, TITLE_WIDTH))


def _parts(run: Run) -> list[str]:
    return [*run.config.described, f"seed {run.config.seed}"]


def _title(runs: Sequence[Run], moving: bool) -> str:
    """What all the runs do."""
    parts = [part for part in runs[0].config.described if all(part in run.config.described for run in runs)]
    if len(runs) == 1:
        (run,) = runs
        if not moving and run.config.lr is None:
            parts.append(f"learning rate {', '.join(f'{rate:g}' for rate in run.rates[0])}")
        parts.append(f"{int(sum(epoch.examples.sum() for epoch in run.epochs)):,} pictures seen")
    return "\n".join(textwrap.wrap("; ".join(parts), TITLE_WIDTH))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.plot", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the picture, whose name ends in .png, .svg or .pdf (default: RUN/loss.png; for several runs, runs.png)",
    )
    args = parser.parse_args(argv)
    out: Path = args.out or (args.runs[0] / "loss.png" if len(args.runs) == 1 else Path("runs.png"))
    try:
        if not out.suffix or out.is_dir():
            raise UsageError(f"--out {out}: is no name of a picture, such as runs.png")
        names = [Path(os.path.abspath(run)).name for run in args.runs]
        alone = len(set(names)) == len(names)
        runs = [read(run, name if alone else str(run)) for run, name in zip(args.runs, names, strict=True)]
        try:
            save(runs, out)
        except (OSError, ValueError) as error:
            raise UsageError(f"--out {out}: cannot be written ({one_line(error)}); give another") from error
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    output.tolerate()
    sys.exit(main(sys.argv[1:]))

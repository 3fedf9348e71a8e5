"""Line charts as SVG, to stand in a page whose style sheet gives them their colours, light or dark."""

import html
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEFT, RIGHT, TOP, BOTTOM = 68, 16, 30, 38  # margins, in pixels
SMALLEST = 1e-300


class Line(NamedTuple):
    """A curve. What is not finite, and on a logarithmic axis what is not above 0, is left out.

    Args:
      name: for the reader.
      style: a class of the page's style sheet.
      x: the points.
      y: the points.
    """

    name: str
    style: str
    x: np.ndarray
    y: np.ndarray


class Axis:
    """From numbers to pixels, and the ticks. A tight one ends where the numbers do."""

    def __init__(self, values: np.ndarray, start: float, end: float, log: bool, tight: bool):
        self.log, self.start, self.end = log, start, end
        low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 10.0)
        if log:
            low, high = math.log10(low), math.log10(high)
            if not tight:
                low, high = math.floor(low), math.ceil(high)
        elif not tight:
            low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
        self.low, self.high = (low, high) if low < high else (low - 0.5, high + 0.5)

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        values = np.log10(np.maximum(values, SMALLEST)) if self.log else np.asarray(values)
        return self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            return [10.0**power for power in powers[:: -(-len(powers) // 6) or 1]]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 3))
        step *= next(times for times in (5, 2, 1) if (self.high - self.low) / (step * times) >= 3 or times == 1)
        first = math.ceil(self.low / step)
        return [step * i for i in range(first, math.floor(self.high / step) + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    labels: tuple[str, str],
    log: tuple[bool, bool] = (False, False),
    size: tuple[int, int] = (720, 280),
) -> str:
    """An SVG element.

    Args:
      title: above the chart.
      lines: the last is drawn over the others.
      labels: of the x axis and the y axis.
      log: which of them are logarithmic.
      size: width and height, in pixels.
    """
    width, height = size
    shown = [_shown(line, log) for line in lines]
    axes = [
        Axis(np.concatenate([getattr(line, name) for line in shown]), start, end, is_log, tight=name == "x")
        for name, start, end, is_log in zip("xy", (LEFT, height - BOTTOM), (width - RIGHT, TOP), log, strict=True)
    ]
    x_axis, y_axis = axes
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">',
        f'<text class="title" x="{LEFT}" y="16">{html.escape(title)}</text>',
    ]
    for tick in y_axis.ticks():
        y = float(y_axis(tick))
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{width - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_axis.ticks():
        x = float(x_axis(tick))
        place = f'x="{x:.1f}" y="{height - BOTTOM + 16}"'
        parts.append(f'<text class="tick" {place} text-anchor="middle">{_number(tick)}</text>')
    parts.append(f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{height - BOTTOM}H{width - RIGHT}"/>')
    middle = (TOP + height - BOTTOM) / 2
    parts.append(f'<text class="label" x="{width - RIGHT}" y="{height - 6}" text-anchor="end">{labels[0]}</text>')
    parts.append(
        f'<text class="label" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{labels[1]}</text>'
    )
    for line in shown:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(x_axis(line.x), y_axis(line.y), strict=True))
        parts.append(
            f'<polyline class="{line.style}" fill="none" points="{points}"><title>{line.name}</title></polyline>'
        )
    return "".join([*parts, "</svg>"])


def binned(values: np.ndarray, bins: int = 240, log: bool = False) -> tuple[np.ndarray, list[slice]]:
    """At most so many stretches of steps: their last steps, from 1, and their slices."""
    count = len(values)
    if log:
        bounds = np.unique(np.geomspace(1, count + 1, bins + 1).round().astype(int)) - 1
    else:
        bounds = np.unique(np.linspace(0, count, min(bins, count) + 1).astype(int))
    return bounds[1:], [slice(a, b) for a, b in itertools.pairwise(bounds)]


def _shown(line: Line, log: tuple[bool, bool]) -> Line:
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    keep = np.isfinite(y) & ((x > 0) | (not log[0])) & ((y > 0) | (not log[1]))
    return line._replace(x=x[keep], y=y[keep])


def _number(value: float) -> str:
    power = round(math.log10(abs(value))) if value else 0
    if value and not -4 < power < 5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"

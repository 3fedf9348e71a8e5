"""Line charts as SVG, by matplotlib, in the colours of the page that they stand in, light or dark."""

import io
import re
from typing import Any, NamedTuple

import numpy as np

COLOURS = {"text": "#010203", "line": "#040506", "torch": "#070809", "ours": "#0a0b0c", "nudged": "#0d0e0f"}


class Line(NamedTuple):
    """A curve.

    Args:
      label: for the key.
      colour: one of `COLOURS`.
      x: the steps.
      y: the values; what is not finite, or on a logarithmic axis not above 0, is left out.
      wide: drawn as a wide band, on which another curve that hides it is seen.
    """

    label: str
    colour: str
    x: np.ndarray
    y: np.ndarray
    wide: bool = False


def chart(title: str, lines: list[Line], ylabel: str, log: bool = False) -> str:
    """An `<svg>` element.

    Args:
      title: above it.
      lines: the last is drawn over the others.
      ylabel: of the y axis; the x axis is the step.
      log: whether the y axis is logarithmic.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.9, 3.1), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        text, grid = COLOURS["text"], COLOURS["line"]
        for line in lines:
            keep = np.isfinite(line.y) & ((line.y > 0) | (not log))
            style: Any = {"linewidth": 6, "alpha": 0.6} if line.wide else {"linewidth": 1.2}
            marker = "o" if keep.sum() == 1 else None
            label = f"{line.label}: 0" if log and len(line.y) and not line.y.any() else line.label  # it has no curve
            axes.plot(line.x[keep], line.y[keep], color=COLOURS[line.colour], label=label, marker=marker, ms=4, **style)
        if log and any((line.y > 0).any() for line in lines):
            axes.set_yscale("log")
        axes.set_title(title, loc="left", color=text, fontsize=10, fontweight="bold")
        axes.set_xlabel("step", color=text)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_ylabel(ylabel, color=text)
        axes.tick_params(colors=text)
        axes.grid(color=grid, linewidth=0.6)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(grid)
        if len(lines) > 1:
            figure.legend(
                *axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, labelcolor=text
            )
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg))
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)

"""What a comparison found, as a page with nothing outside it, as text and as JSON."""

import dataclasses
import html
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxopt_port.compare import blame
from jaxopt_port.compare.findings import STAGES, number
from jaxopt_port.compare.forced import Row

if TYPE_CHECKING:
    from jaxopt_port.compare.follow import Followed

LISTED = 40  # tensors of a full step
QUANTITIES = {"output": "loss", "loss": "loss", "grad": "gradient", "update": "update", "statistic": "update"}
STYLE = """
:root { color-scheme: light dark; --text: #1f2937; --soft: #6b7280; --back: #ffffff; --line: #e5e7eb; --card: #f3f4f6;
  --ours: #1d4ed8; --torch: #f97316; --nudged: #0d9488; --good: #15803d; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --text: #e5e7eb; --soft: #9ca3af; --back: #111827; --line: #374151;
  --card: #1f2937; --ours: #93c5fd; --torch: #fb923c; --nudged: #2dd4bf; --good: #4ade80; --bad: #f87171; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1100px;
  margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: .5rem 0; } h2 { font-size: 1.1rem; margin: 1.8rem 0 .4rem; }
.soft { color: var(--soft); font-size: 14px; } .off { color: var(--bad); font-weight: 600; }
.verdict { background: var(--card); border-left: 5px solid var(--good); padding: .7rem 1rem; font-size: 1.05rem; }
.verdict.apart { border-color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.n { text-align: right; white-space: nowrap; }
table { overflow-wrap: normal; } th:first-child, td:first-child { white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: .8rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--text); }
ul { padding-left: 1.2rem; }
"""


def to_json(followed: "Followed") -> dict[str, Any]:
    """Numbers that are not finite are None."""
    blamed = followed.blamed
    return _plain(
        {
            "ok": followed.ok,
            "verdict": followed.verdict,
            "step": blamed and blamed.step,
            "stage": blamed and blamed.stage,
            "parameter": blamed and blamed.parameter,
            "layer": blamed and blamed.layer,
            "defaults": [list(each) for each in defaults(followed)],
            "findings": [each._asdict() for each in followed.findings],
            "full": [
                {"step": each.step, "tensors": [dataclasses.asdict(row) | {"off": row.off} for row in each.rows]}
                for each in followed.full
            ],
            "run": [dataclasses.asdict(point) for point in followed.points],
            "notes": followed.notes,
        }
    )


def text(followed: "Followed") -> str:
    """For the terminal."""
    lines = [followed.verdict]
    lines += [f"  also: {each.sentence}" for each in followed.findings if each is not followed.blamed]
    lines += [f"  {what}: {torch} in torch; {other}" for what, torch, other in defaults(followed)]
    lines += [f"  note: {note}" for note in followed.notes]
    for stage, seen, worst in stages(followed):
        lines.append(f"  {stage:<9} {seen}{f'; nearest to its bound {worst}' if worst else ''}")
    return "\n".join(lines)


def defaults(followed: "Followed") -> tuple[tuple[str, str, str], ...]:
    """What differs by default between torch and flax, for the kind of layer that is blamed."""
    blamed = followed.blamed
    if blamed is None or blamed.stage == "data":
        return ()
    if blamed.stage in ("update", "schedule") and not blamed.layer:
        return blame.DEFAULTS["optimizer"]
    where = blamed.layer or blamed.parameter
    if blamed.stage == "loss" and where is None:
        return blame.DEFAULTS["loss"]
    module = followed.trace.module_of(where) if where else None
    return blame.defaults(module["kind"] if module else None)


def stages(followed: "Followed") -> list[tuple[str, str, str]]:
    """For every stage what was seen of it, and the tensor that is nearest to its bound."""
    found = []
    for stage in STAGES:
        off = [each for each in followed.findings if each.stage == stage]
        rows = [(f.step, row) for f in followed.full for row in f.rows if QUANTITIES.get(row.quantity) == stage]
        rows = [(step, row) for step, row in rows if row.allowed and math.isfinite(row.apart)]
        step, worst = max(rows, key=lambda each: each[1].apart / each[1].allowed, default=(0, None))
        said = f"{_called(worst)} in step {step}, {number(worst.apart / worst.allowed)} of it" if worst else ""
        seen = f"{len(off)} off" if off else f"{len(rows)} tensors are torch's" if rows else "nothing is off"
        found.append((stage, seen, said))
    return found


def page(followed: "Followed") -> str:
    """The page."""
    blamed, header = followed.blamed, followed.trace.start.header
    about = ", ".join(each["kind"] for each in header["optimizers"])
    sections = [
        "<h1>A PyTorch run and its port to JAX</h1>",
        f"<p class='verdict{'' if followed.ok else ' apart'}'>{_e(followed.verdict)}</p>",
        f"<p class='soft'>{len(followed.trace.steps):,} steps of {_e(about)}, {len(header['parameters'])} parameters; "
        f"torch {_e(header['torch'])} on {_e(header['device'])} ({header['threads']} threads, "
        f"{_e(header['instructions'])}); jax {jax.__version__} on {jax.devices()[0].platform}</p>",
    ]
    rest = [each for each in followed.findings if each is not blamed]
    said = [_e(each.sentence) for each in rest] + [_e(note) for note in followed.notes]
    if said:
        sections.append(f"<ul>{''.join(f'<li>{each}</li>' for each in said)}</ul>")
    rows = defaults(followed)
    if rows:
        sections.append("<h2>What differs by default there</h2>" + _table(("", "torch", "flax, jax, optax"), rows))
    sections.append("<h2>Stage by stage</h2>")
    sections.append(_table(("stage", "", "nearest to its bound"), stages(followed)))
    if followed.points:
        sections.append("<h2>The port's own run</h2>")
        sections.append(
            "<p class='soft'>From torch's start with torch's batches, by itself. Beside it run two more of the port's "
            "from starts that are 2 eps off: what they part by is rounding.</p>"
        )
        sections.append(f"<div class='charts'>{''.join(_charts(followed))}</div>")
    for forced in followed.full:
        sections.append(f"<h2>Step {forced.step}, from torch's own parameters, batch and state</h2>")
        sections.append(_tensors(forced.rows))
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'><link rel='icon' href='data:,'>"
        f"<title>A PyTorch run and its port</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(sections)
        + "</body></html>\n"
    )


def _charts(followed: "Followed") -> list[str]:
    from jaxopt_port.compare.chart import Line, chart

    points = followed.points
    steps = np.array([point.step for point in points])
    torch, ours, itself = (np.array([getattr(p, key) for p in points]) for key in ("torch", "ours", "itself"))
    worst = {name: max(_finite(p.drift[name]) for p in points) for name in points[0].drift}
    charts = [
        chart("Loss", [Line("torch", "torch", steps, torch, wide=True), Line("port", "ours", steps, ours)], "loss"),
        chart(
            "Loss, apart",
            [Line("port, nudged", "nudged", steps, itself), Line("port from torch", "ours", steps, abs(ours - torch))],
            "difference",
            log=True,
        ),
    ]
    rates = np.array([point.rate for point in points])
    if len(set(rates.tolist())) > 1:
        charts.append(chart("Learning rate", [Line("torch", "torch", steps, rates)], "lr"))
    for name in sorted(worst, key=worst.__getitem__, reverse=True)[:6]:
        drift, nudged = (np.array([getattr(p, key)[name] for p in points]) for key in ("drift", "nudged"))
        lines = [Line("port, nudged", "nudged", steps, nudged), Line("port from torch", "ours", steps, drift)]
        charts.append(chart(name, lines, "of its way so far", log=True))
    return charts


def _tensors(rows: list[Row]) -> str:
    ranked = sorted(rows, key=lambda row: -_finite(row.apart) / (row.allowed or 1e-30))
    cells = [
        (_called(row), number(row.apart), number(row.itself), number(row.allowed), "off" if row.off else "")
        for row in ranked[:LISTED]
    ]
    head = ("tensor", "off by", "itself", "allowed", "")
    note = (
        f"<p class='soft'>Relative to torch's own (L2), of an update relative to torch's step. Of {len(rows)} tensors "
    )
    note += (
        "those nearest to what they are allowed; itself is how far torch, or the port, is from itself by rounding.</p>"
    )
    return note + _table(head, cells, numbers=True)


def _called(row: Row) -> str:
    return f"{row.quantity} of {row.name}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], numbers: bool = False) -> str:
    def cell(i: int, text: str) -> str:
        kind = " class='off'" if text == "off" else " class='n'" if numbers and i else ""
        return f"<td{kind}>{_e(text)}</td>"

    body = "".join(f"<tr>{''.join(cell(i, text) for i, text in enumerate(row))}</tr>" for row in rows)
    top = "".join(f"<th>{_e(name)}</th>" for name in head)
    return f"<div class='wide'><table><tr>{top}</tr>{body}</table></div>"


def _e(text: str) -> str:
    return html.escape(text)


def _finite(x: float) -> float:
    return x if math.isfinite(x) else 1e30


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    if isinstance(x, float | np.floating):
        return float(x) if math.isfinite(x) else None
    return x

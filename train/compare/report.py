"""report.html: the comparison as one page, with nothing outside it."""

import html
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

import jaxopt_port
from train.compare import verdict
from train.compare.blame import Blame, Stages
from train.compare.chart import Line, binned, line_chart
from train.compare.lockstep import YARDSTICKS, Lockstep, Pair
from train.compare.verdict import NAMES, eps
from train.config import Config

OURS, TORCH = "ours", "torch"
OTHERS = dict(zip(YARDSTICKS, ("other0", "other1", "other2"), strict=True))
STYLE = """
:root { color-scheme: light dark; --text: #1f2937; --soft: #6b7280; --back: #ffffff; --line: #e5e7eb; --card: #f9fafb;
  --ours: #2563eb; --torch: #ea580c; --other0: #0d9488; --other1: #a855f7; --other2: #9ca3af; }
@media (prefers-color-scheme: dark) { :root { --text: #e5e7eb; --soft: #9ca3af; --back: #111827; --line: #374151;
  --card: #1f2937; --ours: #60a5fa; --torch: #fb923c; --other0: #2dd4bf; --other1: #c084fc; --other2: #9ca3af; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1080px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
code, pre { font: 13px/1.45 ui-monospace, monospace; } .soft { color: var(--soft); }
pre { overflow-x: auto; } .verdict { background: var(--card); border-left: 4px solid var(--ours); padding: .6rem 1rem; }
.verdict p { margin: .4rem 0; } .wide { overflow-x: auto; }
table { border-collapse: collapse; margin-bottom: 1rem; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; max-width: 8.5rem; }
th:first-child, td:first-child { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: .5rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
svg .title { font-weight: 600; font-size: 13px; } svg .tick, svg .label { fill: var(--soft); }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); fill: none; }
polyline { fill: none; stroke-width: 1.5; stroke-linejoin: round; } polyline.torch { stroke-width: 5; opacity: .6; }
.key { margin: .25rem 0; font-size: 14px; } .key span { margin-right: 1.2rem; white-space: nowrap; }
.key i { display: inline-block; width: 1.2rem; height: 3px; margin-right: .4rem; vertical-align: middle; }
""" + "".join(
    f"polyline.{name} {{ stroke: var(--{name}); }} i.{name} {{ background: var(--{name}); }}\n"
    for name in (OURS, TORCH, *OTHERS.values())
)


def page(lockstep: Lockstep, pairs: Sequence[Pair], speeds: Sequence[tuple[float, float]], blame: Blame | None) -> str:
    """The page.

    Args:
      lockstep: both runs.
      pairs: their epochs.
      speeds: images a second of each epoch, here and in torch.
      blame: what parted them, if anything did.
    """
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in verdict.sentences(lockstep, blame))
    sections = [
        f"<h1>The same run in PyTorch and here</h1><p class='soft'>{html.escape(_describe(lockstep.config))}</p>",
        f"<div class='verdict'>{said}</div>",
        "<h2>Epoch by epoch</h2>",
        "<p>Running loss: the sum of the steps' losses. Distances are those from torch with one thread, ours and those "
        "of torch's other forms.</p>",
        _epochs(pairs),
        "<p>Images a second: of each run alone, with all of the machine; our first one has the compilation.</p>",
        _quality(pairs, speeds),
        *([] if not pairs else [_losses(pairs)]),
        "<h2>How far each parameter drifts</h2>",
        "<p>The largest difference from torch with one thread, after each step, in eps (2<sup>-23</sup>) of the "
        "parameter's largest value. The other curves are torch itself: what is below or among them is no further from "
        "torch than torch is. A curve that is not there is zero throughout.</p>",
        _key([(OURS, "ours"), *((OTHERS[name], f"torch, {name}") for name in YARDSTICKS)]),
        _drift(lockstep),
        *([] if blame is None else ["<h2>The step in which they part</h2>", _step(blame)]),
        "<h2>Versions and hardware</h2>",
        _machine(lockstep),
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>The same run in PyTorch and here</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(f'{section}{chr(10)}' for section in sections)}</body></html>\n"
    )


def _describe(config: Config) -> str:
    parts = [*config.described, f"{config.epochs} epochs", f"seed {config.seed}"]
    return "; ".join(parts) + ". Both from the seed alone: nothing is exchanged but the data."


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = ["".join(f"<th>{name}</th>" for name in head)]
    cells += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return "<div class='wide'><table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table></div>"


def _key(entries: Iterable[tuple[str, str]]) -> str:
    """Which colour is which."""
    return "<p class='key'>" + "".join(f"<span><i class='{style}'></i>{n}</span>" for style, n in entries) + "</p>"


def _epochs(pairs: Sequence[Pair]) -> str:
    """The running losses, and how far they are apart beside how far torch is from itself."""
    head = ["epoch", "running loss,<br>torch", "ours", "ours from<br>torch"]
    head += [*(f"torch, {name},<br>from torch" for name in YARDSTICKS), "ours / farthest<br>of torch's"]
    rows = []
    for pair in pairs:
        apart, itself = verdict.distances(pair)
        torch = pair.torch.running_loss
        others = [f"{abs(other.running_loss - torch):.1e}" for other in pair.others]
        row = [f"{pair.ours.number}", f"{torch:.6f}", f"{pair.ours.running_loss:.6f}", f"{apart:.1e}"]
        rows.append([*row, *others, verdict.times(apart, itself)])
    return _table(head, rows)


def _quality(pairs: Sequence[Pair], speeds: Sequence[tuple[float, float]]) -> str:
    """What the epochs came to, and how fast."""
    more = {"test": "test loss", "ema_test": "test loss of the average"}
    more = {name: text for name, text in more.items() if pairs and getattr(pairs[0].torch, name) is not None}
    names = ["accuracy", *more.values(), "images a second"]
    head = ["epoch", *(f"{text},<br>{side}" for text in names for side in ("torch", "ours"))]
    rows = []
    for pair, (speed, torch_speed) in zip(pairs, speeds, strict=False):
        sides = pair.torch, pair.ours
        losses = [f"{getattr(side, name)[0]:.6f}" for name in more for side in sides]
        accuracies = [f"{side.accuracy:.2%}" for side in sides]
        rows.append([f"{pair.ours.number}", *accuracies, *losses, f"{torch_speed:,.0f}", f"{speed:,.0f}"])
    return _table(head, rows)


def _losses(pairs: Sequence[Pair]) -> str:
    """Both loss curves, and how far our losses are from torch's."""
    ours, torch = (np.concatenate([getattr(pair, side).losses for pair in pairs]) for side in ("ours", "torch"))
    others = [np.concatenate([pair.others[i].losses for pair in pairs]) for i in range(len(YARDSTICKS))]
    steps, slices = binned(torch)

    def curve(name: str, style: str, values: np.ndarray) -> Line:
        return Line(name, style, steps, np.array([values[part].mean() for part in slices]))

    both = [curve("torch", TORCH, torch), curve("ours", OURS, ours)]
    apart = [
        curve(f"torch, {name}", OTHERS[name], abs(other - torch))
        for name, other in zip(YARDSTICKS, others, strict=True)
    ]
    apart.append(curve("ours", OURS, abs(ours - torch)))
    return (
        _key([(TORCH, "torch, 1 thread"), (OURS, "ours")])
        + line_chart("Loss", both, ("step", "loss of a batch"), size=(1040, 300))
        + _key([(line.style, line.name) for line in reversed(apart)])
        + line_chart(
            "Distance of the loss from torch's", apart, ("step", "mean |difference|"), (False, True), (1040, 260)
        )
    )


def _drift(lockstep: Lockstep) -> str:
    distances = lockstep.distances
    steps, slices = binned(distances, bins=160, log=True)
    sides = [(OURS, "ours"), *((OTHERS[name], f"torch, {name}") for name in YARDSTICKS)]
    charts = []
    for parameter, name in enumerate(NAMES):
        lines = [
            Line(label, style, steps, np.array([distances[part, side, parameter].max() for part in slices]))
            for side, (style, label) in enumerate(sides)
        ]
        charts.append(line_chart(name, [*lines[1:], lines[0]], ("step", "eps"), (True, True), (340, 210)))
    return f"<div class='charts'>{''.join(charts)}</div>"


def _step(blame: Blame) -> str:
    at = blame.parameter

    def row(name: str, stages: Stages) -> list[str]:
        own = [stages.gradient, stages.backward, stages.update, stages.step]
        return [name, eps(stages.loss), f"{stages.choices:,}", *(eps(each[at]) for each in own)]

    head = ["", "loss", f"max-pooling choices<br>of {blame.windows:,}", "gradient", "gradient with<br>equal choices"]
    head += ["update with<br>torch's gradient", "update with<br>its own gradient"]
    rows = [row("ours", blame.ours), *(row(f"torch, {name}", other) for name, other in blame.others.items())]
    return (
        f"<p>Step {blame.step:,} again, from torch's own parameters and the optimizer's state before it: how far each "
        f"part is from torch's, for <code>{NAMES[at]}</code>, in eps of its largest value. The runs themselves were "
        f"{eps(blame.carried)} eps apart before the step and {eps(blame.apart)} after it; in their own step "
        f"{blame.own_choices:,} choices of the max pooling differ, and the gradient is {eps(blame.own_gradient)} eps "
        f"off, with equal choices {eps(blame.own_backward)}.</p>" + _table(head, rows)
    )


def _machine(lockstep: Lockstep) -> str:
    versions = {"python": platform.python_version(), "jaxopt_port": jaxopt_port.__version__}
    versions.update((name, version(name)) for name in ("jax", "flax", "optax", "numpy"))
    versions["torch"] = next(iter(lockstep.hello.values())).version
    device = jax.devices()[0]
    rows = [
        ["versions", ", ".join(f"{name} {value}" for name, value in versions.items())],
        ["processor", f"{_processor()}, {os.cpu_count()} logical cores"],
        ["our device", f"{device.platform}: {device.device_kind}"],
        *([f"torch, {name}", hello.device] for name, hello in lockstep.hello.items()),
    ]
    return (
        "<dl>" + "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in rows) + "</dl>"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

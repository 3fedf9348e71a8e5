"""A step of every optimizer beside torch's and optax's: `python -m benchmarks`, on a GPU with `--device gpu`.

Everything is float32, donated, in one process, and timed in turns: each round takes one step of each contender, in an
order drawn anew, after one that warms the caches which the last has emptied. What is printed are medians, and ratios of
them: below 1 ours is faster. The tables go to benchmarks/RESULTS.md, each device's own section, and with `--json FILE`
the numbers to a file. `--quick` takes the small trees alone, three rounds each.
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")
TORCHS = ("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "asgd", "lbfgs", "muon", "nadam", "radam")
TORCHS += ("rmsprop", "rprop", "sgd", "sparse_adam")
TWO = ("adamw", "sgd")  # of what takes long: real shapes, gradients inside, and on a GPU 1,000 arrays
FORMS = ("eager", "foreach", "fused", "compiled", "CUDA graph")
QUICK = {"4 x 1k": [(10, 100)] * 4, "20 x 1k": [(10, 100)] * 20}
GROWTH = [10**exponent for exponent in range(3, 10)]
TIMED_UP_TO = 10**8
MANY = (5_000, (20, 50))

Row = dict[str, Any]
Shapes = Sequence[tuple[int, ...]]


def measure(name: str, shapes: Shapes, arguments: argparse.Namespace, inside: bool = False) -> Row:
    """For each contender ms a step and to its dispatch, seconds to compile, temporary bytes a parameter byte."""
    from benchmarks.contenders import contenders

    steps: Row = {}
    row: Row = {"optimizer": name, "inside": inside, "missing": {}}
    for column, make in contenders(name, shapes, arguments.device, inside).items():
        try:
            steps[column] = make()
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:  # a form that torch does not have
            if not column.startswith("torch"):
                raise
            row["missing"][column] = str(error).splitlines()[0]
    times: dict[str, list[tuple[float, float]]] = {column: [] for column in steps}
    end, order, drawn = time.perf_counter() + arguments.seconds, list(steps.items()), random.Random(0)
    for done in range(arguments.rounds):
        if done >= 3 and time.perf_counter() > end:
            break
        drawn.shuffle(order)  # what steps after torch shares the cores with threads of torch's that still wait
        for column, step in order:
            step.dispatch()
            step.wait()
            start = time.perf_counter()
            step.dispatch()
            dispatched = time.perf_counter()
            step.wait()
            times[column].append((time.perf_counter() - start, dispatched - start))
    for column, step in steps.items():
        whole, dispatch = (statistics.median(column_) * 1e3 for column_ in zip(*times[column], strict=True))
        row[column] = {
            "ms": whole,
            "dispatch_ms": dispatch,
            "compile_s": step.compile_s,
            "temporary": step.temporary,
            "rounds": len(times[column]),
        }
    del steps
    gc.collect()
    return row


def value(row: Row, column: str, key: str = "ms", form: str = "{:.2f}") -> str:
    return form.format(row[column][key]) if column in row else ""


def ratio(row: Row, column: str, other: str, key: str = "ms") -> str:
    return f"{row[column][key] / row[other][key]:.2f}" if column in row and other in row else ""


def print_table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]], out: list[str]) -> None:
    head = list(head)
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    out += [*lines, ""]
    print("\n".join([*lines, ""]), flush=True)


def step_table(title: str, rows: Sequence[Row], device: str, out: list[str]) -> None:
    forms = [form for form in FORMS if any(f"torch {form}" in row for row in rows)]
    goal = "at most 1.05" if device == "cpu" else "at most 1"
    best = "" if device == "cpu" else ", at most 1 by leaves or flat"
    head = ["optimizer", "leaves, ms", "flat / leaves", f"leaves / optax ({goal})"]
    head += [f"leaves / torch {form}{best if form == 'fused' else ''}" for form in forms]
    head += ["flat / torch fused"] if any("torch fused" in row and "flat" in row for row in rows) else []
    head += ["dispatch: leaves, flat, optax, ms", "compile: leaves, flat, optax, s", "temporary: leaves, flat, optax"]

    def three(row: Row, key: str, form: str) -> str:
        return ", ".join(value(row, column, key, form) or "-" for column in ("leaves", "flat", "optax"))

    def cells(row: Row) -> list[str]:
        made = [row["optimizer"], value(row, "leaves"), ratio(row, "flat", "leaves"), ratio(row, "leaves", "optax")]
        made += [ratio(row, "leaves", f"torch {form}") for form in forms]
        made += [ratio(row, "flat", "torch fused")] if "flat / torch fused" in head else []
        return [
            *made,
            three(row, "dispatch_ms", "{:.2f}"),
            three(row, "compile_s", "{:.1f}"),
            three(row, "temporary", "{:.2f}"),
        ]

    print_table(title, head, map(cells, rows), out)


def limits_table(rows: Sequence[Row], out: list[str]) -> None:
    """AdamW beside what cannot be beaten."""
    head = ["arrays", "buffers in and out, ms", "four streams in, three out, ms", "leaves / streams (at most 1.2)"]
    head += ["flat / streams", "optax / streams", "torch fused / streams"]
    body = (
        [
            row["layout"],
            value(row, "buffers"),
            value(row, "streams"),
            *(ratio(row, column, "streams") for column in ("leaves", "flat", "optax", "torch fused")),
        ]
        for row in rows
    )
    print_table("AdamW beside the limits: what JAX's buffers cost, and a step that only adds", head, body, out)


def growth_table(arguments: argparse.Namespace, out: list[str], numbers: list[Row]) -> None:
    """AdamW from 1,000 to 10^9 parameters in one array: beyond 10^8 compiled and not run."""
    import jax
    import jax.numpy as jnp

    import jaxopt_port as optim

    optimizer, body = optim.adamw(), []
    for size in GROWTH:
        params = jax.ShapeDtypeStruct((size,), jnp.float32)
        step = jax.jit(lambda p, s, g: optimizer.step(g, s, p), donate_argnums=(0, 1))
        lowered = step.lower(params, jax.eval_shape(optimizer.init, params), params)
        used: Any = lowered.compile().memory_analysis()
        per = [x / 4 / size for x in (used.argument_size_in_bytes, used.temp_size_in_bytes)]
        row: Row = {}
        if size <= TIMED_UP_TO:
            row = measure("adamw", [(size,)], arguments)
            numbers.append({**row, "layout": f"1 x {size}"})
        kilobytes = len(lowered.as_text()) / 1e3
        cells = [
            value(row, "leaves", "ms", "{:.3f}"),
            ratio(row, "leaves", "optax"),
            ratio(row, "leaves", "torch fused"),
        ]
        body.append([f"{size:,}", *cells, f"{per[0]:.2f}", f"{per[1]:.2f}", f"{kilobytes:.0f}"])
    head = [
        "parameters",
        "ms",
        "/ optax",
        "/ torch fused",
        "arguments, bytes a parameter byte",
        "temporary",
        "program, kB",
    ]
    print_table("AdamW as it grows, in one array", head, body, out)


def about(device: str) -> list[str]:
    """The hardware and the versions."""
    from importlib.metadata import version

    import jax

    hardware = jax.devices()[0].device_kind
    if device == "cpu":
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        hardware = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
        hardware += f", {os.cpu_count()} cores"
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "optax", "torch"))
    return [
        f"{hardware}; {versions}, Python {platform.python_version()}.",
        "",
        "Ratios are times of ours over theirs, below 1 ours is faster; goals are in brackets. Temporary: bytes a "
        "parameter byte. torch's fused kernel exists for Adam, AdamW, SGD and Adagrad. L-BFGS and Muon have smaller "
        "arrays than the heading says, and of a thousand Muon and SparseAdam have 160 (benchmarks/shapes.py). Where it "
        "falls short: on a CPU torch's fused kernels read and write memory faster than XLA's loops do, and `flat` "
        "copies; on a GPU many arrays wait for the host, which `flat` is for.",
        "",
    ]


def write(device: str, out: list[str]) -> None:
    """Put this device's section into RESULTS.md, in place of its old one."""
    old = RESULTS.read_text().split("\n## ")[1:] if RESULTS.exists() else []
    kept = [section.rstrip() for section in old if not section.startswith(device)]
    command = f"`python -m benchmarks{'' if device == 'cpu' else f' --device {device}'}`"
    sections = sorted([*kept, "\n".join([f"{device}: {command}", "", *out]).rstrip()])
    RESULTS.write_text("\n## ".join(["# Results of the benchmarks\n", *sections]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=30, help="at most, for each optimizer and tree")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="after which no round begins, but for the first three"
    )
    parser.add_argument("--optimizers", nargs="+", default=list(TORCHS), choices=TORCHS)
    parser.add_argument("--layouts", nargs="+", help="of the trees these alone, and no real shapes and no growth")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="to see that it works: RESULTS.md stays as it is")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if arguments.device == "cpu" else "cuda")
    from benchmarks.shapes import LAYOUTS, MODELS, layout

    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 3)
    out, numbers, limits = about(arguments.device), [], []
    device = "cpu" if arguments.device == "cpu" else "cuda"
    arguments.device = device
    print(f"{out[0]}\n", flush=True)
    for title in QUICK if arguments.quick else arguments.layouts or LAYOUTS:
        chosen = arguments.optimizers
        if device != "cpu" and title.startswith("1,000"):
            chosen = [name for name in chosen if name in TWO]
        rows = []
        for name in chosen:
            shapes = QUICK[title] if arguments.quick else layout(title, name)
            rows.append({**measure(name, shapes, arguments), "layout": title})
            print(f"{title}, {name}", file=sys.stderr, flush=True)
        step_table(f"{title}, gradients handed in", rows, device, out)
        limits += [row for row in rows if row["optimizer"] == "adamw"]
        numbers += rows
        if title == "1 x 25M":
            continue
        shapes = QUICK[title] if arguments.quick else LAYOUTS[title]
        inside = [measure(name, shapes, arguments, inside=True) for name in TWO if name in chosen]
        step_table(f"{title}, gradients made in the same program", inside, device, out)
        numbers += [{**row, "layout": title} for row in inside]
    limits_table(limits, out)
    if not (arguments.quick or arguments.layouts):
        rows = [{**measure(name, make(), arguments), "layout": of} for of, make in MODELS.items() for name in TWO]
        numbers += rows
        named = [{**row, "optimizer": f"{row['optimizer']}, {row['layout']}"} for row in rows]
        many = measure("adamw", [MANY[1]] * MANY[0], arguments)
        numbers.append({**many, "layout": "5,000 x 1k"})
        step_table("Real shapes, and 5,000 arrays", [*named, {**many, "optimizer": "adamw, 5,000 x 1k"}], device, out)
        growth_table(arguments, out, numbers)
        write("cpu" if device == "cpu" else "gpu", out)
    if arguments.json:
        arguments.json.write_text(json.dumps({"about": out[0], "rows": numbers}, indent=1))


if __name__ == "__main__":
    main()

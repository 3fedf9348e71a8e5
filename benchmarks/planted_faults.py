"""Faults put into faithful ports, one at a time: `python -m benchmarks.planted_faults` says which are named."""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import jaxopt_port as optim
from benchmarks import port_changes as changes
from benchmarks.port_changes import Change
from jaxopt_port import compare
from tests.compare import ports
from tests.compare.ports import Knobs

STEPS = 12


@dataclass(frozen=True)
class Fault:
    """A fault and what is to be said of it.

    Args:
      name: for people.
      run: of `tests.compare.torch_side`.
      stages: those that are right.
      parameters: what the named parameter may begin with; empty where the fault is no parameter's.
      step: the first at which it can be seen; 0 at the start.
      knobs: of the port.
      change: of what `follow` takes, beside.
      flavour: `linen` or `nnx`.
    """

    name: str
    run: str
    stages: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    step: int = 1
    knobs: Knobs = field(default_factory=Knobs)
    change: Change | None = None
    flavour: str = "linen"


def sgd(**options: Any) -> Knobs:
    return Knobs(optimizer=options)


FIRST = ("wte", "wpe", "conv1", "embed", "fc1")  # where all parameters are off, the first is named
FAULTS = (
    Fault("LayerNorm eps", "gpt", ("loss", "gradient"), ("blocks.1.ln1",), knobs=Knobs(of="blocks.1.ln1", eps=1e-6)),
    Fault(
        "final LayerNorm eps", "gpt", ("loss", "gradient"), ("ln_f",), knobs=Knobs(of="ln_f", eps=1e-6), flavour="nnx"
    ),
    Fault(
        "tanh GELU",
        "gpt",
        ("loss", "gradient"),
        ("blocks.1.down", "blocks.1.up"),
        knobs=Knobs(of="blocks.1", approximate=True),
    ),
    Fault(
        "tanh GELU, nnx", "muon", ("loss", "gradient"), ("fc2", "norm"), knobs=Knobs(approximate=True), flavour="nnx"
    ),
    Fault(
        "attention scale",
        "gpt",
        ("loss", "gradient"),
        ("blocks.0.qkv", "blocks.0.proj"),
        knobs=Knobs(of="blocks.0", scale=2.83),
    ),
    Fault(
        "no causal mask",
        "gpt",
        ("loss", "gradient"),
        ("blocks.1.qkv", "blocks.1.proj"),
        knobs=Knobs(of="blocks.1", causal=False),
    ),
    Fault("stop_gradient on v", "gpt", ("gradient",), ("blocks.1.qkv",), knobs=Knobs(of="blocks.1", stop=True)),
    Fault("tied weights untied", "gpt", ("start", "gradient"), ("wte", "head"), knobs=Knobs(tied=False)),
    Fault(
        "dropout on",
        "gpt",
        ("loss", "gradient"),
        ("blocks.0.down", "blocks.0.up"),
        knobs=Knobs(of="blocks.0", dropout=0.1),
    ),
    Fault("sum for mean", "lstm", ("loss",), knobs=Knobs(loss="sum")),
    Fault("loss not divided", "gpt", ("loss",), knobs=Knobs(loss="undivided")),
    Fault("label smoothing", "lstm", ("loss",), knobs=Knobs(smoothing=0.1), flavour="nnx"),
    Fault("padding SAME", "resnet", ("loss", "gradient"), ("conv2",), knobs=Knobs(of="conv2", padding="SAME")),
    Fault(
        "padding SAME, nnx",
        "resnet",
        ("loss", "gradient"),
        ("conv2",),
        knobs=Knobs(of="conv2", padding="SAME"),
        flavour="nnx",
    ),
    Fault("average for max pooling", "resnet", ("loss", "gradient"), ("conv2", "down", "bn1"), knobs=Knobs(pool="avg")),
    Fault("flatten order in the network", "resnet", ("loss", "gradient"), ("fc1",), knobs=Knobs(flatten="hwc")),
    Fault(
        "flatten order of the weight",
        "resnet",
        ("start",),
        ("fc1.weight",),
        0,
        change=changes.weight("fc1.weight", lambda w: w.reshape(16, 16, 16).transpose(0, 2, 1).reshape(16, 256)),
    ),
    Fault("GELU for ReLU", "resnet", ("loss", "gradient"), ("fc2", "fc1"), knobs=Knobs(activation="gelu")),
    Fault("input scaled", "resnet", ("loss", "gradient"), ("conv1",), knobs=Knobs(input_scale=0.5)),
    Fault("BatchNorm momentum", "resnet", ("update", "loss"), ("bn1.", "bn2.", "bn3."), knobs=Knobs(momentum=0.99)),
    Fault(
        "BatchNorm variance biased",
        "resnet",
        ("update", "loss"),
        ("bn1.running_var", "bn2.running_var", "bn3.running_var"),
        knobs=Knobs(unbiased=False),
    ),
    Fault("BatchNorm in eval mode", "resnet", ("loss", "gradient"), ("bn2",), knobs=Knobs(of="bn2", running=True)),
    Fault("BatchNorm eps", "resnet", ("loss", "gradient"), ("bn3",), knobs=Knobs(of="bn3", eps=1e-3), flavour="nnx"),
    Fault("LSTM gate order", "lstm", ("loss", "gradient"), ("lstm",), knobs=Knobs(gates="figo")),
    Fault(
        "transposed square weight",
        "muon",
        ("start",),
        ("fc2.weight",),
        0,
        change=changes.weight("fc2.weight", np.transpose),
    ),
    Fault(
        "another seed of a weight",
        "lstm",
        ("start",),
        ("out.weight",),
        0,
        change=changes.weight("out.weight", lambda w: w[::-1]),
    ),
    Fault("missing bias", "muon", ("start",), ("fc3.bias",), 0, change=changes.without(("fc3", "bias"))),
    Fault("shuffled differently", "lstm", ("data",), (), 1, change=changes.batches(changes.shuffled(1))),
    Fault("shuffled differently from step 5 on", "gpt", ("data",), (), 5, change=changes.batches(changes.shuffled(5))),
    Fault("embedding's gradient cut", "lstm", ("gradient",), ("embed",), change=changes.loss(changes.detached)),
    Fault("decay on norms", "gpt", ("update",), ("blocks.0.ln1", "blocks.0"), knobs=sgd(decayed=1)),
    Fault(
        "decay on norms, optax", "gpt", ("update",), ("blocks.0.ln1", "blocks.0"), knobs=sgd(decayed=0), flavour="nnx"
    ),
    Fault("no weight decay", "gpt", ("update",), FIRST, knobs=sgd(weight_decay=0.0)),
    Fault("optax's weight decay", "gpt", ("update",), FIRST, knobs=sgd(weight_decay=1e-4), flavour="nnx"),
    Fault("schedule a step ahead", "gpt", ("schedule",), FIRST, knobs=sgd(shift=1)),
    Fault("schedule a step ahead, optax", "gpt", ("schedule",), FIRST, knobs=sgd(shift=1), flavour="nnx"),
    Fault("milestone a step late", "resnet", ("schedule",), FIRST, 9, knobs=sgd(shift=1)),
    Fault("clipping left out", "gpt", ("update", "gradient"), FIRST, knobs=sgd(norm=0.0)),
    Fault("clip norm", "lstm", ("update", "gradient"), FIRST, knobs=sgd(norm=0.05)),
    Fault("betas swapped", "gpt", ("update",), FIRST, 2, knobs=sgd(betas=(0.95, 0.9))),
    Fault("beta2 of optax", "gpt", ("update",), FIRST, 2, knobs=sgd(betas=(0.9, 0.999)), flavour="nnx"),
    Fault("rate", "lstm", ("update",), FIRST, knobs=sgd(lr=1.1e-2)),
    Fault("rate of Muon", "muon", ("update",), FIRST, knobs=sgd(lr=3e-2)),
    Fault("decoupled weight decay", "lstm", ("update",), FIRST, knobs=sgd(kind="adamw", weight_decay=1e-4)),
    Fault("AMSGrad", "lstm", ("update",), (), 2, knobs=sgd(amsgrad=True)),
    Fault("Adam eps", "lstm", ("update",), FIRST, knobs=sgd(eps=1e-5)),
    Fault("no Nesterov", "resnet", ("update",), FIRST, knobs=sgd(nesterov=False)),
    Fault("momentum", "resnet", ("update",), FIRST, 1, knobs=sgd(momentum=0.8)),
    Fault(
        "heavy-ball momentum",
        "resnet",
        ("update",),
        FIRST,
        1,
        change=changes.optimizer(lambda _: optim.sgd(0.05, 0.9, 0.9, 5e-4)),
    ),
    Fault("layer frozen", "resnet", ("update",), ("conv3",), change=changes.frozen("conv3/kernel")),
    Fault("accumulated as a mean", "gpt", ("gradient",), (), change=changes.accumulated_as_mean),
    Fault("momentum of Muon", "muon", ("update",), (*FIRST, "fc2", "fc3"), 2, knobs=sgd(momentum=0.5)),
    Fault("Muon's step for the shape", "muon", ("update",), ("fc",), knobs=sgd(adjust_lr_fn="original")),
    # These were made up before they were run.
    Fault("embedding scaled", "gpt", ("loss",), ("wte", "wpe", "blocks.0.ln1"), knobs=Knobs(embed_scale=5.66)),
    Fault("positions from 1", "gpt", ("loss",), ("wpe",), knobs=Knobs(shift=1), flavour="nnx"),
    Fault("norm after the residual", "gpt", ("loss",), ("blocks.1.",), knobs=Knobs(of="blocks.1", post_norm=True)),
    Fault(
        "residual left out",
        "gpt",
        ("loss",),
        ("blocks.0.down", "blocks.1.ln1"),
        knobs=Knobs(of="blocks.0", residual=False),
        flavour="nnx",
    ),
    Fault("labels a position off", "lstm", ("loss",), change=changes.loss(changes.shifted)),
    Fault("dilation", "resnet", ("loss",), ("conv3",), knobs=Knobs(of="conv3", dilation=2), flavour="nnx"),
    Fault("LSTM starts from ones", "lstm", ("loss",), ("lstm",), knobs=Knobs(carry=1.0), flavour="nnx"),
    Fault(
        "statistics of LayerNorm constant",
        "gpt",
        ("gradient",),
        ("blocks.1.proj", "blocks.1.qkv"),
        knobs=Knobs(of="blocks.1.ln2", constant=True),
    ),
    Fault("L2 for decoupled decay", "gpt", ("update",), FIRST, change=changes.l2),
    Fault("cosine too short", "gpt", ("schedule",), FIRST, 12, change=changes.cosine),
    Fault(
        "no bias correction", "lstm", ("update",), FIRST, change=changes.optimizer(changes.uncorrected), flavour="nnx"
    ),
    Fault("Muon without Nesterov", "muon", ("update",), ("fc",), knobs=sgd(nesterov=False), flavour="nnx"),
    Fault("clipped one by one", "lstm", ("update",), FIRST, change=changes.optimizer(changes.clipped_each)),
    Fault("decay not scheduled", "gpt", ("update",), FIRST, change=changes.steady_decay, flavour="nnx"),
    Fault("two layers swapped", "gpt", ("start",), ("blocks.0.up", "blocks.1.up"), 0, change=changes.swapped),
    Fault("labels of other pictures", "resnet", ("data",), change=changes.batches(changes.rolled)),
    Fault("BatchNorm's scale frozen", "resnet", ("update",), ("bn1.weight",), change=changes.frozen("bn1/scale")),
)


def found(fault: Fault, path: Path) -> compare.Followed:
    """What is said of a fault; `path` is the trace of its run."""
    trace = compare.read(path)
    made = ports.port(fault.run, trace, fault.flavour, fault.knobs)
    made = fault.change(made, trace) if fault.change else made
    return compare.follow(path, made.loss_fn, made.params, made.optimizer, made.mapping, batches=made.batches)


def is_named(fault: Fault, followed: compare.Followed) -> tuple[bool, bool, bool]:
    """Whether stage, parameter and step are right."""
    blamed = followed.blamed
    if blamed is None:
        return False, False, False
    right = not fault.parameters or (blamed.parameter or "").startswith(fault.parameters)
    return blamed.stage in fault.stages, right, blamed.step == fault.step


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted_faults", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="those whose name has one of these in it")
    parser.add_argument("--run", default="", help="those of this run")
    parser.add_argument("--no-redo", action="store_true", help="without torch's own reruns")
    arguments = parser.parse_args()
    from tests.compare import torch_side

    chosen = [
        fault for fault in FAULTS if any(part in fault.name for part in arguments.only) and arguments.run in fault.run
    ]
    right = 0
    with tempfile.TemporaryDirectory() as folder:
        for fault in chosen:
            path = Path(folder) / f"{fault.run}.trace"
            if not path.exists():
                torch_side.record_run(fault.run, path, 0, STEPS, redo=not arguments.no_redo)
            start = time.perf_counter()
            followed = found(fault, path)
            named = is_named(fault, followed)
            right += all(named)
            missed = [what for what, good in zip(("stage", "parameter", "step"), named, strict=True) if not good]
            mark = f"MISSED {missed}" if missed else "ok  "
            took = f"{time.perf_counter() - start:.0f} s"
            print(f"{mark} {fault.name} ({fault.run}, {fault.flavour}): {followed.verdict} [{took}]", flush=True)
    print(f"{right} of {len(chosen)} are named with stage, parameter and step")
    return 0 if right >= 0.9 * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())

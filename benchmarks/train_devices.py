"""`python -m train` on one device, on 8 and in 2 processes: how far the losses are apart, the bytes of a step's
collectives, and runs that begin on 8 devices and go on on 2: `python -m benchmarks.train_devices [--steps 100]`.

Devices are virtual ones of a CPU. Bytes are those of whole arrays, counted in the compiled step.
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.zero1 import payloads
from train.config import Config

DEVICES = 8
OPTIMIZER = "--optimizer adamw"
FORMS: dict[str, dict[str, Any]] = {
    "whole": {},
    "--shard-optimizer": {"shard_optimizer": True},
    "--shard-params": {"shard_params": True},
}
BATCH = 16
FIRST = 10  # steps
BF16 = "--precision bf16"
KINDS = (
    "--optimizer adamw --accumulate 3",
    "--optimizer adafactor",
    "--optimizer muon_adamw",
    f"--optimizer adamw {BF16}",
    f"--optimizer muon_adamw {BF16} --accumulate 2 --clip-grad-norm 1 --ema 0.5",
)
SHORT = f"--limit 64 --batch-size {BATCH} --epochs 3 --checkpoint-every 4 --quiet"  # 12 steps


def counted(config: Config) -> dict[str, int]:
    """The bytes of the step's collectives, by kind, as compiled for all devices."""
    from train.checks import batch_shapes
    from train.devices import devices_of
    from train.start import start
    from train.step import make_step
    from train.training import make_training

    training = make_training(config)._replace(devices=devices_of(config))
    assert training.devices is not None
    state = training.devices.place(start(config, training, 10))
    step: Any = make_step(training)
    hlo = step.lower(state, *batch_shapes(config.batch_size, training.devices)).compile().as_text()
    found = Counter[str]()
    for kind, size in payloads(hlo, training.devices.mesh.size):
        found[kind] += size
    return dict(found)


def wanted(config: Config, devices: int) -> dict[str, int]:
    """What they must be: every gradient summed over the devices once, and every divided parameter gathered once.

    Beside that the metrics, and what the recorded norms of divided parameters need.
    """
    import jax

    from train.start import start
    from train.training import make_training

    params = jax.eval_shape(lambda: start(config, make_training(config), 10)).params
    shards = config.shard_optimizer or config.shard_params
    total: Counter[str] = Counter({"all-reduce": 8})  # the loss and how many are right
    for leaf in jax.tree.leaves(params):
        divided = [axis for axis, size in enumerate(leaf.shape) if size % devices == 0] if shards else []
        total.update(dict.fromkeys(["reduce-scatter", "all-gather"] if divided else ["all-reduce"], 4 * leaf.size))
        if divided and config.shard_params:
            axis = max(divided, key=lambda axis: leaf.shape[axis])
            # the squares of each column, in float64
            total["all-gather" if axis == leaf.ndim - 1 else "all-reduce"] += 8 * leaf.shape[-1]
    return dict(total)


def losses(flags: str, folder: Path, devices: int, processes: int = 1) -> np.ndarray:
    """Those of the steps of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "train", *flags.split(), "--quiet", "--run-dir", str(folder)]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
    }
    together = [f"--coordinator=127.0.0.1:{port}", f"--num-processes={processes}"] if processes > 1 else []
    running = [
        subprocess.Popen(
            [*command, *together, *([f"--process-id={number}"] if together else [])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]
    for process in running:
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(output)
    return recorded(folder)


def recorded(folder: Path) -> np.ndarray:
    """The losses of the steps of a run."""
    with (folder / "steps.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def here(devices: int, argv: str, folder: Path) -> np.ndarray:
    """The losses of the steps of a run on so many of this process's devices."""
    from jax import devices as all_of_them

    from train import run
    from train.__main__ import main
    from train.devices import devices_of

    def some_of(config: Config) -> Any:
        return devices_of(config, all_of_them()[:devices])

    with mock.patch.object(run, "devices_of", some_of), contextlib.redirect_stdout(io.StringIO()):
        if status := main(argv.split()):
            raise RuntimeError(f"{argv}: status {status}")
    return recorded(folder)


def gone_on(kind: str, folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """How far the losses of each form are from one device's, as a part of them: on 8 devices, and from the last
    checkpoint but one on on 2."""
    one = here(1, f"{SHORT} {kind} --run-dir {folder}/one", folder / "one")
    if BF16 in kind:
        float32 = here(1, f"{SHORT} {kind.replace(BF16, '')} --run-dir {folder}/float32", folder / "float32")
        yield "one device, float32", np.abs(float32 / one - 1), np.full(1, np.nan)
    for name in FORMS:
        place = folder / name.strip("-")
        form = "" if name == "whole" else name
        eight = here(DEVICES, f"{SHORT} {kind} {form} --run-dir {place}", place)
        newest = max((place / "checkpoints").iterdir())
        shutil.rmtree(newest)
        first = int(max((place / "checkpoints").iterdir()).name)
        two = here(2, f"--resume {place}", place)
        yield name, np.abs(eight / one - 1), np.abs(two / one - 1)[first:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    arguments = parser.parse_args()
    if arguments.here:
        for name, flags in FORMS.items():
            config = dataclasses.replace(Config(), optimizer="adamw", batch_size=BATCH, **flags)
            found, must = counted(config), wanted(config, DEVICES)
            for kind in sorted(found.keys() | must.keys()):
                print(f"| {name} | {kind} | {found.get(kind, 0):,} | {must.get(kind, 0):,} |", flush=True)
        print(f"\n{SHORT}: the same, on {DEVICES} devices, and from the last checkpoint but one on on 2\n")
        print("| | | first 4 steps | all | on 2 |\n|---|---|---|---|---|", flush=True)
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                for name, eight, two in gone_on(kind, Path(folder)):
                    print(
                        f"| {kind} | {name} | {eight[:4].max():.1e} | {eight.max():.1e} | {two.max():.1e} |", flush=True
                    )
        return
    print(f"| {DEVICES} devices | collective | bytes a step | must be |\n|---|---|---|---|", flush=True)
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-m", "benchmarks.train_devices", "--here"], env=environment, check=True)
    flags = f"{OPTIMIZER} --batch-size {BATCH} --steps {arguments.steps} --epochs {arguments.steps}"
    print(f"\n{flags}: how far a loss is from one device's, as a part of it, at most\n")
    print(f"| processes x devices | | first {FIRST} steps | all |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        one = losses(flags, Path(folder) / "one", 1)
        for number, (name, processes) in enumerate([*((form, 1) for form in FORMS), ("whole", 2)]):
            form = "" if name == "whole" else name
            found = losses(f"{flags} {form}", Path(folder) / str(number), DEVICES, processes)
            apart = np.abs(found - one) / one
            cells = f"{processes} x {DEVICES // processes}", name, f"{apart[:FIRST].max():.1e}", f"{apart.max():.1e}"
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

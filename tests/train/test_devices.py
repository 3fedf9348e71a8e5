"""Several devices and several processes: the numbers of one device, and what happens when a process is lost."""

import csv
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

from tests.helpers import run_in_process
from train import checks, loop, run
from train.__main__ import main
from train.command_line import parse
from train.config import Config
from train.devices import AXIS, Devices
from train.errors import UsageError
from train.loop import Moment
from train.processes import LOST
from train.step import Step, batch_loss, make_step
from train.training import Training, make_training

FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="  # the former compiles faster
ROOT = Path(__file__).parents[2]
APART = 4.3e-5  # of a loss, after 100 steps: docs/many-devices.md


def on_8_devices() -> None:
    """Every form takes the steps of one device, and has the collectives that it must have."""
    from benchmarks.train_devices import BATCH, FORMS, counted, wanted
    from train import data
    from train.data import Data
    from train.devices import devices_of
    from train.start import start

    some = data.load("digits", "test").first(2 * BATCH + 1)  # the last batch is not divided by 8 devices
    config = Config(
        optimizer="adamw", batch_size=BATCH, epochs=2, clip_grad_norm=1.0, ema=0.5, augment=True, evaluate=True
    )

    def epochs(config: Config, several: bool) -> list[Any]:
        training = make_training(config)._replace(devices=devices_of(config) if several else None)
        state = start(config, training, 10)
        state = state if training.devices is None else training.devices.place(state)
        found = []
        for moment in loop.fit(config, training, Moment(state), Data(some, some, 10, "")):
            found += [] if moment.ended is None else [moment.ended]
            parts = {x.addressable_shards[0].data.size / x.size for x in jax.tree.leaves(moment.state.params)}
            assert (1 / 8 in parts) == (several and config.shard_params)
            (slots,) = moment.state.opt_state.slots.exp_avg["Dense_0"]["kernel"].addressable_shards[:1]
            divided = several and (config.shard_params or config.shard_optimizer)
            assert slots.data.size * (8 if divided else 1) == 1024 * 64
        return found

    one = epochs(config, several=False)
    for flags in FORMS.values():
        form = dataclasses.replace(config, **flags)
        for epoch, expected in zip(epochs(form, several=True), one, strict=True):
            np.testing.assert_allclose(epoch.losses, expected.losses, rtol=APART)
            np.testing.assert_array_equal(epoch.correct, expected.correct)
            np.testing.assert_array_equal(epoch.lr, expected.lr)
            np.testing.assert_allclose(epoch.test, expected.test, rtol=APART)
            np.testing.assert_allclose(epoch.ema_test, expected.ema_test, rtol=APART)
        plain = dataclasses.replace(Config(optimizer="adamw", batch_size=BATCH), **flags)
        assert counted(plain) == wanted(plain, 8)
    loop.scans = lambda: True
    (scanned, *_) = epochs(dataclasses.replace(config, epochs=1), several=True)
    np.testing.assert_allclose(scanned.losses, one[0].losses, rtol=APART)


def test_8_devices_take_the_steps_of_one() -> None:
    run_in_process(on_8_devices, f"{FLAGS}8")


class Process:
    """`python -m train` with so many virtual devices."""

    def __init__(self, devices: int, *argv: object):
        environment = {**os.environ, "XLA_FLAGS": f"{FLAGS}{devices}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "train", *map(str, argv)],
            env={**environment, "JAX_PLATFORMS": "cpu"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ends(self, status: int, timeout: float | None = None) -> tuple[str, str]:
        outputs = self.process.communicate(timeout=timeout)
        assert self.process.returncode == status, outputs
        return outputs


def pair(*argv: object, second: Sequence[object] = ()) -> list[Process]:
    """Two processes of one run, of a device each; the second can have flags of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    coordinator = "--coordinator", f"127.0.0.1:{port}", "--num-processes", 2
    return [Process(1, *argv, *coordinator, "--process-id", number, *(second if number else ())) for number in range(2)]


def steps(folder: Path) -> list[list[str]]:
    return list(csv.reader((folder / "steps.csv").read_text().splitlines()))[1:]


def wait_for_more(folder: Path, processes: list[Process]) -> None:
    """Until another epoch is recorded, and there is a checkpoint of it."""
    before = len(steps(folder)) if (folder / "steps.csv").exists() else 0
    newest = max(folder.glob("checkpoints/0*"), default=folder)
    while (
        not (folder / "steps.csv").exists()
        or len(steps(folder)) <= before + 3
        or newest == max(folder.glob("checkpoints/0*"), default=folder)
    ):
        for one in processes:
            assert one.process.poll() is None, one.process.communicate()
        time.sleep(0.02)


def on_one_device(folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The steps of a run that goes on from a copy of a folder, here."""
    fit = loop.fit

    def some(*args: Any) -> Iterator[Moment]:
        for moment in fit(*args):
            yield moment
            if moment.ended is not None and moment.step >= first + count:
                return

    first = int(max(folder.glob("checkpoints/0*")).name)
    with monkeypatch.context() as patch:
        patch.setattr(run, "fit", some)
        patch.setattr(sys, "argv", ["train", "--resume", str(folder)])
        assert main() == 0
    return [row for row in steps(folder) if int(row[1]) > first]


def made_once() -> Callable[[Training], Step]:
    """`make_step` for trainings that are all the same, whose step is compiled once."""
    made: list[Step] = []

    def step(training: Training) -> Step:
        if not made:
            made.append(make_step(training))
        return made[0]

    return step


def test_two_processes_one_killed_then_one_then_two_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, copies = tmp_path / "run", [tmp_path / "first", tmp_path / "second"]
    flags = "--limit 45 --epochs 5000 --batch-size 20 --optimizer adamw --shard-optimizer --quiet"
    around = "--scheduler step_lr --scheduler-option step_size=1 --scheduler-option gamma=0.99 --ema 0.5"
    both = pair(*flags.split(), *around.split(), "--run-dir", folder, "--export-torch", tmp_path / "run.pt")
    wait_for_more(folder, both)
    both[1].process.kill()
    _, errors = both[0].ends(LOST, timeout=30)
    assert "another process of this run is lost" in errors
    both[1].process.communicate()

    shutil.copytree(folder, copies[0])
    alone = Process(1, "--resume", folder)
    wait_for_more(folder, [alone])
    alone.process.send_signal(signal.SIGTERM)
    _, errors = alone.ends(143)
    assert "processes 2 when it began, 1 now" in errors
    assert "devices 2 when it began, 1 now" in errors

    shutil.copytree(folder, copies[1])
    both = pair("--resume", folder)
    wait_for_more(folder, both)
    both[1].process.send_signal(signal.SIGTERM)
    _, errors = both[0].ends(143)
    assert "stopped by SIGTERM" in errors
    assert both[1].ends(143)[0].count("epoch") == 0

    recorded = {row[1]: row for row in steps(folder)}
    monkeypatch.setattr(loop, "make_step", made_once())
    for copy in copies:
        for row in on_one_device(copy, 3, monkeypatch):
            np.testing.assert_allclose(float(row[2]), float(recorded[row[1]][2]), rtol=APART)
            assert row[3:] == recorded[row[1]][3:]
    capfd.readouterr()


def test_a_fault_of_one_process_ends_the_other(tmp_path: Path) -> None:
    both = pair("--limit", 8, "--batch-size", 4, "--run-dir", tmp_path / "run", second=["--lr", 0.1])
    _, errors = both[1].ends(2)
    assert "--process-id 1: has other flags or pictures than process 0; give all the same" in errors
    both[0].ends(LOST, timeout=30)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--coordinator here", "--coordinator here: is not HOST:PORT, such as 10.0.0.1:1234, or auto"),
        ("--coordinator host:99999", "is not HOST:PORT"),
        ("--coordinator host:1234", "write --num-processes N and --process-id 0 to N - 1 with it"),
        ("--coordinator host:1 --num-processes 2 --process-id 2", "--process-id 2: must be 0 to 1"),
        ("--coordinator host:1 --num-processes 0 --process-id 0", "--num-processes 0: must be at least 1"),
        ("--num-processes 2", "--num-processes 2: is for a --coordinator HOST:PORT; leave it out"),
        ("--coordinator auto --process-id 0", "--process-id 0: is for a --coordinator HOST:PORT, auto knows it"),
    ],
)
def test_what_starts_no_processes_is_said(flags: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(flags.split())


def test_what_devices_cannot_do_is_said() -> None:
    devices = Devices(AbstractMesh((8,), (AXIS,)))  # pyright: ignore[reportArgumentType]
    config = Config(batch_size=12)
    training = make_training(config)._replace(devices=devices)
    with pytest.raises(UsageError, match="--batch-size 12: the 8 devices do not divide it; write --batch-size 16"):
        checks.check_devices(config, training)
    with pytest.raises(UsageError, match="--shard-optimizer: lbfgs keeps vectors over all parameters"):
        make_training(Config(optimizer="lbfgs", shard_optimizer=True))


def test_bf16() -> None:
    """All products are of bfloat16, what goes in and comes out is float32, and the loss is that of float32 nearly."""
    from train import data
    from train.start import start

    config = Config(precision="bf16")
    training, some = make_training(config), data.load("digits", "test").first(20)
    params = start(config, training, 10).params

    def gradient(dtype: Any) -> Callable[..., Any]:
        return jax.value_and_grad(lambda params: batch_loss(params, *some, dtype=dtype)[0])

    products = [
        eqn
        for eqn in jax.make_jaxpr(gradient(training.dtype))(params).eqns
        if eqn.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert len(products) >= 10
    assert {v.aval.dtype for eqn in products for v in eqn.invars} == {jnp.dtype(jnp.bfloat16)}
    (loss, grads), (expected, wanted) = (jax.jit(gradient(dtype))(params) for dtype in (training.dtype, None))
    assert loss.dtype == jnp.float32
    assert loss != expected
    np.testing.assert_allclose(loss, expected, rtol=2e-3)
    assert {grad.dtype for grad in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}
    # 2^-8 for each of ten products would be 0.04; a rounding also lets another of two near numbers win a max pooling.
    apart = jax.tree.map(jnp.subtract, grads, wanted)
    assert optax.tree.norm(apart) <= 0.05 * optax.tree.norm(wanted)

"""Processes in step: the first trains, records and saves, the others train beside it and write nothing."""

import hashlib
import json
from pathlib import Path
from signal import Signals
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.checkpoint import is_due, name_of, read
from train.config import Config
from train.data import Data
from train.devices import Devices, on_host
from train.errors import UsageError, one_line
from train.loop import Moment, fit
from train.step import State
from train.stopping import Stopping
from train.training import Training

# Settings that need not be the same in all processes.
OWN = (
    *("coordinator", "process_id", "data_dir", "archive", "resume", "resume_torch", "export_torch", "run_dir"),
    *("tensorboard", "quiet"),
)
NONE = -1


class Wishes(NamedTuple):
    """What is to be done after a step."""

    stop: bool
    save: bool


class Agreement:
    """What any of the processes wants, for all of them after the same step; that is one later, so that nobody waits.

    Args:
      devices: of all processes; None where there is one.
    """

    def __init__(self, devices: Devices | None):
        self._devices = devices if jax.process_count() > 1 else None
        self._most = jax.jit(lambda wishes: wishes.max(axis=0), out_shardings=devices and devices.everywhere)
        self._before: jax.Array | None = None

    def __call__(self, stopping: Stopping, save: bool) -> Wishes:
        if self._devices is None:
            return Wishes(stopping.asked is not None, save)
        mine = np.array([[stopping.asked or 0, save]], np.int32)
        rows = np.zeros(self._devices.mesh.size, np.intp)
        before, self._before = self._before, self._most(self._devices.batch(mine, rows))
        if before is None:
            return Wishes(False, False)
        signal, saves = map(int, np.asarray(before))
        if signal:
            stopping.asked = Signals(signal)
        return Wishes(signal > 0, saves > 0)


def check_same(config: Config, digest: str) -> None:
    """Raise a UsageError in a process with other flags or pictures than the first."""
    settings = {name: value for name, value in config.to_json().items() if name not in OWN}
    given = {"resume": config.resume is None, "export_torch": config.export_torch is None}
    text = json.dumps([settings, given, digest], sort_keys=True)
    mine = int(hashlib.sha256(text.encode()).hexdigest()[:7], 16)
    if from_first(mine) != mine:
        raise UsageError(
            f"--process-id {jax.process_index()}: has other flags or pictures than process 0; give all the same"
        )


def from_first(number: int) -> int:
    """The number that the first process has, for all of them."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def follow(config: Config, training: Training, examples: Data, stopping: Stopping, moment: Moment) -> int:
    """Train beside the first process, and hand it its parts of what that writes.

    Returns:
      The exit status.
    """
    agree = Agreement(training.devices)
    for moment in fit(config, training, moment, examples):  # noqa: B020
        finite = moment.ended is None or moment.ended.finite
        if moment.ended is not None and finite and config.export_torch is not None:
            on_host(moment.state)
        wishes = agree(stopping, False)
        if finite and (wishes.stop or wishes.save or is_due(config, moment)):
            moment.steps.read()
            on_host(moment.state)
        if wishes.stop:
            break
    return 1 if moment.ended is not None and not moment.ended.finite else stopping.status


def at_checkpoint(run: Path, step: int, like: State) -> Moment:
    """Where the first process has found that the run goes on."""
    path = run / "checkpoints" / name_of(step)
    try:
        return read(path, like)[0]
    except Exception as error:  # Orbax raises many kinds
        raise UsageError(
            f"--resume {run}: process {jax.process_index()} cannot read {path} ({one_line(error)}); all processes have "
            "to see the folder"
        ) from error


def end() -> None:
    """Wait for all processes: the first has the most to do at the end."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("end")

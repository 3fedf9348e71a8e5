"""Checkpoints of a run: written by Orbax in the background, with a checksum of every byte, verified before they are
restored. RUN/checkpoints/00001234 is what the run needs to go on after 1,234 steps.
"""

import json
import logging
import os
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.scalars import float64
from train import manifest, output
from train.config import Config
from train.devices import on_host
from train.epoch import Columns, Steps
from train.errors import UsageError, one_line
from train.loop import Moment
from train.run_folder import Marks, RunFolder, set_aside
from train.step import State

KEPT = 2  # the newest; and the best, by the loss of the epoch that it ends: on the test split where there is one
WRITING = ".writing"
OVERHEAD = 2**18  # bytes that a checkpoint needs beside its arrays


class Checkpoints:
    """The checkpoints of a run.

    Args:
      config: says how often.
      folder: the run's.
    """

    def __init__(self, config: Config, folder: RunFolder):
        self.config, self.folder = config, folder
        self.path = folder.path / "checkpoints"
        self.failed = False  # the last one that was asked for
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._last, self._at = time.monotonic(), -1
        for left in self.path.glob(f"*{WRITING}"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    @property
    def damaged(self) -> bool:
        """Whether one was set aside."""
        return any(self.path.glob("damaged-*"))

    def overdue(self) -> bool:
        """Whether the last one is so long ago that it is time for one."""
        minutes = self.config.checkpoint_minutes
        return minutes is not None and time.monotonic() - self._last > 60 * minutes

    def save(self, moment: Moment) -> None:
        """Write one in the background. What went wrong with it is said, and ends nothing.

        A state that is not finite is no checkpoint.
        """
        moment.steps.read()
        self.wait()
        state = on_host(moment.state)  # the arrays themselves are donated to the next step
        marks = self.folder.marks()
        if marks is None or moment.step == self._at or not moment.steps.finite:
            self.failed = marks is None
            return
        if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
            self._last, self._at = time.monotonic(), moment.step
            position = _position(moment, self.folder.settings.id, marks)
            self._pending = self._thread.submit(self._write, state, position, moment.steps.columns())

    def wait(self) -> None:
        """Wait for the one that is being written."""
        if self._pending is None:
            return
        try:
            self._pending.result()
            self.failed = False
        except Exception as error:  # OSError, and what Orbax and TensorStore make of one
            self.failed, at, self._at = True, self._at, -1
            output.complain(f"{self.path}: no checkpoint was written after step {at:,} ({one_line(error)})")
        self._pending = None

    @property
    def newest(self) -> Path | None:
        """The last one that is whole."""
        self.wait()
        return next(reversed(self._all()), None)

    def restore(self, like: State) -> tuple[Moment, Marks] | None:
        """The newest that is whole, and how far the records went then; None where none is.

        One that is damaged, or another run's, is set aside with a message.

        Args:
          like: the first state, or its shapes.

        Raises:
          UsageError: one is whole, and is not what this program writes. It stays where it is.
        """
        for path in reversed(self._all()):
            try:
                manifest.verify(path)
                position = json.loads((path / "position.json").read_bytes())
                if position["run"] != self.folder.settings.id:
                    raise manifest.Damaged("it is another run's")
            except Exception as error:  # whatever is not as it was
                aside = set_aside(path)
                output.complain(
                    f"checkpoint {path}: {one_line(error)}; set aside as {aside.name}, the one before is used"
                )
                continue
            try:
                moment, marks = read(path, like)
            except Exception as error:  # Orbax raises many kinds
                raise UsageError(
                    f"--resume {self.folder.path}: checkpoint {path.name} is whole, but cannot be restored here "
                    f"({one_line(error)}); go on with the versions in the run's config.json"
                ) from error
            self._at = moment.step
            return moment, marks
        return None

    def _all(self) -> list[Path]:
        """By their steps, which may have more than eight digits."""
        paths = [path for path in self.path.glob("*") if path.name.isdecimal()]
        return sorted(paths, key=lambda path: int(path.name))

    def _write(self, state: State, position: dict[str, Any], columns: Columns | None) -> None:
        target = self.path / name_of(position["step"])
        scratch = target.with_suffix(WRITING)
        try:
            scratch.mkdir(parents=True)
            _make_room(scratch / "room", sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + OVERHEAD)
            with _checkpointer() as checkpointer:
                checkpointer.save(scratch.absolute() / "state", state)
            if columns is not None:
                np.savez(scratch / "steps.npz", **columns._asdict())
            (scratch / "position.json").write_text(json.dumps(position) + "\n")
            manifest.write(scratch)
            if target.exists():
                set_aside(target)
            scratch.rename(target)
            manifest.sync(self.path)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        self._prune()

    def _prune(self) -> None:
        paths = self._all()
        kept = {*paths[-KEPT:], *sorted(paths, key=_loss)[:1]}
        for path in set(paths) - kept:
            shutil.rmtree(path, ignore_errors=True)


def _make_room(file: Path, size: int) -> None:
    """Raise an OSError where there is no room for so many bytes: Orbax would print a traceback from each thread."""
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with file.open("wb") as room:
            os.posix_fallocate(room.fileno(), 0, size)
        file.unlink()


def _position(moment: Moment, run: str, marks: Marks) -> dict[str, Any]:
    epoch = moment.ended
    return {
        "run": run,
        "epoch": moment.number,
        "step": moment.step,
        "seconds": moment.seconds,
        "loss": None if epoch is None else epoch.loss if epoch.test is None else epoch.test[0],
        "records": marks,
    }


def name_of(step: int) -> str:
    """The folder of a checkpoint after so many steps."""
    return f"{step:08d}"


def is_due(config: Config, moment: Moment) -> bool:
    """Whether it is time for a checkpoint, by the steps."""
    every = config.checkpoint_every
    return moment.ended is not None or (every is not None and moment.step % every == 0)


def read(path: Path, like: State) -> tuple[Moment, Marks]:
    """What a checkpoint holds; `Checkpoints.restore` has to have looked at it."""
    position = json.loads((path / "position.json").read_bytes())
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
    with _checkpointer() as checkpointer:
        state = checkpointer.restore(path.absolute() / "state", shapes)
    for (where, leaf), wanted in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(shapes), strict=True):
        if leaf.shape != wanted.shape or leaf.dtype != wanted.dtype:
            raise manifest.Damaged(f"its {jax.tree_util.keystr(where)} is {leaf.dtype}{list(leaf.shape)}")
    with float64():
        state = jax.tree.map(jnp.array, state)
    columns = None
    if (path / "steps.npz").exists():
        with np.load(path / "steps.npz") as arrays:
            columns = Columns(**arrays)
    moment = Moment(state, position["epoch"], position["step"], Steps(columns), position["seconds"])
    return moment, {name: (size, digest) for name, (size, digest) in position["records"].items()}


def _loss(path: Path) -> float:
    try:
        loss = json.loads((path / "position.json").read_bytes())["loss"]
    except (OSError, ValueError, LookupError, TypeError):
        return float("inf")
    return float("inf") if loss is None else loss


def _checkpointer() -> Any:
    import orbax.checkpoint  # takes a third of a second

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what it logs as an error it raises too
    here = jax.process_index()  # by itself: the others do not write, and read by themselves
    alone = orbax.checkpoint.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process-{here}"
    )
    return orbax.checkpoint.StandardCheckpointer(multiprocessing_options=alone)

"""The run folder: config.json, metrics.jsonl with a line an epoch, steps.csv with a line a step.

One process has it at a time. What cannot be written is said and kept, and written when it can be.
"""

import csv
import fcntl
import hashlib
import io
import json
import math
import os
import platform
import secrets
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxopt_port
from train import output, run_settings
from train.config import Config
from train.epoch import Epoch
from train.errors import UsageError
from train.run_settings import RunSettings

FILES = ("metrics.jsonl", "steps.csv")
Marks = dict[str, tuple[int, str]]  # of each file its bytes, and their SHA-256


class RunFolder:
    """Where a run is recorded.

    Args:
      path: the folder.
      settings: what is in its config.json.
      lock: the open config.json, which this process alone has.
    """

    def __init__(self, path: Path, settings: RunSettings, lock: io.BufferedRandom):
        self.path, self.settings, self._lock = path, settings, lock
        self._files = {name: _Appended(path / name) for name in FILES}

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        """Others may have it."""
        self._lock.close()

    def add(self, epoch: Epoch) -> None:
        """Record an epoch."""
        self._append("metrics.jsonl", json.dumps(record(epoch)) + "\n")
        self._append("steps.csv", ("" if self._files["steps.csv"].size else _header(epoch)) + _rows(epoch))

    def _append(self, name: str, text: str) -> None:
        try:
            self._files[name].append(text.encode())
        except OSError as error:
            output.complain(f"{self.path / name}: cannot be written ({error}); tried again after the next epoch")

    def marks(self) -> Marks | None:
        """How far the records go; None where some of them could not be written yet."""
        try:
            for file in self._files.values():
                file.append(b"")
        except OSError:
            return None
        return {name: (file.size, file.digest.hexdigest()) for name, file in self._files.items()}

    @property
    def whole(self) -> bool:
        """Whether all records are written."""
        return self.marks() is not None

    def rewind(self, marks: Marks) -> list[Epoch]:
        """Leave in the records what was there at a checkpoint, and read it.

        A file that is not as it was is set aside, and its records are lost.
        """
        for name, (size, digest) in marks.items():
            try:
                self._files[name].rewind(size, digest)
            except (OSError, ValueError) as error:
                aside = set_aside(self.path / name)
                output.complain(f"{self.path / name}: is not as the run left it ({error}); set aside as {aside}")
        try:
            return read(self.path)
        except (OSError, ValueError, LookupError) as error:
            output.complain(f"{self.path}: the steps so far cannot be drawn ({error!r})")
            return []


class _Appended:
    """A file that grows by whole pieces: one that was written in part is written again."""

    def __init__(self, path: Path):
        self.path, self.size, self.digest, self._waiting = path, 0, hashlib.sha256(), b""

    def append(self, piece: bytes) -> None:
        self._waiting += piece
        if not self._waiting:
            return
        with self.path.open("r+b" if self.path.exists() else "xb") as file:
            file.truncate(self.size)
            file.seek(self.size)
            file.write(self._waiting)
            file.flush()
            os.fsync(file.fileno())
        self.size += len(self._waiting)
        self.digest.update(self._waiting)
        self._waiting = b""

    def rewind(self, size: int, digest: str) -> None:
        if not size:
            self.path.unlink(missing_ok=True)
            return
        with self.path.open("r+b") as file:
            head = hashlib.sha256(file.read(size))
            if head.hexdigest() != digest:
                raise ValueError("its first bytes are others")
            file.truncate(size)
        self.size, self.digest = size, head


def create(config: Config, data: str) -> RunFolder:
    """Make the run folder, which must not hold a run yet, with config.json in it.

    Args:
      config: the run's.
      data: the digest of its pictures.
    """
    settings = RunSettings(config, secrets.token_hex(8), needs(data))
    path = config.run_dir or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.recipe}"
    number, first = 1, path
    while True:
        try:
            path.mkdir(parents=True, exist_ok=config.run_dir is not None)
            scratch = path / f"{run_settings.SCRATCH}{settings.id}"
            lock = scratch.open("x+b")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.write(settings.to_bytes())
            lock.flush()
            os.fsync(lock.fileno())
            try:
                os.link(scratch, path / run_settings.FILE)  # whole or not at all, and by one of two runs
            finally:
                scratch.unlink()
            return RunFolder(path, settings, lock)
        except FileExistsError as error:
            if config.run_dir is not None:
                raise UsageError(f"--run-dir {path}: has a run in it, or is no directory; give another") from error
            number += 1  # a run of the same second has it
            path = first.with_name(f"{first.name}-{number}")
        except OSError as error:
            raise UsageError(f"--run-dir {path}: cannot be written ({error}); give another") from error


def reopen(path: Path) -> RunFolder:
    """The folder of a run that goes on.

    Raises:
      UsageError: another process has it, or it cannot be written.
    """
    try:
        lock = (path / run_settings.FILE).open("r+b")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"--resume {path}: the run is still going on in another process") from error
    except OSError as error:
        raise UsageError(f"--resume {path}: cannot be written ({error})") from error
    return RunFolder(path, run_settings.load(path), lock)


def needs(data: str) -> dict[str, Any]:
    """What the bits of a run depend on besides its settings."""
    return {
        "versions": {
            "python": platform.python_version(),
            "jaxopt_port": jaxopt_port.__version__,  # which need not be installed
            **{name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
        },
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),  # macOS has none
        "data": data,
    }


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was, in words. Other data are an error elsewhere."""

    def flat(needs: dict[str, Any]) -> dict[str, Any]:
        return {**needs.get("versions", {}), **{k: v for k, v in needs.items() if k not in ("versions", "data")}}

    before, after = flat(was), flat(now)
    return [
        f"{name} {before.get(name)} when it began, {after[name]} now"
        for name in after
        if before.get(name) != after[name]
    ]


def set_aside(path: Path) -> Path:
    """Rename what is damaged. Returns its new path."""
    number, aside = 1, path.with_name(f"damaged-{path.name}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"damaged-{path.name}-{number}")
    if path.exists():
        path.rename(aside)
    return aside


def record(epoch: Epoch) -> dict[str, Any]:
    """What metrics.jsonl has of an epoch; a number that is not finite is null, the learning rates are of its last step,
    one for each group."""
    numbers = {
        "running_loss": epoch.running_loss,
        "loss": epoch.loss,
        "accuracy": epoch.accuracy,
        **_test("test", epoch.test),
        **_test("ema_test", epoch.ema_test),
        "images_per_second": epoch.images_per_second,
    }
    finite = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
    return {"epoch": epoch.number, "step": epoch.step, **finite, "lr": epoch.lr[-1].tolist()}


def _test(name: str, test: tuple[float, float] | None) -> dict[str, float]:
    return {} if test is None else {f"{name}_loss": test[0], f"{name}_accuracy": test[1]}


def _header(epoch: Epoch) -> str:
    groups = range(epoch.lr.shape[1])
    return ",".join(["epoch", "step", "loss", "correct", "examples", *(f"lr_{group}" for group in groups)]) + "\n"


def _rows(epoch: Epoch) -> str:
    columns = zip(
        epoch.losses.tolist(), epoch.correct.tolist(), epoch.examples.tolist(), epoch.lr.tolist(), strict=True
    )
    first = epoch.step - len(epoch.losses) + 1
    return "".join(
        ",".join(map(repr, [epoch.number, step, loss, correct, examples, *lr])) + "\n"
        for step, (loss, correct, examples, lr) in enumerate(columns, start=first)
    )


def read(path: Path) -> list[Epoch]:
    """The epochs that a run has recorded.

    Raises:
      OSError, ValueError, LookupError: its files cannot be read.
    """
    if not (path / "steps.csv").exists():
        return []
    _, *rows = csv.reader((path / "steps.csv").read_text().splitlines())
    table = np.array(rows, np.float64)
    epochs = []
    for line in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()):
        steps = table[table[:, 0] == line["epoch"]]
        if not len(steps):
            break  # the run is just writing them
        tests = {
            name: (line[f"{name}_loss"], line[f"{name}_accuracy"])
            for name in ("test", "ema_test")
            if f"{name}_loss" in line
        }
        seconds = steps[:, 4].sum() / line["images_per_second"]
        epochs.append(Epoch(line["epoch"], line["step"], *steps[:, 2:5].T, seconds=seconds, lr=steps[:, 5:], **tests))
    return epochs

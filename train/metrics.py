"""The run folder: config.json, and metrics.jsonl with a line an epoch; and the lines that a run prints."""

import dataclasses
import json
import math
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import jaxopt_port
from train.config import Config
from train.epoch import Epoch
from train.errors import UsageError


def create_folder(config: Config) -> Path:
    """Make the run folder, which must not hold a run yet, with config.json in it."""
    folder = config.run_dir or _unused(Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.recipe}")
    content = {
        **dataclasses.asdict(config),
        "versions": {
            "python": platform.python_version(),
            "jaxopt_port": jaxopt_port.__version__,  # also of a checkout that is not installed
            **{name: version(name) for name in ("jax", "flax", "numpy")},
        },
        "device": jax.devices()[0].device_kind,
    }
    try:
        folder.mkdir(parents=True, exist_ok=config.run_dir is not None)
        (folder / "config.json").write_text(json.dumps(content, indent=2, default=str) + "\n")
    except OSError as error:
        raise UsageError(f"--run-dir {folder}: cannot be written ({error}); give another") from error
    return folder


def append(folder: Path, epoch: Epoch) -> None:
    """Add an epoch's line to metrics.jsonl. A number that is not finite is null."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record(epoch)) + "\n")


def record(epoch: Epoch) -> dict[str, Any]:
    """What metrics.jsonl has of an epoch; the learning rates are those of its last step, one for each group."""
    numbers = {
        "running_loss": epoch.running_loss,
        "loss": epoch.running_loss / len(epoch.losses),
        "accuracy": epoch.accuracy,
        **_test("test", epoch.test),
        **_test("ema_test", epoch.ema_test),
        "images_per_second": epoch.images_per_second,
    }
    finite = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
    return {"epoch": epoch.number, "step": epoch.step, **finite, "lr": epoch.lr[-1].tolist()}


def _test(name: str, test: tuple[float, float] | None) -> dict[str, float]:
    return {} if test is None else {f"{name}_loss": test[0], f"{name}_accuracy": test[1]}


def header(config: Config) -> str:
    """What is printed above the epochs' lines."""
    text = f"{'epoch':>5} {'steps':>9} {'running loss':>14} {'accuracy':>9} {'images/s':>9}"
    test = f" {'test loss':>10} {'test accuracy':>14}" if config.evaluates else ""
    return text + test + (f" {'EMA loss':>10} {'EMA accuracy':>14}" if config.ema is not None else "")


def line(epoch: Epoch) -> str:
    """What is printed of an epoch."""
    text = (
        f"{epoch.number:>5} {epoch.step:>9,} {epoch.running_loss:>14,.4f} "
        f"{epoch.accuracy:>9.2%} {epoch.images_per_second:>9,.0f}"
    )
    tests = (test for test in (epoch.test, epoch.ema_test) if test is not None)
    return text + "".join(f" {loss:>10.4f} {accuracy:>14.2%}" for loss, accuracy in tests)


def _unused(folder: Path) -> Path:
    """The folder, or where a run of the same second has it, the next one."""
    number, path = 1, folder
    while path.exists():
        number += 1
        path = folder.with_name(f"{folder.name}-{number}")
    return path

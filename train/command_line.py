"""The configuration that a command line asks for, checked as far as plain values go: nothing here imports JAX."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from train import run_settings
from train.config import AUTO, LISTS, PATHS, Config, flag
from train.errors import UsageError
from train.recipes import RECIPES, filled_in, open_for_flags

PROGRAM = "python -m train"
DEFAULT = "tutorial"
NARROWEST = 40  # columns; for fewer tyro looks for a layout without end

# What says where things are and how a run is watched, and so may differ in a run that goes on.
PROCESSES = ("coordinator", "num_processes", "process_id")
NOT_THE_RUN = (
    *("resume", "data_dir", "archive", "checkpoint_every", "checkpoint_minutes", "export_torch", "quiet"),
    *("tensorboard", "shard_params", "shard_optimizer", *PROCESSES),
)


def parse(argv: Sequence[str]) -> Config:
    """The configuration that a command line asks for.

    Args:
      argv: a recipe's name (or `--recipe NAME`), or none for the tutorial, and the flags that change it.

    Raises:
      UsageError: it cannot be used.
      SystemExit: it asks for help, or has a flag that there is not.
    """
    recipes = {name: open_for_flags(recipe()) for name, recipe in RECIPES.items()}
    argv = _recipe_first(argv)
    config = _cli(argv, recipes)
    if config.resume is None:
        config = absolute(filled_in(config))
        check(config)
        return config
    run = config.resume.expanduser()
    recorded = run_settings.load(run).config
    recipe = argv[0] if argv and argv[0] in RECIPES else recorded.recipe
    if recipe != recorded.recipe:
        raise UsageError(
            f"--resume {run}: it is a run of the {recorded.recipe} recipe, not of {recipe}; leave that out"
        )
    flags = argv[1:] if argv and argv[0] in RECIPES else argv
    blank = dataclasses.replace(
        recorded, option=(), scheduler_option=(), run_dir=None, quiet=False, **dict.fromkeys(PROCESSES)
    )
    given = absolute(_cli([recipe, *flags], {**recipes, recipe: blank}))
    for name in (field.name for field in dataclasses.fields(Config) if field.name not in NOT_THE_RUN):
        _refuse_another(run, name, getattr(given, name), getattr(recorded, name), getattr(blank, name))
    here = {name: getattr(given, name) for name in NOT_THE_RUN}
    config = dataclasses.replace(recorded, **here, run_dir=recorded.run_dir)
    check(config)
    return dataclasses.replace(config, resume=run)


def _recipe_first(argv: Sequence[str]) -> Sequence[str]:
    """`--recipe NAME`, wherever it stands, is the recipe's name in front."""
    for at, flag_ in enumerate(argv):
        name, rest = flag_.partition("=")[2], argv[at + 1 :]
        if flag_ == "--recipe" and rest:
            name, rest = rest[0], rest[1:]
        if flag_.startswith("--recipe") and flag_ in ("--recipe", f"--recipe={name}"):
            if name not in RECIPES:
                raise UsageError(f"--recipe {name}: there is none of this name, there are {', '.join(RECIPES)}")
            return [name, *argv[:at], *rest]
    return argv


def _cli(argv: Sequence[str], recipes: dict[str, Config]) -> Config:
    if os.environ.get("COLUMNS", "").isdigit() and int(os.environ["COLUMNS"]) < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)
    named = argv if argv and argv[0] in recipes else [DEFAULT, *argv]
    descriptions = {name: RECIPES[name].__doc__ or "" for name in recipes}
    settings = {name: "; ".join(RECIPES[name]().described) for name in recipes}
    others = ", ".join(name for name in recipes if name != DEFAULT)
    return tyro.extras.overridable_config_cli(
        {
            name: (f"{descriptions[name]}\n\n{settings[name]}.\n\nOther recipes: {PROGRAM} {{{others}}} ...", recipe)
            for name, recipe in recipes.items()
        },
        prog=PROGRAM,
        args=named,
    )


def _refuse_another(run: Path, name: str, given: Any, recorded: Any, blank: Any) -> None:
    """A flag that would change a run that goes on."""
    same = set(given) <= set(recorded) if name in LISTS else given in (recorded, blank)
    if not same:
        was = " ".join(recorded) if name in LISTS else recorded
        now = " ".join(given) if name in LISTS else given
        raise UsageError(
            f"{flag(name, now)}: the run in {run} has {'none' if was in (None, '') else was}, and goes on with that; "
            "leave it out, or start another run"
        )


def absolute(config: Config) -> Config:
    """With paths that mean the same in any directory, and ~ what it means to a shell."""
    given = {name: getattr(config, name) for name in PATHS}
    return dataclasses.replace(
        config, **{name: Path(os.path.abspath(path.expanduser())) for name, path in given.items() if path is not None}
    )


def check(config: Config) -> None:
    """Raise a UsageError for plain values that cannot be used."""
    for name in ("limit", "batch_size", "epochs", "steps", "accumulate", "start_epoch", "checkpoint_every"):
        value = getattr(config, name)
        if value is not None and not 1 <= value < 2**31:
            raise UsageError(f"{flag(name, value)}: must be at least 1" + (" and below 2**31" if value > 1 else ""))
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"--seed {config.seed}: must be at least 0 and below 2**32")
    for name in ("lr", "clip_grad_norm", "ema", "checkpoint_minutes"):
        value = getattr(config, name)
        if value is not None and math.isnan(value):
            raise UsageError(f"{flag(name, value)}: is not a number")
    for name in ("clip_grad_norm", "checkpoint_minutes"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UsageError(f"{flag(name, value)}: must be above 0")
    if config.ema is not None and not 0 <= config.ema <= 1:
        raise UsageError(f"--ema {config.ema}: must be in [0, 1]")
    places = {name: getattr(config, name) for name in PATHS} | {"run_dir": config.run_dir or Path.cwd()}
    for name, path in places.items():
        if path is not None and not _is_utf8(path):
            raise UsageError(f"{flag(name, path)}: is not UTF-8, as checkpoints and pictures need it; give another")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", config.dataset):
        raise UsageError(f"--dataset {config.dataset}: is no name of a dataset, such as cifar10")
    if config.archive is not None:
        if config.dataset not in ("cifar10", "cifar100"):
            raise UsageError(f"--archive {config.archive}: is for --dataset cifar10 and cifar100, not {config.dataset}")
        if config.resume is None and not config.archive.is_file():  # a run that goes on has prepared it
            raise UsageError(f"--archive {config.archive}: there is no such file")
    if config.start_epoch is not None and config.start_epoch > config.epochs:
        raise UsageError(f"--start-epoch {config.start_epoch}: the last epoch, --epochs {config.epochs}, is before it")
    if config.start_epoch is not None and config.start_epoch > 1 and config.resume_torch is None:
        raise UsageError(f"--start-epoch {config.start_epoch}: needs a --resume-torch CHECKPOINT to start from")
    _check_processes(config)
    if config.scheduler is None and config.scheduler_interval != RECIPES[config.recipe]().scheduler_interval:
        raise UsageError(f"--scheduler-interval {config.scheduler_interval}: needs a --scheduler")
    if config.export_torch is not None:
        _check_export(config.export_torch)
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UsageError("--tensorboard: needs a package that is not installed: pip install tensorboardX")
    run_dir = config.run_dir
    if config.resume is None and run_dir is not None and run_dir.exists():
        empty = run_dir.is_dir() and os.access(run_dir, os.R_OK)
        if not empty or any(not path.name.startswith(run_settings.SCRATCH) for path in run_dir.iterdir()):
            raise UsageError(f"--run-dir {run_dir}: exists and is not an empty directory; give another")


def _is_utf8(path: Path) -> bool:
    try:
        path.absolute().as_posix().encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_processes(config: Config) -> None:
    """All that starts several processes, or none of it."""
    coordinator, count, number = config.coordinator, config.num_processes, config.process_id
    given = [name for name in PROCESSES[1:] if getattr(config, name) is not None]
    if coordinator in (None, AUTO):
        for name in given:
            remedy = "is for a --coordinator HOST:PORT" + (", auto knows it" if coordinator else "")
            raise UsageError(f"{flag(name, getattr(config, name))}: {remedy}; leave it out")
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 0 < int(port) < 2**16:
        raise UsageError(f"--coordinator {coordinator}: is not HOST:PORT, such as 10.0.0.1:1234, or auto")
    if count is None or number is None:
        raise UsageError(
            f"--coordinator {coordinator}: write --num-processes N and --process-id 0 to N - 1 with it, or "
            "--coordinator auto where a cluster says these"
        )
    if not 1 <= count < 2**31:
        raise UsageError(f"--num-processes {count}: must be at least 1")
    if not 0 <= number < count:
        raise UsageError(f"--process-id {number}: must be 0 to {count - 1}, one less than --num-processes")


def _check_export(out: Path) -> None:
    """A regular file that can be written, or a place where one can be made."""
    real = out.resolve()
    if real.is_dir() or not real.parent.is_dir():
        raise UsageError(f"--export-torch {out}: is a directory, or in one that does not exist")
    if (out.exists() and not out.is_file()) or any(real.is_relative_to(place) for place in ("/proc", "/sys", "/dev")):
        raise UsageError(f"--export-torch {out}: is no place for a regular file; give another")
    if not os.access(real if real.exists() else real.parent, os.W_OK):
        raise UsageError(f"--export-torch {out}: cannot be written; give another")

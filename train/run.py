"""One run, from its configuration to its folder."""

import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from train import data, metrics
from train.config import RECIPES, Config
from train.epoch import Epoch
from train.errors import UsageError
from train.loop import fit
from train.model import init_params
from train.step import State, init, make_step
from train.torch_checkpoint import Checkpoint
from train.training import Training, make_training

INTERRUPTED = 130


def run(config: Config) -> int:
    """Train, record and draw. Returns the exit status: 1 where the loss did not stay finite."""
    examples = data.load(config.dataset, config.split, config.data_dir).first(config.limit)
    test = data.load(config.dataset, "test", config.data_dir) if config.evaluates else None
    training = make_training(config)
    checkpoint = Checkpoint(config, training)
    check(config, training, len(examples.labels), checkpoint.loaded)
    folder = metrics.create_folder(config)

    console = Console(highlight=False, soft_wrap=True)
    console.print(metrics.header(config))
    bar = Progress(
        BarColumn(None),
        MofNCompleteColumn(),
        "steps",
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=config.quiet or not console.is_terminal,
    )
    epochs: list[Epoch] = []
    status = 0
    try:
        with bar:
            task = bar.add_task("", total=_steps(config, len(examples.labels)))
            advance = lambda steps: bar.advance(task, steps)  # noqa: E731
            for epoch, state in fit(config, training, checkpoint.first, examples, test, advance):
                epochs.append(epoch)
                if epoch.finite:
                    checkpoint.save(state)
                metrics.append(folder, epoch)
                console.print(metrics.line(epoch))
    except KeyboardInterrupt:
        status = INTERRUPTED
    if epochs:
        from train import plot  # imports matplotlib, which takes a second

        plot.save(config, epochs, folder / "loss.png")
        if not epochs[-1].finite:
            print(diverged(config, epochs[-1]), file=sys.stderr)
            status = 1
    console.print(f"the run is in {folder}{Path('/')}")
    return status


def check(config: Config, training: Training, examples: int, start: State | None = None) -> None:
    """Raise a UsageError for what the run of so many examples would fail at, before any work is done.

    `start` is the state to go on from, if any."""
    _check_step(config, training)
    _check_total_steps(config, training, examples, start)


def _check_step(config: Config, training: Training) -> None:
    """Trace a step, for an optimizer that does not take these parameters or gradients says so there."""

    def trace(key: Any, images: Any, labels: Any) -> Any:
        return make_step(training)(init(training, init_params(key)), images, labels)

    try:
        jax.eval_shape(trace, jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32))
    except (TypeError, ValueError, RuntimeError) as error:
        message = str(error).splitlines()[0]
        raise UsageError(f"--optimizer {config.optimizer}: {message}") from error


def _check_total_steps(config: Config, training: Training, examples: int, start: State | None) -> None:
    """one_cycle_lr ends, and raises at the step after, or under jit has a rate that is NaN."""
    total = None if training.scheduler is None else training.scheduler.options.get("total_steps")
    if total is None:
        return
    taken = 0 if start is None else int(start.sched["last_epoch"])
    needed = _steps(config, examples) // config.accumulate if training.every_step else _epochs(config)
    if total < taken + needed:
        before = f" after the {taken:,} it has taken" if taken else ""
        raise UsageError(
            f"--scheduler {config.scheduler}: it has {total:,} steps, and the run takes {needed:,}{before}, by the "
            f"--scheduler-interval, {config.scheduler_interval}; write --scheduler-option total_steps={taken + needed}"
        )


def _steps(config: Config, examples: int) -> int:
    """How many steps the run takes."""
    steps = _epochs(config) * math.ceil(examples / config.batch_size)
    return steps if config.steps is None else min(steps, config.steps)


def _epochs(config: Config) -> int:
    return config.epochs - config.start_epoch + 1


def diverged(config: Config, epoch: Epoch) -> str:
    """Where the loss stopped being finite, and what to do."""
    where = f"the loss is {epoch.losses[-1]} at step {epoch.step:,}, step {len(epoch.losses):,} of epoch {epoch.number}"
    recipe = RECIPES[config.recipe]()
    arithmetic = ("optimizer", "lr", "option", "scheduler", "clip_grad_norm", "accumulate")
    same_arithmetic = all(getattr(config, name) == getattr(recipe, name) for name in arithmetic)
    if config.recipe == "tutorial" and same_arithmetic:
        return (
            f"stopped: {where}. PyTorch's run of this tutorial diverges too, since the network has no activations "
            f"and the learning rate is {config.lr}; a lower --lr, or --recipe cifar10, stays finite"
        )
    return f"stopped: {where}; a lower --lr, or --clip-grad-norm, may stay finite"

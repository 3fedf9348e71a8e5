"""What a run would fail at later, found out before any work is done."""

import os
from typing import Any

import jax
import numpy as np

from train.config import Config, flag
from train.devices import Devices
from train.errors import UsageError, one_line
from train.loop import Moment, steps_per_epoch
from train.options import written
from train.start import start
from train.step import make_step
from train.training import Training, optimizer_options, scheduler_options

LARGE_BATCH = 1000  # examples; smaller ones are not looked at
TRIED = 3  # steps of a scheduler


def check_devices(config: Config, training: Training) -> None:
    """Raise a UsageError where the devices do not divide a batch."""
    devices = 1 if training.devices is None else training.devices.mesh.size
    if config.batch_size % devices:
        more = config.batch_size + -config.batch_size % devices
        raise UsageError(
            f"--batch-size {config.batch_size}: the {devices} devices do not divide it; write --batch-size {more}, or "
            "let JAX see fewer of them (CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS)"
        )


def without_effect(config: Config, training: Training, examples: int) -> list[str]:
    """What flags ask for and there is not, a line each."""
    lines = []
    if config.limit is not None and config.limit > examples:
        lines.append(f"--limit {config.limit}: all {examples:,} of {config.dataset} {config.split} are taken")
    for name in ("shard_params", "shard_optimizer"):
        if getattr(config, name) and training.devices is None:
            lines.append(f"{flag(name)}: JAX sees one device, which has all of it")
    return lines


def check_training(config: Config, training: Training, classes: int = 10) -> None:
    """Raise a UsageError where the flags do not go together, whatever the data. Nothing is computed."""
    options = optimizer_options(config)
    optimizer = f"--optimizer {config.optimizer}" + (f" with {written(options)}" if options else "")
    try:
        state = jax.eval_shape(lambda: start(config, training._replace(scheduler=None, every_step=False), classes))
    except Exception as error:  # the options are all that could be wrong with it
        is_muon = config.optimizer == "muon"
        remedy = "Muon only supports 2D parameters, and the network has others; write --optimizer muon_adamw"
        raise UsageError(f"{optimizer}: {remedy if is_muon else one_line(error)}") from error
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    if size > memory():
        raise UsageError(f"{optimizer}: its state takes {size:,} bytes, and there are {memory():,}")
    _check_schedule(config, training)
    try:
        jax.eval_shape(lambda *batch: make_step(training)(start(config, training, classes), *batch), *batch_shapes(1))
    except Exception as error:
        raise UsageError(f"{optimizer}: {one_line(error)}") from error


def _check_schedule(config: Config, training: Training) -> None:
    """Take some steps of the scheduler, for what it does not take shows there."""
    if training.scheduler is None:
        return
    name = f"--scheduler {config.scheduler}"
    try:
        sched, opt_state = training.start_schedule(training.optimizer.init({}))
        for _ in range(min(TRIED, training.scheduler.options.get("total_steps") or TRIED) - 1):
            sched, opt_state = training.schedule(sched, opt_state, 1.0)
        rates = np.asarray(training.learning_rates(opt_state))
    except Exception as error:
        options = written(scheduler_options(config))
        message = f"{name}: {one_line(error)}" if isinstance(error, ValueError | TypeError) else None
        raise UsageError(message or f"{name} with {options}: {one_line(error)}") from error
    if not np.isfinite(rates).all():
        raise UsageError(f"{name} with {written(scheduler_options(config))}: the learning rate becomes {rates}")


def check_run(config: Config, training: Training, examples: int, moment: Moment) -> None:
    """Raise a UsageError for what a run over so many examples, from this moment on, would fail at."""
    _check_total_steps(config, training, examples, moment)
    steps = total_steps(config, examples)
    if config.accumulate > steps:
        raise UsageError(
            f"--accumulate {config.accumulate}: the run has {steps:,} batches, and so no step of the optimizer; "
            f"write --accumulate {steps}, or fewer"
        )
    batch = min(config.batch_size, examples)
    if batch <= LARGE_BATCH:
        return
    try:
        step: Any = make_step(training)
        compiled = step.lower(moment.state, *batch_shapes(batch, training.devices)).compile().memory_analysis()
        needed = compiled.temp_size_in_bytes + compiled.argument_size_in_bytes + compiled.output_size_in_bytes
    except Exception as error:  # RESOURCE_EXHAUSTED, where the compiler sees it
        raise UsageError(f"--batch-size {config.batch_size}: {one_line(error)}") from error
    if needed > memory():
        raise UsageError(
            f"--batch-size {config.batch_size}: a step of {batch:,} examples takes {needed:,} bytes, and there are "
            f"{memory():,}; give a smaller one, with --accumulate if need be"
        )


def batch_shapes(size: int, devices: Devices | None = None) -> tuple[Any, ...]:
    """What a step takes beside the state."""
    shapes = (((size, 32, 32, 3), np.uint8), ((size,), np.int32))
    sharding = None if devices is None else devices.batch_sharding(size)
    batch = (jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes)
    return *batch, jax.ShapeDtypeStruct((), np.int32)


def memory() -> int:
    """The bytes that the device has."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _check_total_steps(config: Config, training: Training, examples: int, moment: Moment) -> None:
    """one_cycle_lr ends, and raises at the step after, or under jit has a rate that is NaN."""
    total = None if training.scheduler is None else training.scheduler.options.get("total_steps")
    if total is None:
        return
    taken = int(moment.state.sched[0]["last_epoch"])
    left = config.epochs - moment.number + 1
    steps = total_steps(config, examples) - moment.step
    needed = steps // config.accumulate if training.every_step else left
    if total < taken + needed:
        before = f" after the {taken:,} it has taken" if taken else ""
        raise UsageError(
            f"--scheduler {config.scheduler}: it has {total:,} steps, and the run takes {needed:,}{before}, by the "
            f"--scheduler-interval, {config.scheduler_interval}; write --scheduler-option total_steps={taken + needed}"
        )


def total_steps(config: Config, examples: int) -> int:
    """How many steps the run has."""
    steps = config.epochs * steps_per_epoch(config, examples)
    return steps if config.steps is None else min(steps, config.steps)

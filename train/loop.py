"""The epochs of a run: a generator that takes the steps, and goes on from where it is left."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from train.config import Config
from train.data import Data, Examples
from train.devices import Devices
from train.epoch import Epoch, Steps
from train.model import Params
from train.start import epoch_order
from train.step import Record, State, evaluate, make_step
from train.training import Training

SCAN_STEPS = 100
EVALUATION_BATCH = 500

Chunk = Int[np.ndarray, "steps batch"]  # the examples of consecutive steps
Advance = Callable[[State, Chunk, int], tuple[State, Record]]


@dataclass
class Moment:
    """Where a run is, between two steps: all that it needs to go on from there.

    Args:
      state: what the steps change. It is donated once the next step is asked for.
      number: the epoch under way, from 1.
      step: steps of the run so far.
      steps: those of the epoch under way.
      seconds: that they took.
      ended: the epoch that has just ended, if one has; `number` is the next one's then.
    """

    state: State
    number: int = 1
    step: int = 0
    steps: Steps = field(default_factory=Steps)
    seconds: float = 0.0
    ended: Epoch | None = None


def fit(config: Config, training: Training, moment: Moment, data: Data) -> Iterator[Moment]:
    """Train, yielding where the run is: the same moment again and again, after each step or some, and each epoch.

    The last step of an epoch and what is due after it are one. It ends after the first epoch whose loss is not finite.

    Args:
      config: says how long, how large the batches and in which order.
      training: changes the parameters.
      moment: where to start from.
      data: what to train on, and what to evaluate on after each epoch, if anything.
    """
    scan = scans()
    advance = (_by_scan if scan else _by_one)(training, data.train)
    while not is_over(config, moment):
        order, before = orders(config, moment, data)
        begun = time.perf_counter() - moment.seconds
        chunks = batches(order, config, moment.step - before, before, SCAN_STEPS if scan else 1)
        for chunk in chunks:
            moment.ended = None
            moment.state, record = advance(moment.state, chunk, moment.step)
            moment.step += len(chunk)
            moment.steps.add(record)
            moment.seconds = time.perf_counter() - begun
            if not moment.steps.finite:
                break
            if (moment.step - before) * config.batch_size < len(order):
                yield moment
        moment.steps.read()
        moment.seconds = time.perf_counter() - begun
        end_epoch(config, training, moment, data, order)
        yield moment


def scans() -> bool:
    """Whether chunks of steps run inside `lax.scan`: not on a CPU, where XLA runs convolutions inside a loop on one
    thread, up to 60 times slower."""
    return jax.default_backend() != "cpu"


def is_over(config: Config, moment: Moment) -> bool:
    """Whether there is nothing left to do."""
    over = moment.number > config.epochs or moment.step == config.steps
    return over or (moment.ended is not None and not moment.ended.finite)


def steps_per_epoch(config: Config, examples: int) -> int:
    """How many steps an epoch has; the last takes the examples that are left."""
    return math.ceil(examples / config.batch_size)


def orders(config: Config, moment: Moment, data: Data) -> tuple[np.ndarray, int]:
    """The order of the epoch under way, as far as the run goes, and the steps of the run before it."""
    examples = len(data.train.labels)
    before = (moment.number - 1) * steps_per_epoch(config, examples)
    order = epoch_order(config, moment.number, examples, data.classes)
    return (order if config.steps is None else order[: (config.steps - before) * config.batch_size]), before


def batches(order: np.ndarray, config: Config, first: int, before: int, size: int = 1) -> Iterator[Chunk]:
    """The epoch's batches, up to so many full ones at a time; the last, partial one is kept, by itself.

    Args:
      order: of the examples.
      config: the size of a batch, and the steps between checkpoints, over which no chunk goes.
      first: the step of the epoch to start with, from 0. What it is does not move where chunks end.
      before: steps of the run before the epoch.
      size: how many batches at a time.
    """
    full, at = len(order) // config.batch_size, first
    while at < full:
        end = min(full, at - at % size + size)
        if config.checkpoint_every is not None:
            end = min(end, at + config.checkpoint_every - (before + at) % config.checkpoint_every)
        yield order[at * config.batch_size : end * config.batch_size].reshape(end - at, config.batch_size)
        at = end
    if at == full and full * config.batch_size < len(order):
        yield order[None, full * config.batch_size :]


def end_epoch(config: Config, training: Training, moment: Moment, data: Data, order: np.ndarray) -> None:
    """What is due after an epoch: the evaluation, and the scheduler's step where it moves by the epoch."""
    state = moment.state
    epoch = under_way(config, moment, data, order)
    assert epoch is not None
    if data.test is not None:
        average = state.averaged
        epoch = epoch._replace(
            test=evaluate_all(state.params, data.test, training),
            ema_test=None if average is None else evaluate_all(average.params, data.test, training),
        )
    if epoch.finite and len(order) == len(data.train.labels) and not training.every_step:
        # A plateau is one of the loss on the test split, or where there is none of the mean loss of the epoch.
        loss = epoch.loss if epoch.test is None else epoch.test[0]
        sched, opt_state = training.schedule(state.sched, state.opt_state, loss)
        state = state._replace(sched=sched, opt_state=opt_state)
        moment.state = state if training.devices is None else training.devices.place(state)
    moment.number, moment.step, moment.ended = moment.number + 1, epoch.step, epoch
    moment.steps, moment.seconds = Steps(), 0.0


def under_way(config: Config, moment: Moment, data: Data, order: np.ndarray) -> Epoch | None:
    """What the epoch under way has come to; None before its first step."""
    columns = moment.steps.columns()
    if columns is None:
        return None
    done = len(columns.losses)
    return Epoch(
        moment.number,
        (moment.number - 1) * steps_per_epoch(config, len(data.train.labels)) + done,
        columns.losses,
        columns.correct,
        examples=np.minimum(config.batch_size, len(order) - config.batch_size * np.arange(done)),
        seconds=moment.seconds,
        lr=columns.lr,
        norms=dict(zip(sorted(moment.state.params), columns.norms[-1].tolist(), strict=True)),
    )


def _by_one(training: Training, examples: Examples) -> Advance:
    step, devices = make_step(training), training.devices

    def advance(state: State, chunk: Chunk, at: int) -> tuple[State, Record]:
        (batch,) = chunk
        return step(state, *take(examples, batch, devices), np.int32(at))

    return advance


def _by_scan(training: Training, examples: Examples) -> Advance:
    scan, devices = make_scan(training), training.devices
    images, labels = jax.device_put(examples) if devices is None else devices.copies(examples)

    def advance(state: State, chunk: Chunk, at: int) -> tuple[State, Record]:
        steps = np.arange(at, at + len(chunk), dtype=np.int32)
        return scan(state, images, labels, chunk if devices is None else devices.chunk(chunk), steps)

    return advance


def make_scan(training: Training) -> Callable[..., tuple[State, Record]]:
    """`(state, images, labels, chunk, at) -> (state, record)`: a chunk of steps, of which `at` are the numbers.

    The state is donated.
    """
    step = make_step(training)

    @partial(jax.jit, donate_argnums=0)
    def scan(state: State, images: Any, labels: Any, chunk: Any, at: Any) -> tuple[State, Record]:
        def body(state: State, one: Any) -> tuple[State, Record]:
            batch, at = one
            return step(state, images[batch], labels[batch], at)

        return jax.lax.scan(body, state, (chunk, at))

    return scan


def evaluate_all(params: Params, examples: Examples, training: Training | None = None) -> tuple[float, float]:
    """The mean loss and the accuracy over all examples; `training` says where, and in which precision."""
    devices, dtype = (None, None) if training is None else (training.devices, training.dtype)
    size = EVALUATION_BATCH if devices is None else devices.round_up(EVALUATION_BATCH)
    everything = np.arange(len(examples.labels))
    parts = [everything[start : start + size] for start in range(0, len(everything), size)]
    metrics = [evaluate(params, *take(examples, part, devices), devices, dtype) for part in parts]
    loss = sum(float(one.loss) * len(part) for one, part in zip(metrics, parts, strict=True))
    return loss / len(everything), sum(int(one.correct) for one in metrics) / len(everything)


def take(examples: Examples, order: np.ndarray, devices: Devices | None) -> tuple[Any, Any]:
    """Those pictures and labels, where a step takes them."""
    images, labels = ((x[order] if devices is None else devices.batch(x, order)) for x in examples)
    return images, labels

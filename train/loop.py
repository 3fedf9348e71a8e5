"""The epochs of a run: dispatches steps, and reads their metrics one dispatch behind."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Int

from train.config import Config
from train.data import Examples
from train.epoch import Epoch
from train.model import Params
from train.start import Order, epoch_order
from train.step import Metrics, Rates, State, Step, evaluate, make_step
from train.training import Training

SCAN_STEPS = 100
EVALUATION_BATCH = 500

T = TypeVar("T")
Chunk = Int[np.ndarray, "steps batch"]  # the examples of consecutive steps
Advance = Callable[[State, Chunk], tuple[State, Metrics, Rates]]


def fit(
    config: Config,
    training: Training,
    state: State,
    examples: Examples,
    test: Examples | None = None,
    on_steps: Callable[[int], None] = lambda steps: None,
    scan: bool | None = None,
    around: Callable[[Advance], Advance] = lambda advance: advance,
) -> Iterator[tuple[Epoch, State]]:
    """Train, yielding each epoch and the state after it; stops after the first whose loss is not finite.

    Args:
      config: says how long, how large the batches and in which order.
      training: changes the parameters.
      state: where to start from. It is donated, as is every state that is yielded once the next epoch is asked for.
      examples: what to train on.
      test: what to evaluate on after each epoch.
      on_steps: called with the number of steps whose metrics were just read.
      scan: whether to run chunks of steps inside `lax.scan`, by default everywhere but on a CPU, where XLA runs
        convolutions inside a loop on one thread, up to 60 times slower.
      around: wraps the function that takes the steps, to watch them.
    """
    scan = jax.default_backend() != "cpu" if scan is None else scan
    advance = around((_advance_by_scan if scan else _advance_by_one)(make_step(training), examples))
    step = 0
    for number in range(config.start_epoch, config.epochs + 1):
        order = epoch_order(config, number, len(examples.labels))
        if config.steps is not None:
            order = order[: (config.steps - step) * config.batch_size]
        start = time.perf_counter()
        chunks = _chunks(order, config.batch_size, SCAN_STEPS if scan else 1)
        state, losses, correct, rates = _run_epoch(advance, state, chunks, on_steps)
        seconds = time.perf_counter() - start
        step += len(losses)
        epoch = Epoch(
            number,
            step,
            losses,
            correct,
            examples=np.minimum(config.batch_size, len(order) - config.batch_size * np.arange(len(losses))),
            seconds=seconds,
            lr=rates,
            test=None if test is None else evaluate_all(state.params, test),
            ema_test=None if test is None or state.averaged is None else evaluate_all(state.averaged.params, test),
        )
        if epoch.finite and len(order) == len(examples.labels):
            state = _end_epoch(training, state, epoch)
        yield epoch, state
        if not epoch.finite or step == config.steps:
            return


def _end_epoch(training: Training, state: State, epoch: Epoch) -> State:
    """The scheduler's step after an epoch. A plateau is one of the loss on the test split, or where there is none of
    the mean loss of the epoch."""
    if training.scheduler is None or training.every_step:
        return state
    loss = epoch.running_loss / len(epoch.losses) if epoch.test is None else epoch.test[0]
    metric = loss if training.needs_metric else None
    sched, opt_state = training.scheduler.step(state.sched, state.opt_state, metric)
    return state._replace(sched=sched, opt_state=opt_state)


def _run_epoch(
    advance: Advance, state: State, chunks: Iterator[Chunk], on_steps: Callable[[int], None]
) -> tuple[State, np.ndarray, np.ndarray, np.ndarray]:
    def dispatch() -> Iterator[tuple[Metrics, Rates]]:
        nonlocal state
        for chunk in chunks:
            state, metrics, rates = advance(state, chunk)
            yield metrics, rates

    losses, correct, lr = [], [], []
    for metrics, rates in _one_behind(dispatch()):
        loss = np.atleast_1d(np.asarray(metrics.loss, np.float64))
        finite = np.isfinite(loss)
        steps = len(loss) if finite.all() else int(finite.argmin()) + 1
        losses.append(loss[:steps])
        correct.append(np.atleast_1d(metrics.correct)[:steps])
        lr.append(np.atleast_2d(rates)[:steps])
        on_steps(steps)
        if not finite.all():
            break
    return state, np.concatenate(losses), np.concatenate(correct), np.concatenate(lr)


def _one_behind(read: Iterator[T]) -> Iterator[T]:
    """Each item, when the one after it has been dispatched, so that reading it keeps nobody waiting."""
    previous = next(read)
    for dispatched in read:
        yield previous
        previous = dispatched
    yield previous


def _chunks(order: Order, batch_size: int, steps: int) -> Iterator[Chunk]:
    """The epoch's batches, up to so many full ones at a time; the last, partial one is kept, by itself."""
    full = len(order) // batch_size * batch_size
    batches = order[:full].reshape(-1, batch_size)
    for start in range(0, len(batches), steps):
        yield batches[start : start + steps]
    if full < len(order):
        yield order[None, full:]


def _advance_by_one(step: Step, examples: Examples) -> Advance:
    def advance(state: State, chunk: Chunk) -> tuple[State, Metrics, Rates]:
        (batch,) = chunk
        return step(state, examples.images[batch], examples.labels[batch])

    return advance


def _advance_by_scan(step: Step, examples: Examples) -> Advance:
    @partial(jax.jit, donate_argnums=0)
    def scan(state: State, images: Any, labels: Any, chunk: Any) -> tuple[State, Metrics, Rates]:
        def body(state: State, batch: Any) -> tuple[State, tuple[Metrics, Rates]]:
            state, metrics, rates = step(state, images[batch], labels[batch])
            return state, (metrics, rates)

        state, (metrics, rates) = jax.lax.scan(body, state, chunk)
        return state, metrics, rates

    images, labels = jax.device_put(examples)
    return lambda state, chunk: scan(state, images, labels, chunk)


def evaluate_all(params: Params, examples: Examples) -> tuple[float, float]:
    """The mean loss and the accuracy over all examples."""
    starts = range(0, len(examples.labels), EVALUATION_BATCH)
    batches = [Examples(*(array[start : start + EVALUATION_BATCH] for array in examples)) for start in starts]
    metrics = [evaluate(params, *batch) for batch in batches]
    loss = sum(float(one.loss) * len(batch.labels) for one, batch in zip(metrics, batches, strict=True))
    return loss / len(examples.labels), sum(int(one.correct) for one in metrics) / len(examples.labels)

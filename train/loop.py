"""The epochs of a run: dispatches steps, and reads their metrics one dispatch behind."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxopt_port import Optimizer, get_hyper
from train.config import Config
from train.data import Examples
from train.model import Params
from train.step import Metrics, Step, evaluate, make_step

SCAN_STEPS = 100
EVALUATION_BATCH = 500

Order = Int[np.ndarray, " n"]
Chunk = Int[np.ndarray, "steps batch"]  # the examples of consecutive steps
Advance = Callable[[Params, Any, Chunk], tuple[Params, Any, Metrics]]


class Epoch(NamedTuple):
    """What an epoch came to. It ends early where the loss is no longer finite, or with the run."""

    number: int  # from 1
    step: int  # steps of the run so far
    losses: Float[np.ndarray, " steps"]  # of each step, before it
    correct: Int[np.ndarray, " steps"]
    examples: Int[np.ndarray, " steps"]
    seconds: float  # without the evaluation; the first epoch's has the compilation in it
    lr: tuple[float, ...]  # of each parameter group
    test: tuple[float, float] | None  # loss and accuracy on the test split

    @property
    def running_loss(self) -> float:
        """The sum of the steps' losses, as the tutorial prints it."""
        return float(self.losses.sum())

    @property
    def accuracy(self) -> float:
        """The part of the examples that were classified correctly just before the step that they were in."""
        return float(self.correct.sum() / self.examples.sum())

    @property
    def images_per_second(self) -> float:
        return float(self.examples.sum() / self.seconds)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.losses).all())


def fit(
    config: Config,
    optimizer: Optimizer,
    params: Params,
    examples: Examples,
    test: Examples | None = None,
    on_steps: Callable[[int], None] = lambda steps: None,
    scan: bool | None = None,
) -> Iterator[Epoch]:
    """Train, yielding each epoch; stops after the first whose loss is not finite.

    Args:
      config: says how long, how large the batches and in which order.
      optimizer: steps the parameters.
      params: the initial parameters; they are donated.
      examples: what to train on.
      test: what to evaluate on after each epoch.
      on_steps: called with the number of steps whose metrics were just read.
      scan: whether to run chunks of steps inside `lax.scan`, by default everywhere but on a CPU, where XLA runs
        convolutions inside a loop on one thread, up to 60 times slower.
    """
    scan = jax.default_backend() != "cpu" if scan is None else scan
    advance = (_advance_by_scan if scan else _advance_by_one)(make_step(optimizer), examples)
    opt_state = optimizer.init(params)
    step = 0
    for number in range(1, config.epochs + 1):
        order = epoch_order(config, number, len(examples.labels))
        if config.steps is not None:
            order = order[: (config.steps - step) * config.batch_size]
        start = time.perf_counter()
        chunks = _chunks(order, config.batch_size, SCAN_STEPS if scan else 1)
        params, opt_state, losses, correct = _run_epoch(advance, params, opt_state, chunks, on_steps)
        seconds = time.perf_counter() - start
        step += len(losses)
        epoch = Epoch(
            number,
            step,
            losses,
            correct,
            examples=np.minimum(config.batch_size, len(order) - config.batch_size * np.arange(len(losses))),
            seconds=seconds,
            lr=tuple(group["lr"] for group in get_hyper(opt_state)),
            test=None if test is None else evaluate_all(params, test),
        )
        yield epoch
        if not epoch.finite or step == config.steps:
            return


def epoch_order(config: Config, number: int, examples: int) -> Order:
    """The order in which an epoch takes the examples; a function of the seed and the epoch's number alone."""
    if not config.shuffle:
        return np.arange(examples)
    return np.random.default_rng((config.seed, number)).permutation(examples)


def _run_epoch(
    advance: Advance, params: Params, opt_state: Any, chunks: Iterator[Chunk], on_steps: Callable[[int], None]
) -> tuple[Params, Any, np.ndarray, np.ndarray]:
    def dispatch() -> Iterator[Metrics]:
        nonlocal params, opt_state
        for chunk in chunks:
            params, opt_state, metrics = advance(params, opt_state, chunk)
            yield metrics

    losses, correct = [], []
    for metrics in _one_behind(dispatch()):
        loss = np.atleast_1d(np.asarray(metrics.loss, np.float64))
        finite = np.isfinite(loss)
        steps = len(loss) if finite.all() else int(finite.argmin()) + 1
        losses.append(loss[:steps])
        correct.append(np.atleast_1d(metrics.correct)[:steps])
        on_steps(steps)
        if not finite.all():
            break
    return params, opt_state, np.concatenate(losses), np.concatenate(correct)


def _one_behind(metrics: Iterator[Metrics]) -> Iterator[Metrics]:
    """Each item, when the one after it has been dispatched, so that reading it keeps nobody waiting."""
    previous = next(metrics)
    for dispatched in metrics:
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
    def advance(params: Params, opt_state: Any, chunk: Chunk) -> tuple[Params, Any, Metrics]:
        (batch,) = chunk
        return step(params, opt_state, examples.images[batch], examples.labels[batch])

    return advance


def _advance_by_scan(step: Step, examples: Examples) -> Advance:
    @partial(jax.jit, donate_argnums=(0, 1))
    def scan(params: Params, opt_state: Any, images: Any, labels: Any, chunk: Any) -> tuple[Params, Any, Metrics]:
        def body(carry: Any, batch: Any) -> tuple[Any, Metrics]:
            params, opt_state = carry
            params, opt_state, metrics = step(params, opt_state, images[batch], labels[batch])
            return (params, opt_state), metrics

        (params, opt_state), metrics = jax.lax.scan(body, (params, opt_state), chunk)
        return params, opt_state, metrics

    images, labels = jax.device_put(examples)
    return lambda params, opt_state, chunk: scan(params, opt_state, images, labels, chunk)


def evaluate_all(params: Params, examples: Examples) -> tuple[float, float]:
    """The mean loss and the accuracy over all examples."""
    starts = range(0, len(examples.labels), EVALUATION_BATCH)
    batches = [Examples(*(array[start : start + EVALUATION_BATCH] for array in examples)) for start in starts]
    metrics = [evaluate(params, *batch) for batch in batches]
    loss = sum(float(one.loss) * len(batch.labels) for one, batch in zip(metrics, batches, strict=True))
    return loss / len(examples.labels), sum(int(one.correct) for one in metrics) / len(examples.labels)

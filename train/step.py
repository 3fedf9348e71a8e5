"""One step of training, and the evaluation of a batch: pure functions, jitted."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float64, Int, UInt8

from jaxopt_port import EveryKState
from jaxopt_port.hyper import find_state
from jaxopt_port.scalars import float64
from train.model import Network, Params, convolve_by_rows, cross_entropy
from train.training import Training


class State(NamedTuple):
    """What a step changes."""

    params: Params
    opt_state: Any
    sched: Any  # of the scheduler; None without
    averaged: Any  # of the average of weights; None without


class Metrics(NamedTuple):
    """What a step says of its batch, before the step."""

    loss: Float[Array, "*steps"]  # the mean over the batch
    correct: Int[Array, "*steps"]  # how many were classified correctly


_NETWORK = Network()
Rates = Float64[Array, "*steps groups"]  # the learning rate of each parameter group, before the step
Step = Callable[[State, Any, Any], tuple[State, Metrics, Rates]]


def init(training: Training, params: Params) -> State:
    """The first state; the parameters are handed on, not copied."""
    opt_state, sched = training.optimizer.init(params), None
    if training.scheduler is not None:
        sched, opt_state = training.scheduler.init(opt_state)
    return State(params, opt_state, sched, None if training.average is None else training.average.init(params))


def make_step(training: Training) -> Step:
    """`(state, images, labels) -> (state, metrics, rates)`; the state is donated."""

    closure = _printed_loss if training.closures else batch_loss

    @partial(jax.jit, donate_argnums=0)
    def step(state: State, images: Any, labels: Any) -> tuple[State, Metrics, Rates]:
        params, opt_state, sched, averaged = state
        rates = learning_rates(opt_state)
        (loss, metrics), params, opt_state = training.optimizer.step_closure(
            closure, opt_state, params, images, labels, has_aux=True
        )
        new = opt_state, sched, averaged
        if training.scheduler is not None and training.every_step:
            sched, opt_state = training.scheduler.step(sched, opt_state, loss if training.needs_metric else None)
        if training.average is not None:
            averaged = training.average.update(averaged, params)
        moved = _where_stepped(new[0], (opt_state, sched, averaged), new)
        return State(params, *moved), metrics, rates

    return step


def learning_rates(opt_state: Any) -> Rates:
    """The learning rate of each parameter group."""
    with float64():
        return jnp.stack([jax.tree.leaves(group["lr"])[0] for group in find_state(opt_state).param_groups])


def _where_stepped(opt_state: Any, new: Any, old: Any) -> Any:
    """`new` where the optimizer has stepped: always, or where gradients are accumulated after the last of them."""
    if not isinstance(opt_state, EveryKState):
        return new
    with float64():
        return jax.tree.map(lambda n, o: n if n is o else jnp.where(opt_state.calls == 0, n, o), new, old)


@jax.jit
def evaluate(params: Params, images: UInt8[Array, "batch 32 32 3"], labels: Int[Array, " batch"]) -> Metrics:
    """The metrics of a batch, without a step."""
    return batch_loss(params, images, labels)[1]


def _printed_loss(params: Params, images: Any, labels: Any) -> tuple[Float[Array, ""], Metrics]:
    """The loss for a loop of evaluations, printed at each, as torch's users print it in a closure."""
    loss, metrics = batch_loss(params, images, labels, Network(convolve_by_rows))
    jax.debug.print("closure: loss {:.6f}", loss, ordered=True)
    return loss, metrics


def batch_loss(
    params: Params, images: Any, labels: Any, network: Network = _NETWORK
) -> tuple[Float[Array, ""], Metrics]:
    """The loss to minimize, and the metrics of its batch."""
    logits: Any = network.apply({"params": params}, images)
    loss = cross_entropy(logits, labels)
    return loss, Metrics(loss, (logits.argmax(axis=1) == labels).sum())

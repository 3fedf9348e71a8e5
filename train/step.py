"""One step of training, and the evaluation of a batch: pure functions, jitted."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, UInt8

from jaxopt_port import Optimizer
from train.model import Network, Params, cross_entropy


class Metrics(NamedTuple):
    """What a step says of its batch, before the step."""

    loss: Float[Array, "*steps"]  # the mean over the batch
    correct: Int[Array, "*steps"]  # how many were classified correctly


Step = Callable[[Params, Any, Any, Any], tuple[Params, Any, Metrics]]


def make_step(optimizer: Optimizer) -> Step:
    """`(params, opt_state, images, labels) -> (params, opt_state, metrics)`; the first two are donated."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, opt_state: Any, images: Any, labels: Any) -> tuple[Params, Any, Metrics]:
        (_, metrics), grads = jax.value_and_grad(_loss, has_aux=True)(params, images, labels)
        params, opt_state = optimizer.step(grads, opt_state, params)
        return params, opt_state, metrics

    return step


@jax.jit
def evaluate(params: Params, images: UInt8[Array, "batch 32 32 3"], labels: Int[Array, " batch"]) -> Metrics:
    """The metrics of a batch, without a step."""
    return _loss(params, images, labels)[1]


def _loss(params: Params, images: Any, labels: Any) -> tuple[Float[Array, ""], Metrics]:
    logits: Any = Network().apply({"params": params}, images)
    loss = cross_entropy(logits, labels)
    return loss, Metrics(loss, (logits.argmax(axis=1) == labels).sum())

"""One step of training, and the evaluation of a batch: pure functions, jitted."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float64, Int, UInt8

from jaxopt_port import EveryKState
from jaxopt_port.scalars import float64
from train.augment import augment
from train.devices import Devices
from train.model import Network, Params, classes_of, convolve_by_rows, cross_entropy
from train.training import Training


class State(NamedTuple):
    """What a step changes."""

    params: Params
    opt_state: Any
    sched: Any  # of the scheduler; None without
    averaged: Any  # of the average of weights; None without


class Metrics(NamedTuple):
    """What is known of a batch once its loss is."""

    loss: Float[Array, ""]  # the mean over the batch
    correct: Int[Array, ""]  # how many were classified correctly


# What a step says, or some in a row: the loss, how many pictures were classified correctly, the learning rate of each
# parameter group, the norm of each layer's parameters. All of it is from before the step. One array is one launch on a
# GPU, and one buffer to read.
Record = Float64[Array, "*steps columns"]

Step = Callable[[State, Any, Any, Any], tuple[State, Record]]


def make_step(training: Training) -> Step:
    """`(state, images, labels, at) -> (state, record)`; `at` is the step's number in the run, from 0.

    The state is donated.
    """

    devices, dtype = training.devices, training.dtype
    loss_fn = batch_loss if dtype is None else partial(batch_loss, dtype=dtype)
    closure = partial(_closure, dtype=dtype, prints=devices is None)
    value_and_grad = (devices.value_and_grad if devices else partial(jax.value_and_grad, has_aux=True))(loss_fn)

    @partial(jax.jit, donate_argnums=0)
    def step(state: State, images: Any, labels: Any, at: Any) -> tuple[State, Record]:
        params, opt_state, sched, averaged = state
        lr, norms = training.learning_rates(opt_state), layer_norms(params, devices)
        if training.augment is not None:
            images = augment(jax.random.fold_in(jax.random.key(training.augment), at), images)
        if training.closures:
            (loss, metrics), params, opt_state = training.optimizer.step_closure(
                closure, opt_state, params, images, labels, has_aux=True
            )
        else:
            (loss, metrics), grads = value_and_grad(params, images, labels)
            params = params if devices is None else devices.divided(params)
            params, opt_state = training.optimizer.step(grads, opt_state, params)
            params = params if devices is None else devices.kept(params)
        new = opt_state, sched, averaged
        if training.every_step:
            sched, opt_state = training.schedule(sched, opt_state, loss)
        if training.average is not None:
            averaged = training.average.update(averaged, params)
        moved = _where_stepped(new[0], (opt_state, sched, averaged), new)
        state, record = State(params, *moved), _record(metrics, lr, norms)
        if devices is None:
            return state, record
        with float64():
            return devices.keep(state), devices.whole(record)

    return step


def _record(metrics: Metrics, lr: Float64[Array, " groups"], norms: Float64[Array, " layers"]) -> Record:
    with float64():
        return jnp.concatenate([jnp.stack([x.astype(jnp.float64) for x in metrics]), lr, norms])


def layer_norms(params: Params, devices: Devices | None = None) -> Float64[Array, " layers"]:
    """The Euclidean norm of each layer's parameters, by the layers' names in alphabetical order.

    Squares may be too large for a float32. They are added up by columns first, which costs a GPU no launches of its
    own, since XLA does it where it steps the parameters, and then by layers, all in one.
    """
    with float64():
        columns = jax.tree.map(_columns, params)
        columns = columns if devices is None else devices.whole(columns)
        rows = [jnp.concatenate(jax.tree.leaves(layer)) for _, layer in sorted(columns.items())]
        longest = max(map(len, rows))
        return jnp.sqrt(jnp.stack([jnp.pad(row, (0, longest - len(row))) for row in rows]).sum(axis=1))


def _columns(x: Float[Array, "*rows columns"]) -> Float64[Array, " columns"]:
    return jnp.square(x.astype(jnp.float64)).sum(axis=tuple(range(x.ndim - 1)))


def _where_stepped(opt_state: Any, new: Any, old: Any) -> Any:
    """`new` where the optimizer has stepped: always, or where gradients are accumulated after the last of them."""
    if not isinstance(opt_state, EveryKState):
        return new
    with float64():
        return jax.tree.map(lambda n, o: n if n is o else jnp.where(opt_state.calls == 0, n, o), new, old)


@partial(jax.jit, static_argnames=("devices", "dtype"))
def evaluate(
    params: Params,
    images: UInt8[Array, "batch 32 32 3"],
    labels: Int[Array, " batch"],
    devices: Devices | None = None,
    dtype: Any = None,
) -> Metrics:
    """The metrics of a batch, without a step."""
    params = params if devices is None else devices.whole(params)
    metrics = batch_loss(params, images, labels, dtype=dtype)[1]
    return metrics if devices is None else devices.whole(metrics)


def _closure(params: Params, images: Any, labels: Any, dtype: Any, prints: bool) -> tuple[Float[Array, ""], Metrics]:
    """The loss for a loop of evaluations, printed at each, as torch's users print it in a closure. Several devices
    have no order to print in."""
    loss, metrics = batch_loss(params, images, labels, convolve_by_rows, dtype)
    if prints:
        jax.debug.print("closure: loss {:.6f}", loss, ordered=True)
    return loss, metrics


def batch_loss(
    params: Params,
    images: Any,
    labels: Any,
    convolve: Callable[..., Any] = jax.lax.conv_general_dilated,
    dtype: Any = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss to minimize, and the metrics of its batch. The network computes in `dtype`, the loss in float32."""
    logits: Any = Network(classes_of(params), convolve, dtype).apply({"params": params}, images)
    logits = logits.astype(jnp.float32)
    loss = cross_entropy(logits, labels)
    return loss, Metrics(loss, (logits.argmax(axis=1) == labels).sum())

r"""Stochastic gradient descent, with momentum."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.factory import factory
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import Rule, Scalars, ScalarState, is_sparse
from jaxopt_port.rules.sparse_rows import check_rows_without_decay, coalesced
from jaxopt_port.rules.tensor_ops import add_weight_decay, rounded
from jaxopt_port.scalars import Scalar, check_at_least_0, check_lr, is_known, is_on


class SGDState(NamedTuple):
    momentum_buffer: jax.Array | None  # None without momentum


def init(p: jax.Array, options: SimpleNamespace) -> SGDState:
    return SGDState(jnp.full_like(p, -0.0))  # adding to -0.0 changes no bit of the first gradient


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    turned_on = jnp.not_equal(hyper.momentum, 0)
    c = {
        "neg_lr": -hyper.lr,
        "weight_decay": hyper.weight_decay,
        "momentum": hyper.momentum,
        "turned_on": turned_on,
        "keep": jnp.where(turned_on, hyper.momentum, 1),
        "gain": jnp.where(state["has_buffer"], 1 - hyper.dampening, 1),
    }
    return c, {"has_buffer": state["has_buffer"] | turned_on}


def update(p: jax.Array, g: jax.Array, slot: SGDState, c: SimpleNamespace) -> tuple[jax.Array, SGDState]:
    if is_sparse(g):
        return _update_rows(p, g, slot, c)
    decayed = add_weight_decay(g, p, c.weight_decay)
    if slot.momentum_buffer is None:
        return p + c.neg_lr * decayed, slot
    # Without momentum the buffer stays. What is selected is what is added to it: a choice of the old one would copy it.
    buffer = rounded(slot.momentum_buffer * c.keep) + jnp.where(c.turned_on, c.gain * decayed, -0.0)
    again = add_weight_decay(g, p, c.weight_decay * c.another_one)  # for its own kernel
    direction = again + c.momentum * buffer if c.nesterov else buffer
    return p + c.neg_lr * jnp.where(c.turned_on, direction, again), SGDState(buffer)


def _update_rows(p: jax.Array, g: Any, slot: SGDState, c: SimpleNamespace) -> tuple[jax.Array, SGDState]:
    """torch adds up the rows without momentum; with it the rows of all gradients so far move."""
    rows = coalesced(g)
    values = jnp.where(c.weight_decay == 0, rows.values, jnp.nan)  # set since: torch has no such sum, and raises
    if slot.momentum_buffer is None:
        return rows.put(p, rows.of(p) + c.neg_lr * values), slot
    dense = rows.put(jnp.zeros(p.shape, values.dtype), values)
    return update(p.astype(values.dtype), dense, slot, c)


def check(options: Mapping[str, Any]) -> None:
    check_lr(options["lr"])
    check_at_least_0("momentum value", options["momentum"])
    check_at_least_0("weight_decay value", options["weight_decay"])
    known = is_known(options["momentum"]) and is_known(options["dampening"])
    if options["nesterov"] and known and (options["momentum"] <= 0 or options["dampening"] != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")


def has_momentum(options: SimpleNamespace) -> bool:
    return is_on(options.momentum)


SGD = Rule(
    "sgd",
    SGDState,
    scalars,
    update,
    check=check,
    init=init,
    live=("lr", "momentum", "dampening", "weight_decay"),
    structural=("momentum",),
    optional={"momentum_buffer": has_momentum},
    scalar_state={"has_buffer": False},
    check_grad=check_rows_without_decay,
    elementwise=True,
    torch="SGD",
)


@factory(SGD)
def sgd(
    lr: Scalar = 1e-3,
    momentum: Scalar = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""Stochastic gradient descent: torch.optim.SGD.

    .. math::
      g_t &= \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
      b_t &= \mu b_{t-1} + (1 - \tau) g_t, \quad b_1 = g_1 \\
      \theta_t &= \theta_{t-1} - \gamma (g_t + \mu b_t \text{ if nesterov else } b_t)

    The first buffer is the gradient itself, without dampening; a parameter gets it at its first step with a momentum
    that is not 0, which may come late when a scheduler turns momentum on.

    A row-sparse gradient, a `BCOO` as `sparse_adam` takes it, steps its rows; with momentum, the rows of all so far.
    With a weight decay it is refused, as in torch; with one that `set_hyper` sets later its rows become NaN.

    Args:
      lr: :math:`\gamma`, learning rate; live.
      momentum: :math:`\mu`; live, unless it is 0 when the optimizer is made: then there is no buffer.
      dampening: :math:`\tau`; live.
      weight_decay: :math:`\lambda`, L2 penalty; live.
      nesterov: step along the gradient plus the momentum; static.
      maximize: ascend; static.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.sgd(lr=0.1, momentum=0.9)
      >>> params = {"w": jnp.array([1.0])}
      >>> params, state = optimizer.step({"w": jnp.array([2.0])}, optimizer.init(params), params)
      >>> params["w"]
      Array([0.8], dtype=float32)

    Source: torch/optim/sgd.py; Sutskever et al., On the importance of initialization and momentum in deep learning,
    2013.
    """
    ...

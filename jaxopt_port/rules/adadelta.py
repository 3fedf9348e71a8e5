r"""Adadelta: an adaptive learning rate method."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.factory import factory
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import Rule, Scalars, ScalarState
from jaxopt_port.rules.tensor_ops import add_weight_decay, moving_square, rounded, stored
from jaxopt_port.scalars import Scalar, check_at_least_0, check_lr, is_known


class AdadeltaState(NamedTuple):
    square_avg: jax.Array
    acc_delta: jax.Array


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    c = {
        "neg_lr": -hyper.lr,
        "rho": hyper.rho,
        "weight": 1 - hyper.rho,
        "eps": hyper.eps,
        "weight_decay": hyper.weight_decay,
    }
    return c, state


def update(p: jax.Array, g: jax.Array, slot: AdadeltaState, c: SimpleNamespace) -> tuple[jax.Array, AdadeltaState]:
    decayed = add_weight_decay(g, p, c.weight_decay)
    square_avg = stored(moving_square(slot.square_avg, decayed, c.rho, c.weight), g, c)
    again = add_weight_decay(g, p, c.weight_decay * c.another_one)  # for its own kernel
    delta = stored(jnp.sqrt(slot.acc_delta + c.eps) / rounded(jnp.sqrt(square_avg + c.eps)) * again, g, c)
    acc_delta = moving_square(slot.acc_delta, delta, c.rho, c.weight)
    return p + c.neg_lr * delta, AdadeltaState(square_avg, acc_delta)


def check(options: Mapping[str, Any]) -> None:
    check_lr(options["lr"])
    if is_known(options["rho"]) and not 0.0 <= options["rho"] <= 1.0:
        raise ValueError(f"Invalid rho value: {options['rho']}")
    check_at_least_0("epsilon value", options["eps"])
    check_at_least_0("weight_decay value", options["weight_decay"])


ADADELTA = Rule(
    "adadelta",
    AdadeltaState,
    scalars,
    update,
    check=check,
    live=("lr", "rho", "eps", "weight_decay"),
    elementwise=True,
    torch="Adadelta",
)


@factory(ADADELTA)
def adadelta(
    lr: Scalar = 1.0,
    rho: Scalar = 0.9,
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    *,
    maximize: bool = False,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""Adadelta: torch.optim.Adadelta.

    .. math::
      g_t &= \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
      v_t &= \rho v_{t-1} + (1 - \rho) g_t^2 \\
      \Delta_t &= \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}} g_t \\
      u_t &= \rho u_{t-1} + (1 - \rho) \Delta_t^2 \\
      \theta_t &= \theta_{t-1} - \gamma \Delta_t

    Args:
      lr: :math:`\gamma`, scales the step; live.
      rho: :math:`\rho`, decay of both averages, in [0, 1]; live.
      eps: :math:`\epsilon`, added inside both roots; live.
      weight_decay: :math:`\lambda`, L2 penalty; live.
      maximize: ascend; static.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.adadelta()
      >>> params = jnp.array(1.0)
      >>> params, state = optimizer.step(jnp.array(1.0), optimizer.init(params), params)
      >>> f"{params:.5f}"
      '0.99684'

    Source: torch/optim/adadelta.py; Zeiler, ADADELTA: An Adaptive Learning Rate Method, 2012.
    """
    ...

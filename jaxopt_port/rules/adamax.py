r"""Adamax: Adam with the infinity norm."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.factory import factory
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import Rule, Scalars, ScalarState
from jaxopt_port.rules.tensor_ops import add_weight_decay, lerp
from jaxopt_port.scalars import Scalar, check_moments


class AdamaxState(NamedTuple):
    exp_avg: jax.Array
    exp_inf: jax.Array


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    beta1, beta2 = hyper.betas
    c = {
        "neg_clr": -(hyper.lr / (1 - beta1**step)),
        "weight1": 1 - beta1,
        "beta2": beta2,
        "eps": hyper.eps,
        "weight_decay": hyper.weight_decay,
    }
    return c, state


def update(p: jax.Array, g: jax.Array, slot: AdamaxState, c: SimpleNamespace) -> tuple[jax.Array, AdamaxState]:
    g = add_weight_decay(g, p, c.weight_decay)
    exp_avg = lerp(slot.exp_avg, g, c.weight1)
    exp_inf = jnp.maximum(slot.exp_inf * c.beta2, jnp.abs(g) + c.eps)
    return p + c.neg_clr * exp_avg / exp_inf, AdamaxState(exp_avg, exp_inf)


ADAMAX = Rule(
    "adamax",
    AdamaxState,
    scalars,
    update,
    check=check_moments,
    live=("lr", "betas", "eps", "weight_decay"),
    elementwise=True,
    torch="Adamax",
)


@factory(ADAMAX)
def adamax(
    lr: Scalar = 2e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    *,
    maximize: bool = False,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""Adamax: torch.optim.Adamax.

    .. math::
      g_t &= \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
      m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
      u_t &= \max(\beta_2 u_{t-1}, |g_t| + \epsilon) \\
      \theta_t &= \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t} \frac{m_t}{u_t}

    :math:`\epsilon` stands inside the maximum, not in the denominator, and :math:`u_t` has no bias correction. A
    gradient that has always been 0 with `eps=0` makes the step NaN, as in torch.

    Args:
      lr: :math:`\gamma`, learning rate; live.
      betas: :math:`\beta_1, \beta_2`, decay of the moment and of the norm, in [0, 1); live.
      eps: :math:`\epsilon`, added to the gradient's absolute value; live.
      weight_decay: :math:`\lambda`, L2 penalty; live.
      maximize: ascend; static.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.adamax(lr=0.1)
      >>> params = jnp.array([3.0, -2.0])
      >>> params, state = optimizer.step(jnp.array([6.0, -4.0]), optimizer.init(params), params)
      >>> params
      Array([ 2.9, -1.9], dtype=float32)

    Source: torch/optim/adamax.py; Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, section 7.1.
    """
    ...

r"""NAdam: Adam with Nesterov momentum."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.factory import factory
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import Rule, Scalars, ScalarState
from jaxopt_port.rules.tensor_ops import decayed, lerp, moving_square, over
from jaxopt_port.scalars import Scalar, check_at_least_0, check_moments


class NAdamState(NamedTuple):
    exp_avg: jax.Array
    exp_avg_sq: jax.Array


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    beta1, beta2 = hyper.betas
    mu = beta1 * (1 - 0.5 * 0.96 ** (step * hyper.momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * hyper.momentum_decay))
    mu_product = state["mu_product"] * mu.astype(
        jnp.float32
    )  # a float32 tensor in torch, whatever the parameter's dtype
    product = mu_product.astype(jnp.float64)
    c = {
        "bias_correction2": 1 - beta2**step,
        "weight1": 1 - beta1,
        "beta2": beta2,
        "weight2": 1 - beta2,
        "eps": hyper.eps,
        "weight_decay": hyper.weight_decay,
        "decay": 1 - hyper.lr * hyper.weight_decay,
        "g_step_size": -hyper.lr * (1 - mu) / (1 - product),
        "m_step_size": -hyper.lr * mu_next / (1 - product * mu_next),
    }
    return c, {"mu_product": mu_product}


def update(p: jax.Array, g: jax.Array, slot: NAdamState, c: SimpleNamespace) -> tuple[jax.Array, NAdamState]:
    p, g = decayed(p, g, c)
    exp_avg = lerp(slot.exp_avg, g, c.weight1)
    exp_avg_sq = moving_square(slot.exp_avg_sq, g, c.beta2, c.weight2)
    denom = jnp.sqrt(over(exp_avg_sq, c.bias_correction2)) + c.eps
    p = p + c.g_step_size * g / denom
    return p + c.m_step_size * exp_avg / denom, NAdamState(exp_avg, exp_avg_sq)


def check(options: Mapping[str, Any]) -> None:
    check_moments(options)
    check_at_least_0("momentum_decay value", options["momentum_decay"])


NADAM = Rule(
    "nadam",
    NAdamState,
    scalars,
    update,
    check=check,
    live=("lr", "betas", "eps", "weight_decay", "momentum_decay"),
    scalar_state={"mu_product": np.float32(1)},
    elementwise=True,
    torch="NAdam",
)


@factory(NADAM)
def nadam(
    lr: Scalar = 2e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    momentum_decay: Scalar = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""NAdam: torch.optim.NAdam.

    .. math::
      g_t &= \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
      \mu_t &= \beta_1 (1 - \tfrac{1}{2} 0.96^{t \psi}), \quad \pi_t = \pi_{t-1} \mu_t, \quad \pi_0 = 1 \\
      m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
      v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
      \theta_t &= \theta_{t-1} - \gamma \left( \frac{1 - \mu_t}{1 - \pi_t} g_t
                  + \frac{\mu_{t+1}}{1 - \pi_t \mu_{t+1}} m_t \right) / \left( \sqrt{v_t / (1 - \beta_2^t)} +
                  \epsilon \right)

    The product :math:`\pi_t` (`mu_product`, a scalar a parameter) is float32 as in torch, for float64 parameters too.
    The root is taken after the bias correction, where Adam divides two roots; gradient and moment are added one after
    the other.

    Args:
      lr: :math:`\gamma`, learning rate; live.
      betas: :math:`\beta_1, \beta_2`, decay of the two moments, in [0, 1); live.
      eps: :math:`\epsilon`, added to the denominator; live.
      weight_decay: :math:`\lambda`, L2 penalty; live.
      momentum_decay: :math:`\psi`, how fast the momentum grows; live.
      decoupled_weight_decay: decay the parameter instead of the gradient, as AdamW does; static.
      maximize: ascend; static.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.nadam(lr=0.1)
      >>> params = jnp.array([3.0, -2.0])
      >>> params, state = optimizer.step(jnp.array([6.0, -4.0]), optimizer.init(params), params)
      >>> f"{params[0]:.4f}, {state.steps[0]['mu_product']:.4f}"
      '2.8944, 0.4501'

    Source: torch/optim/nadam.py; Dozat, Incorporating Nesterov Momentum into Adam, 2016.
    """
    ...

r"""RAdam: Adam with a rectified learning rate."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.factory import factory
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import Rule, Scalars, ScalarState
from jaxopt_port.rules.tensor_ops import decayed, lerp, moving_square, over, rounded
from jaxopt_port.scalars import Scalar, check_moments


class RAdamState(NamedTuple):
    exp_avg: jax.Array
    exp_avg_sq: jax.Array


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    beta1, beta2 = hyper.betas
    bias_correction2 = 1 - beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / bias_correction2
    square = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    c = {
        "lr": hyper.lr,
        "bias_correction1": 1 - beta1**step,
        "bias_correction2_sqrt": bias_correction2**0.5,
        "rectified": rho > 5,
        "rect": jnp.where(rho > 5, square, 1) ** 0.5,  # no root of a negative number, whose derivative is NaN
        "weight1": 1 - beta1,
        "beta2": beta2,
        "weight2": 1 - beta2,
        "eps": hyper.eps,
        "weight_decay": hyper.weight_decay,
        "decay": 1 - hyper.lr * hyper.weight_decay,
    }
    return c, state


def update(p: jax.Array, g: jax.Array, slot: RAdamState, c: SimpleNamespace) -> tuple[jax.Array, RAdamState]:
    p, g = decayed(p, g, c)
    exp_avg = lerp(slot.exp_avg, g, c.weight1)
    exp_avg_sq = moving_square(slot.exp_avg_sq, g, c.beta2, c.weight2)
    plain = over(exp_avg, c.bias_correction1) * c.lr
    # torch divides a number by a tensor as the tensor's reciprocal times the number
    adaptive = 1 / (jnp.sqrt(exp_avg_sq) + c.eps) * c.bias_correction2_sqrt
    step = jnp.where(c.rectified, plain * adaptive * c.rect, plain)
    return p - rounded(step), RAdamState(exp_avg, exp_avg_sq)


RADAM = Rule(
    "radam",
    RAdamState,
    scalars,
    update,
    check=check_moments,
    live=("lr", "betas", "eps", "weight_decay"),
    elementwise=True,
    torch="RAdam",
)


@factory(RADAM)
def radam(
    lr: Scalar = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""RAdam: torch.optim.RAdam.

    .. math::
      g_t &= \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
      m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
      v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
      \rho_\infty &= 2 / (1 - \beta_2) - 1, \quad
      \rho_t = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t) \\
      r_t &= \sqrt{\frac{(\rho_t - 4) (\rho_t - 2) \rho_\infty}{(\rho_\infty - 4) (\rho_\infty - 2) \rho_t}}
             \frac{\sqrt{1 - \beta_2^t}}{\sqrt{v_t} + \epsilon} \text{ if } \rho_t > 5 \text{ else } 1 \\
      \theta_t &= \theta_{t-1} - \gamma \frac{m_t}{1 - \beta_1^t} r_t

    While :math:`\rho_t \le 5` (the first five steps with the default betas) nothing divides the moment: the step has
    the gradient's size. The threshold is torch's 5, the paper's is 4. :math:`\epsilon` is added to the root before its
    bias correction.

    Args:
      lr: :math:`\gamma`, learning rate; live.
      betas: :math:`\beta_1, \beta_2`, decay of the two moments, in [0, 1); live.
      eps: :math:`\epsilon`, added to the denominator; live.
      weight_decay: :math:`\lambda`, L2 penalty; live.
      decoupled_weight_decay: decay the parameter instead of the gradient, as AdamW does; static.
      maximize: ascend; static.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.radam(lr=0.1)
      >>> params = jnp.array([3.0, -2.0])
      >>> params, state = optimizer.step(jnp.array([6.0, -4.0]), optimizer.init(params), params)
      >>> params
      Array([ 2.4, -1.6], dtype=float32)

    Source: torch/optim/radam.py; Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, 2020.
    """
    ...

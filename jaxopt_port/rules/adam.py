r"""Adam: adaptive moment estimation."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
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
from jaxopt_port.scalars import Scalar, check_moments


class AdamState(NamedTuple):
    exp_avg: jax.Array
    exp_avg_sq: jax.Array
    max_exp_avg_sq: jax.Array | None  # with amsgrad


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    beta1, beta2 = hyper.betas
    c = {
        "neg_step_size": -(hyper.lr / (1 - beta1**step)),
        "bias_correction2_sqrt": (1 - beta2**step) ** 0.5,
        "weight1": 1 - beta1,
        "beta2": beta2,
        "weight2": 1 - beta2,
        "eps": hyper.eps,
        "weight_decay": hyper.weight_decay,
        "decay": 1 - hyper.lr * hyper.weight_decay,
    }
    return c, state


def update(p: jax.Array, g: jax.Array, slot: AdamState, c: SimpleNamespace) -> tuple[jax.Array, AdamState]:
    p, g = decayed(p, g, c)
    exp_avg = lerp(slot.exp_avg, g, c.weight1)
    exp_avg_sq = moving_square(slot.exp_avg_sq, g, c.beta2, c.weight2)
    maximum = None if slot.max_exp_avg_sq is None else jnp.maximum(slot.max_exp_avg_sq, exp_avg_sq)
    denom = over(jnp.sqrt(exp_avg_sq if maximum is None else maximum), c.bias_correction2_sqrt) + c.eps
    return p + c.neg_step_size * exp_avg / denom, AdamState(exp_avg, exp_avg_sq, maximum)


def check(options: Mapping[str, Any]) -> None:
    check_moments(options)
    if len({isinstance(beta, np.ndarray | jax.Array) for beta in options["betas"]}) > 1:
        raise ValueError("betas must be either both floats or both Tensors")


ADAM = Rule(
    "adam",
    AdamState,
    scalars,
    update,
    check=check,
    live=("lr", "betas", "eps", "weight_decay"),
    optional={"max_exp_avg_sq": attrgetter("amsgrad")},
    elementwise=True,
    torch="Adam",
)


@factory(ADAM)
def adam(
    lr: Scalar = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""Adam: torch.optim.Adam.

    .. math::
      g_t &= \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
      m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
      v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
      \theta_t &= \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t}
                  \frac{m_t}{\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon}

    With `amsgrad` the largest :math:`v` so far, before its bias correction, stands in the denominator.

    Args:
      lr: :math:`\gamma`, learning rate; live.
      betas: :math:`\beta_1, \beta_2`, decay of the two moments, in [0, 1); live.
      eps: :math:`\epsilon`, added to the denominator; live.
      weight_decay: :math:`\lambda`, L2 penalty; live.
      amsgrad: keep the largest second moment; static, decides whether `max_exp_avg_sq` exists.
      maximize: ascend; static.
      decoupled_weight_decay: decay the parameter instead of the gradient, as AdamW does; static.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.adam(lr=0.1)
      >>> params = jnp.array([3.0, -2.0])
      >>> params, state = optimizer.step(jnp.array([6.0, -4.0]), optimizer.init(params), params)
      >>> params
      Array([ 2.9, -1.9], dtype=float32)

    Source: torch/optim/adam.py; Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015; Reddi et al., On the
    Convergence of Adam and Beyond, 2018 (amsgrad).
    """
    ...

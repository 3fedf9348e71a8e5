r"""RMSprop: gradients divided by a running root mean square."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.factory import factory
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import Rule, Scalars, ScalarState
from jaxopt_port.rules.tensor_ops import add_weight_decay, lerp, moving_square, rounded, stored
from jaxopt_port.scalars import Scalar, check_at_least_0, check_lr, is_on


class RMSpropState(NamedTuple):
    square_avg: jax.Array
    momentum_buffer: jax.Array | None  # None without momentum
    grad_avg: jax.Array | None  # with centered


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    c = {
        "neg_lr": -hyper.lr,
        "alpha": hyper.alpha,
        "weight": 1 - hyper.alpha,
        "eps": hyper.eps,
        "weight_decay": hyper.weight_decay,
        "momentum": hyper.momentum,
        "has_momentum": hyper.momentum > 0,  # asked before it is rounded, to 0 perhaps
    }
    return c, state


def update(p: jax.Array, g: jax.Array, slot: RMSpropState, c: SimpleNamespace) -> tuple[jax.Array, RMSpropState]:
    decayed = [  # the same, once for each array's own kernel
        add_weight_decay(g, p, c.weight_decay * one) for one in (1.0, c.one, c.another_one, c.one * c.another_one)
    ]
    has_momentum = c.has_momentum
    square_avg = stored(moving_square(slot.square_avg, decayed[0], c.alpha, c.weight), g, c)
    grad_avg = None if slot.grad_avg is None else stored(lerp(slot.grad_avg, decayed[1], c.weight), g, c)
    variance = square_avg if grad_avg is None else square_avg - grad_avg * grad_avg
    if slot.momentum_buffer is None:
        return p + c.neg_lr * decayed[2] / (jnp.sqrt(variance) + c.eps), RMSpropState(square_avg, None, grad_avg)
    moved = rounded(slot.momentum_buffer * c.momentum) + decayed[2] / (jnp.sqrt(variance) + c.eps)
    buffer = stored(jnp.where(has_momentum, moved, slot.momentum_buffer), g, c)
    without = c.neg_lr * decayed[3] / (jnp.sqrt(jnp.where(has_momentum, 1, variance)) + c.eps)
    new_p = p + jnp.where(has_momentum, c.neg_lr * buffer, without)
    return new_p, RMSpropState(square_avg, buffer, grad_avg)


def check(options: Mapping[str, Any]) -> None:
    check_lr(options["lr"])
    check_at_least_0("epsilon value", options["eps"])
    check_at_least_0("momentum value", options["momentum"])
    check_at_least_0("weight_decay value", options["weight_decay"])
    check_at_least_0("alpha value", options["alpha"])


def has_momentum(options: SimpleNamespace) -> bool:
    return is_on(options.momentum)


RMSPROP = Rule(
    "rmsprop",
    RMSpropState,
    scalars,
    update,
    check=check,
    live=("lr", "alpha", "eps", "weight_decay", "momentum"),
    structural=("momentum",),
    optional={"momentum_buffer": has_momentum, "grad_avg": attrgetter("centered")},
    elementwise=True,
    torch="RMSprop",
)


@factory(RMSPROP)
def rmsprop(
    lr: Scalar = 1e-2,
    alpha: Scalar = 0.99,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    momentum: Scalar = 0.0,
    centered: bool = False,
    *,
    maximize: bool = False,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""RMSprop: torch.optim.RMSprop.

    .. math::
      g_t &= \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
      v_t &= \alpha v_{t-1} + (1 - \alpha) g_t^2 \\
      a_t &= \alpha a_{t-1} + (1 - \alpha) g_t \text{ if centered else } 0 \\
      b_t &= \mu b_{t-1} + g_t / (\sqrt{v_t - a_t^2} + \epsilon) \\
      \theta_t &= \theta_{t-1} - \gamma b_t

    :math:`\epsilon` is added after the root (TensorFlow's stands inside), and :math:`v_t - a_t^2` is not clamped: it
    can be below 0 by rounding, and the step NaN, as in torch.

    Args:
      lr: :math:`\gamma`, learning rate; live.
      alpha: :math:`\alpha`, decay of the averages; live.
      eps: :math:`\epsilon`, added to the denominator; live.
      weight_decay: :math:`\lambda`, L2 penalty; live.
      momentum: :math:`\mu`; live, unless it is 0 when the optimizer is made: then there is no buffer.
      centered: divide by the standard deviation instead; static, decides whether `grad_avg` exists.
      maximize: ascend; static.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.rmsprop(lr=0.1)
      >>> params = jnp.array([1.0])
      >>> params, state = optimizer.step(jnp.array([5.0]), optimizer.init(params), params)
      >>> f"{abs(params[0]):.5f}"
      '0.00000'

    Source: torch/optim/rmsprop.py; Hinton, Neural Networks for Machine Learning, lecture 6, 2012; Graves, Generating
    Sequences With Recurrent Neural Networks, 2013 (centered).
    """
    ...

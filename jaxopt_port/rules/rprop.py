r"""Rprop: resilient backpropagation."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.factory import factory
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import Rule, Scalars, ScalarState
from jaxopt_port.rules.tensor_ops import sign, stored
from jaxopt_port.scalars import Scalar, check_lr, check_pair, is_known


class RpropState(NamedTuple):
    prev: jax.Array
    step_size: jax.Array


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    etaminus, etaplus = hyper.etas
    step_size_min, step_size_max = hyper.step_sizes
    c = {
        "first": step == 1,
        "lr": hyper.lr,
        "etaminus": etaminus,
        "etaplus": etaplus,
        "step_size_min": step_size_min,
        "step_size_max": step_size_max,
    }
    return c, state


def update(p: jax.Array, g: jax.Array, slot: RpropState, c: SimpleNamespace) -> tuple[jax.Array, RpropState]:
    def turned(one: jax.Array | float) -> tuple[jax.Array, jax.Array]:
        """The factor and the gradient, which is 0 where its sign has changed: once for each array's own kernel."""
        turn = sign(g * slot.prev)
        factor = jnp.where(turn > 0, c.etaplus, jnp.where(turn < 0, c.etaminus * one, turn))
        factor = jnp.where(factor == 0, 1, factor)
        return factor, jnp.where(factor == c.etaminus * one, 0, g)

    step_size = jnp.where(c.first, c.lr, slot.step_size) * turned(1.0)[0]
    step_size = stored(jnp.minimum(jnp.maximum(step_size, c.step_size_min), c.step_size_max), g, c)
    p = stored(p - sign(turned(c.one)[1]) * step_size, step_size, c)
    prev = jnp.where(p > 0, turned(c.another_one)[1], turned(c.one * c.another_one)[1])  # after p, which reads the old
    return p, RpropState(prev, step_size)


def check(options: Mapping[str, Any]) -> None:
    check_lr(options["lr"])
    check_pair("etas", options["etas"])
    check_pair("step_sizes", options["step_sizes"])
    etaminus, etaplus = options["etas"]
    if is_known(etaminus) and is_known(etaplus) and not 0.0 < etaminus < 1.0 < etaplus:
        raise ValueError(f"Invalid eta values: {etaminus}, {etaplus}")


RPROP = Rule(
    "rprop",
    RpropState,
    scalars,
    update,
    check=check,
    live=("lr", "etas", "step_sizes"),
    elementwise=True,
    torch="Rprop",
)


@factory(RPROP)
def rprop(
    lr: Scalar = 1e-2,
    etas: tuple[Scalar, Scalar] = (0.5, 1.2),
    step_sizes: tuple[Scalar, Scalar] = (1e-6, 50),
    *,
    maximize: bool = False,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""Rprop: torch.optim.Rprop.

    .. math::
      s_t &= s_{t-1} \cdot (\eta_+ \text{ if } g_t \tilde g_{t-1} > 0, \; \eta_- \text{ if } < 0, \; 1 \text{ if } 0),
             \text{ within } [s_{min}, s_{max}], \quad s_0 = \gamma \\
      \tilde g_t &= 0 \text{ if } g_t \tilde g_{t-1} < 0 \text{ else } g_t, \quad \tilde g_0 = 0 \\
      \theta_t &= \theta_{t-1} - \operatorname{sign}(\tilde g_t) s_t

    `lr` is only the first step size of a parameter: that of its first step, which a warm-up may have changed by then;
    what a scheduler does to it later has no effect. A gradient that is NaN leaves its parameter as it is, since torch's
    sign of NaN is 0. There is no weight decay.

    Args:
      lr: :math:`\gamma`, the first step size; live.
      etas: :math:`\eta_-, \eta_+`, the factors when the gradient's sign changes and when it stays; live.
      step_sizes: :math:`s_{min}, s_{max}`, not validated; live.
      maximize: ascend; static.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.rprop(lr=0.1)
      >>> params = jnp.array([3.0, -2.0])
      >>> params, state = optimizer.step(jnp.array([6.0, -4.0]), optimizer.init(params), params)
      >>> params
      Array([ 2.9, -1.9], dtype=float32)

    Source: torch/optim/rprop.py; Riedmiller and Braun, A Direct Adaptive Method for Faster Backpropagation Learning:
    The RPROP Algorithm, 1993.
    """
    ...

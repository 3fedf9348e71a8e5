r"""Adafactor: second moments of a matrix kept as one row and one column."""

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
from jaxopt_port.rules.tensor_ops import lerp, norm, rounded
from jaxopt_port.scalars import (
    Scalar,
    check_one_element,
    check_pair,
    check_should_be,
    float64,
    is_known,
    python_max,
    python_min,
)

LAST_TWO = -2, -1  # axes


class AdafactorState(NamedTuple):
    row_var: jax.Array | None  # of arrays with two or more axes
    col_var: jax.Array | None
    variance: jax.Array | None  # of vectors and scalars


def init(p: jax.Array, options: SimpleNamespace) -> AdafactorState:
    if p.ndim < 2:
        return AdafactorState(None, None, jnp.zeros_like(p))
    row_axis, col_axis = options.factored_axes or LAST_TWO
    with float64():  # without it a sum of float64 is float32; on a mesh it keeps the other axes' sharding
        row, col = (jnp.sum(p, axis, keepdims=True) for axis in (col_axis, row_axis))
        return AdafactorState(jnp.zeros_like(row), jnp.zeros_like(col), None)


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    eps1, eps2 = hyper.eps
    c = {
        "weight": step**hyper.beta2_decay,
        "rho": python_min(hyper.lr, 1 / step**0.5),
        "decay": 1 - hyper.lr * hyper.weight_decay,
        "d": hyper.d,
        "eps2": eps2,
    }
    return (c if eps1 is None else {**c, "eps1": eps1}), state


def update(p: jax.Array, g: jax.Array, slot: AdafactorState, c: SimpleNamespace) -> tuple[jax.Array, AdafactorState]:
    with float64():
        eps1 = getattr(c, "eps1", np.float64(jnp.finfo(c.dtype).eps))
        alpha = python_max(c.eps2, norm(p).astype(jnp.float64) / p.size**0.5) * c.rho
        least, least_square, weight, decay = (x.astype(p.dtype) for x in (eps1, eps1 * eps1, c.weight, c.decay))
    if slot.variance is not None:
        variance = lerp(slot.variance, g * g, weight)
        slot = AdafactorState(None, None, variance)
    else:
        assert slot.row_var is not None
        assert slot.col_var is not None
        row_axis, col_axis = c.factored_axes or LAST_TWO
        row_var = lerp(slot.row_var, jnp.square(norm(g, col_axis)) / g.shape[col_axis], weight)
        col_var = lerp(slot.col_var, jnp.square(norm(g, row_axis)) / g.shape[row_axis], weight)
        variance = row_var * col_var / jnp.maximum(jnp.mean(row_var, row_axis, keepdims=True), least)
        slot = AdafactorState(row_var, col_var, None)
    direction = 1 / rounded(jnp.sqrt(jnp.maximum(variance, least_square))) * g
    with float64():
        clip = python_max(1.0, norm(direction).astype(jnp.float64) / (p.size**0.5 * c.d))
        neg_step_size = (-alpha / clip).astype(p.dtype)
    return rounded(p * decay) + neg_step_size * direction, slot


def check(options: Mapping[str, Any]) -> None:
    check_one_element(options["lr"])
    check_should_be("Learning rate", options["lr"], at_least=0)
    if is_known(options["beta2_decay"]) and not options["beta2_decay"] <= 0.0:
        raise ValueError(f"beta2_decay should be <= 0 but is: {options['beta2_decay']}")
    check_pair("eps", options["eps"])
    eps1, eps2 = options["eps"]
    if eps1 is not None:
        check_should_be("epsilon1", eps1, at_least=0)
    check_should_be("epsilon2", eps2, at_least=0)
    check_should_be("Clipping threshold d", options["d"], at_least=1)
    check_should_be("weight_decay", options["weight_decay"], at_least=0)
    axes = options["factored_axes"]
    two = isinstance(axes, tuple) and len(axes) == 2 and all(type(axis) is int for axis in axes)
    if axes is not None and not two:
        raise ValueError(f"factored_axes must be two axes, such as (0, 1), or None for the last two, not {axes!r}")


def check_param(p: jax.Array, options: SimpleNamespace) -> None:
    if options.factored_axes is not None and p.ndim > 1:
        outside = [axis for axis in options.factored_axes if not -p.ndim <= axis < p.ndim]
        if outside or len({axis % p.ndim for axis in options.factored_axes}) == 1:
            raise ValueError(
                f"factored_axes {options.factored_axes} does not fit a parameter with size {list(p.shape)}: they must "
                "be two different axes of it"
            )
    if jnp.iscomplexobj(p):
        raise RuntimeError("Adafactor does not support complex parameters")


ADAFACTOR = Rule(
    "adafactor",
    AdafactorState,
    scalars,
    update,
    init=init,
    check=check,
    live=("lr", "beta2_decay", "eps", "d", "weight_decay"),
    check_param=check_param,
    float64_update=True,
    torch="Adafactor",
)


@factory(ADAFACTOR)
def adafactor(
    lr: Scalar = 1e-2,
    beta2_decay: Scalar = -0.8,
    eps: tuple[Scalar | None, Scalar] = (None, 1e-3),
    d: Scalar = 1.0,
    weight_decay: Scalar = 0.0,
    *,
    maximize: bool = False,
    factored_axes: tuple[int, int] | None = None,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""Adafactor: torch.optim.Adafactor.

    .. math::
      w_t &= t^\tau, \quad \alpha_t = \max(\epsilon_2, \operatorname{RMS}(\theta_{t-1})) \min(\gamma, 1 / \sqrt t) \\
      R_t &= (1 - w_t) R_{t-1} + w_t \, \text{mean of } g_t^2 \text{ along the last axis} \\
      C_t &= (1 - w_t) C_{t-1} + w_t \, \text{mean of } g_t^2 \text{ along the last axis but one} \\
      v_t &= R_t C_t / \max(\operatorname{mean}(R_t), \epsilon_1) \\
      u_t &= g_t / \sqrt{\max(v_t, \epsilon_1^2)} \\
      \theta_t &= (1 - \gamma \lambda) \theta_{t-1}
                  - \frac{\alpha_t}{\max(1, \operatorname{RMS}(u_t) / d)} u_t

    Vectors and scalars keep their whole second moment, :math:`v_t = (1 - w_t) v_{t-1} + w_t g_t^2`. Arrays with more
    than two axes are factored over the last two, as in torch: its kernel `[out, in, height, width]` over the window. A
    Flax kernel `[height, width, in, out]` has these first: `factored_axes=(0, 1)` takes torch's steps, for the kernels
    `[in, out]` in the same group too (a matrix has but two axes, and which comes first makes no difference).

    The root mean square of the parameter is taken before its decay, and the decay uses `lr` itself. One that is NaN
    counts as 0, and that of :math:`u_t` as 1, as Python's `max` has it. With `eps[0]=None` each parameter uses the
    machine epsilon of its own dtype; torch 2.13 uses that of a group's first parameter for all of them.

    Args:
      lr: :math:`\gamma`, upper bound of the relative step; live.
      beta2_decay: :math:`\tau`, at most 0, how fast the averages lengthen; live.
      eps: :math:`\epsilon_1, \epsilon_2`, least divisor and least size of a parameter; live, but a None is fixed.
      d: :math:`d`, clips the root mean square of the step, at least 1; live.
      weight_decay: :math:`\lambda`, decoupled; live.
      maximize: ascend; static.
      factored_axes: which two axes are torch's last two, `(row axis, column axis)`, of arrays with two or more; by
        default the last two here; static, may differ by group.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words; axes that a parameter does not have (`init`).
      RuntimeError: a complex parameter (`init`).

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.adafactor(lr=0.1)
      >>> params = jnp.ones((2, 3))
      >>> params, state = optimizer.step(jnp.full((2, 3), 5.0), optimizer.init(params), params)
      >>> params[0], state.slots.row_var.shape, state.slots.col_var.shape
      (Array([0.9, 0.9, 0.9], dtype=float32), (2, 1), (1, 3))

    Source: torch/optim/_adafactor.py; Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory
    Cost, 2018.
    """
    ...

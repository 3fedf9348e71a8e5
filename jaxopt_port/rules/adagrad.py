r"""Adagrad: adaptive subgradient methods."""

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
from jaxopt_port.rules.tensor_ops import add_weight_decay, square
from jaxopt_port.scalars import Scalar, check_at_least_0, check_lr


class AdagradState(NamedTuple):
    sum: jax.Array


def init(p: jax.Array, options: SimpleNamespace) -> AdagradState:
    return AdagradState(jnp.full_like(p, options.initial_accumulator_value))


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    return {
        "neg_clr": -(hyper.lr / (1 + (step - 1) * hyper.lr_decay)),
        "eps": hyper.eps,
        "weight_decay": hyper.weight_decay,
    }, state


def update(p: jax.Array, g: jax.Array, slot: AdagradState, c: SimpleNamespace) -> tuple[jax.Array, AdagradState]:
    if is_sparse(g):
        return _update_rows(p, g, slot, c)
    g = add_weight_decay(g, p, c.weight_decay)
    total = slot.sum + g * g
    return p + c.neg_clr * g / (jnp.sqrt(total) + c.eps), AdagradState(total)


def _update_rows(p: jax.Array, g: Any, slot: AdagradState, c: SimpleNamespace) -> tuple[jax.Array, AdagradState]:
    rows = coalesced(g)
    values = jnp.where(c.weight_decay == 0, rows.values, jnp.nan)  # set since: torch raises
    total = rows.of(slot.sum) + square(values)
    step = values / (jnp.sqrt(total) + c.eps)
    return rows.put(p, rows.of(p) + c.neg_clr * step), AdagradState(rows.put(slot.sum, total))


def check(options: Mapping[str, Any]) -> None:
    check_lr(options["lr"])
    check_at_least_0("lr_decay value", options["lr_decay"])
    check_at_least_0("weight_decay value", options["weight_decay"])
    check_at_least_0("initial_accumulator_value value", options["initial_accumulator_value"])
    check_at_least_0("epsilon value", options["eps"])


ADAGRAD = Rule(
    "adagrad",
    AdagradState,
    scalars,
    update,
    init=init,
    check=check,
    check_grad=check_rows_without_decay,
    live=("lr", "lr_decay", "weight_decay", "eps"),
    common=("initial_accumulator_value",),
    elementwise=True,
    torch="Adagrad",
)


@factory(ADAGRAD)
def adagrad(
    lr: Scalar = 1e-2,
    lr_decay: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: Scalar = 1e-10,
    *,
    maximize: bool = False,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""Adagrad: torch.optim.Adagrad.

    .. math::
      g_t &= \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
      s_t &= s_{t-1} + g_t^2 \\
      \theta_t &= \theta_{t-1} - \frac{\gamma}{1 + (t - 1) \eta} \frac{g_t}{\sqrt{s_t} + \epsilon}

    As in torch, every group starts from the optimizer's own `initial_accumulator_value`: one given to a group has no
    effect.

    A row-sparse gradient, a `BCOO` as `sparse_adam` takes it, steps its rows.
    With a weight decay it is refused, as in torch; with one that `set_hyper` sets later its rows become NaN.

    Args:
      lr: :math:`\gamma`, learning rate; live.
      lr_decay: :math:`\eta`, decay of the learning rate; live.
      weight_decay: :math:`\lambda`, L2 penalty; live.
      initial_accumulator_value: :math:`s_0`; static.
      eps: :math:`\epsilon`, added to the denominator; live.
      maximize: ascend; static.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.adagrad(lr=0.1)
      >>> params = jnp.array([1.0])
      >>> params, state = optimizer.step(jnp.array([5.0]), optimizer.init(params), params)
      >>> params
      Array([0.9], dtype=float32)

    Source: torch/optim/adagrad.py; Duchi et al., Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization, 2011.
    """
    ...

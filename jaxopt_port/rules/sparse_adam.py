r"""SparseAdam: Adam on the rows that have a gradient."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.factory import factory
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import Rule, Scalars, ScalarState, is_sparse
from jaxopt_port.rules.sparse_rows import check_rows, coalesced
from jaxopt_port.rules.tensor_ops import rounded, square
from jaxopt_port.scalars import Scalar, check_above_0, check_betas, check_one_element

if TYPE_CHECKING:
    from jax.experimental.sparse import BCOO


class SparseAdamState(NamedTuple):
    exp_avg: jax.Array
    exp_avg_sq: jax.Array


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    beta1, beta2 = hyper.betas
    c = {
        "neg_step_size": -(hyper.lr * jnp.sqrt(1 - beta2**step) / (1 - beta1**step)),
        "weight1": 1 - beta1,
        "weight2": 1 - beta2,
        "eps": hyper.eps,
    }
    return c, state


def update(p: jax.Array, g: "BCOO", slot: SparseAdamState, c: SimpleNamespace) -> tuple[jax.Array, SparseAdamState]:
    rows = coalesced(g)
    values, exp_avg, exp_avg_sq = rows.values, rows.of(slot.exp_avg), rows.of(slot.exp_avg_sq)
    exp_avg = exp_avg + rounded((values - exp_avg) * c.weight1)
    exp_avg_sq = exp_avg_sq + rounded((square(values) - exp_avg_sq) * c.weight2)
    step = rounded(c.neg_step_size * (exp_avg / (jnp.sqrt(exp_avg_sq) + c.eps)))
    slot = SparseAdamState(rows.put(slot.exp_avg, exp_avg), rows.put(slot.exp_avg_sq, exp_avg_sq))
    return rows.put(p, rows.of(p) + step), slot


def check(options: Mapping[str, Any]) -> None:
    check_one_element(options["lr"])
    check_above_0("learning rate", options["lr"])
    check_above_0("epsilon value", options["eps"])
    check_betas(options["betas"])


def check_param(p: Any, options: SimpleNamespace) -> None:
    if is_sparse(p):
        raise ValueError("SparseAdam requires dense parameter tensors")
    if jnp.iscomplexobj(p):
        raise ValueError("SparseAdam does not support complex parameters")


def check_grad(g: Any, options: SimpleNamespace) -> None:
    if not is_sparse(g):
        raise RuntimeError("SparseAdam does not support dense gradients, please consider Adam instead")
    check_rows(g)


SPARSE_ADAM = Rule(
    "sparse_adam",
    SparseAdamState,
    scalars,
    update,
    check=check,
    live=("lr", "betas", "eps"),
    check_param=check_param,
    check_grad=check_grad,
    torch="SparseAdam",
)


@factory(SPARSE_ADAM)
def sparse_adam(
    lr: Scalar = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    maximize: bool = False,
    *,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""SparseAdam: torch.optim.SparseAdam, for embeddings.

    For the rows that are present in the gradient

    .. math::
      m_t &= m_{t-1} + (1 - \beta_1) (g_t - m_{t-1}) \\
      v_t &= v_{t-1} + (1 - \beta_2) (g_t^2 - v_{t-1}) \\
      \theta_t &= \theta_{t-1} - \gamma \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m_t}{\sqrt{v_t} + \epsilon}

    and the others stay as they are, moments too. :math:`t` counts the parameter's steps, not a row's, and a gradient
    without a row counts as one. :math:`\epsilon` is added to the root without a bias correction, so it weighs more in
    the first steps than Adam's.

    A gradient is a `jax.experimental.sparse.BCOO` with one sparse dimension: `data` of shape `[nse, ...]` holds rows,
    `indices` of shape `[nse, 1]` their numbers. Rows that appear twice are summed first; an index past the end is
    padding and has no effect, so that `nse` can stay the same from batch to batch. A `step` that is jitted with its
    state and parameters donated costs what `nse` rows cost, however many there are; `update` returns a dense array.

    Args:
      lr: :math:`\gamma`, learning rate, above 0; live.
      betas: :math:`\beta_1, \beta_2`, decay of the two moments, in [0, 1); live.
      eps: :math:`\epsilon`, added to the denominator, above 0; live.
      maximize: ascend; static.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words; a complex parameter (`init`).
      RuntimeError: a dense gradient (`step`).

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> from jax.experimental.sparse import BCOO
      >>> optimizer = optim.sparse_adam(lr=0.1)
      >>> table = jnp.zeros((4, 2))
      >>> rows, indices = jnp.ones((2, 2)), jnp.array([[3], [1]])
      >>> table, state = optimizer.step(BCOO((rows, indices), shape=(4, 2)), optimizer.init(table), table)
      >>> print(table.round(3))
      [[ 0.   0. ]
       [-0.1 -0.1]
       [ 0.   0. ]
       [-0.1 -0.1]]

    Source: torch/optim/sparse_adam.py and torch/optim/_functional.py.
    """
    ...

"""Row-sparse gradients: a `jax.experimental.sparse.BCOO` with one sparse dimension, the first."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxopt_port.rule import is_sparse
from jaxopt_port.scalars import is_on
from jaxopt_port.sharding import is_explicit

if TYPE_CHECKING:
    from jax.experimental.sparse import BCOO


def check_rows(g: Any) -> None:
    """Raise for a sparse gradient that is not one of rows, or on a mesh where rows cannot be gathered."""
    if not is_sparse(g):
        return
    if (g.n_batch, g.n_sparse) != (0, 1):
        raise ValueError(
            "sparse gradients need one sparse dimension, the first, and no batch dimension, not "
            f"n_sparse={g.n_sparse}, n_batch={g.n_batch}: BCOO((rows, indices), shape=...), indices of shape (nse, 1)"
        )
    if jnp.iscomplexobj(g.data):
        raise ValueError("sparse gradients of complex parameters are not supported: use g.todense()")
    if is_explicit(g.data):
        raise ValueError(
            "row-sparse gradients do not work on a mesh with explicit axes: make it with "
            "axis_types=(jax.sharding.AxisType.Auto,)"
        )


def check_rows_without_decay(g: Any, options: SimpleNamespace) -> None:
    """The `check_grad` of a rule that takes rows only where no weight decay moves the others."""
    check_rows(g)
    if is_sparse(g) and is_on(options.weight_decay):
        raise RuntimeError(
            f"weight_decay option is not compatible with sparse gradients: it is {options.weight_decay}; use 0, or "
            "g.todense()"
        )


def coalesced(g: "BCOO") -> "Rows":
    """The rows of a gradient, those that appear twice summed: torch's `coalesce`."""
    return Rows(g.sum_duplicates(nse=g.nse, remove_zeros=False))


class Rows:
    """Rows of a gradient. A row of zeros is one; what is left over has an index past the end, and has no effect."""

    def __init__(self, g: "BCOO"):
        self.indices, self.values = g.indices[:, 0], g.data

    def of(self, x: jax.Array) -> jax.Array:
        """These rows of an array, in the gradient's dtype."""
        return x.at[self.indices].get(mode="fill", fill_value=0).astype(self.values.dtype)

    def put(self, x: jax.Array, new: jax.Array) -> jax.Array:
        """The array with these rows replaced."""
        return x.at[self.indices].set(new.astype(x.dtype), mode="drop")

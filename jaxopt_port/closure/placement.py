"""Where the arrays of a state are, and whether they are of some parameters."""

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxopt_port.closure.flat import Leaves, Tree, flat_size, is_abstract
from jaxopt_port.param_groups import leaf_paths


class Zeros(Protocol):
    """Makes an array of zeros, or its shape and dtype."""

    def __call__(self, shape: tuple[int, ...], dtype: Any, *, like: Any = None) -> Any: ...


def placed_zeros(leaves: Leaves) -> Zeros:
    """Zeros on the devices of some parameters: one that is `like` a parameter sharded as it is, one whose last axis
    is a vector over all of them along the mesh axes that divide any of them, and anything else whole.

    A vector of a length that some of those axes do not divide is not divided along them. Neither is one on a mesh with
    explicit axes. For abstract parameters the zeros are so, too.
    """
    shardings = [x.sharding for x in leaves if is_abstract(x) or (isinstance(x, jax.Array) and _is_committed(x))]
    whole, divided = _of_vectors([sharding for sharding in shardings if sharding is not None], flat_size(leaves))
    size = flat_size(leaves)

    def zeros(shape: tuple[int, ...], dtype: Any, *, like: Any = None) -> Any:
        if like is not None:
            sharding = like.sharding if is_abstract(like) or _is_committed(like) else None
        else:
            sharding = divided(len(shape)) if shape and shape[-1] == size else whole
        if any(map(is_abstract, leaves)):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        return jnp.zeros(shape, dtype, device=sharding)

    return zeros


def shapes_alone(shape: tuple[int, ...], dtype: Any, *, like: Any = None) -> jax.ShapeDtypeStruct:
    """A `Zeros` that makes nothing."""
    del like
    return jax.ShapeDtypeStruct(shape, dtype)


def _is_committed(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer) and x.committed

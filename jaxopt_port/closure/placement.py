"""Where the arrays of a state are, and whether they are of some parameters."""

from collections.abc import Callable
from math import prod
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_port.closure.flat import Leaves, Tree, flat_size
from jaxopt_port.param_groups import leaf_paths
from jaxopt_port.scalars import is_known
from jaxopt_port.sharding import is_abstract


class Make(Protocol):
    """Makes an array of one value, or its shape and dtype."""

    def __call__(self, value: float, shape: tuple[int, ...], dtype: Any, *, like: Any = None) -> Any: ...


def abstract_like(value: float, shape: tuple[int, ...], dtype: Any, *, like: Any = None) -> jax.ShapeDtypeStruct:
    """A `Make` of shapes and dtypes alone."""
    del value, like
    return jax.ShapeDtypeStruct(shape, dtype)


def make_like(leaves: Leaves) -> Make:
    """A `Make` on the devices of the parameters; for abstract ones it makes shapes and dtypes.

    What is `like` a parameter is sharded as that is. What has a vector over all of them as its last axis is divided
    along the mesh axes that divide any of them, as far as its length can be. Anything else is whole.
    """
    size, shardings = flat_size(leaves), [_sharding(leaf) for leaf in leaves]
    of_arrays = _of_arrays([each for each in shardings if each is not None], size)

    def make(value: float, shape: tuple[int, ...], dtype: Any, *, like: Any = None) -> Any:
        sharding = of_arrays(len(shape), shape[-1:] == (size,)) if like is None else _sharding(like)
        if any(map(is_abstract, leaves)):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        return jnp.full(shape, np.asarray(value, dtype), dtype, device=sharding)  # not weakly typed

    return make


def _sharding(leaf: Any) -> Any:
    """Where a parameter has to be; None where that is open, as in a trace."""
    if is_abstract(leaf):
        return leaf.sharding
    return leaf.sharding if is_known(leaf) and leaf.committed else None


def _of_arrays(shardings: list[Any], size: int) -> Callable[[int, bool], Any]:
    """The sharding of an array of so many axes, the last of which may be a vector."""
    meshes = [sharding for sharding in shardings if isinstance(sharding, NamedSharding)]
    if not meshes:
        one = shardings[0] if shardings and len(shardings[0].device_set) == 1 else None
        return lambda ndim, is_vector: one
    mesh = max((sharding.mesh for sharding in meshes), key=lambda mesh: mesh.size)
    used = {axis for sharding in meshes for axis in _axes(sharding.spec)}
    axes: list[str] = []
    for axis in mesh.axis_names:
        if axis in used and size % prod(mesh.shape[name] for name in [*axes, axis]) == 0:
            axes.append(axis)

    def of_arrays(ndim: int, is_vector: bool) -> NamedSharding:
        last = (axes[0] if len(axes) == 1 else tuple(axes)) if axes and is_vector else None
        return NamedSharding(mesh, PartitionSpec(*[None] * (ndim - 1), last) if ndim else PartitionSpec())

    return of_arrays


def _axes(spec: PartitionSpec) -> list[str]:
    return [axis for entry in spec if entry is not None for axis in (entry if isinstance(entry, tuple) else (entry,))]


def check_like_params(found: Tree, expected: Tree, params: Tree) -> None:
    """Raise where a tree in a state is not of these parameters.

    Raises:
      ValueError: names the first parameter that differs.
    """
    remedy = "Make a state of these parameters with init."
    if jax.tree.structure(found) != jax.tree.structure(expected):
        has, needs = leaf_paths(found), leaf_paths(params)
        more, less = [x for x in has if x not in needs], [x for x in needs if x not in has]
        what = "; ".join(
            f"{word} {', '.join(map(repr, paths))}" for word, paths in (("it has", more), ("it lacks", less)) if paths
        )
        raise ValueError(f"the state is of other parameters: {what or 'their tree is another'}. {remedy}")
    for path, a, b in zip(leaf_paths(params), jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if (jnp.shape(a), jnp.result_type(a)) != (b.shape, b.dtype):
            of_state, of_params = (f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in (a, b))
            what = f"{path!r} is {of_state} in it, and would be {of_params} here"
            raise ValueError(f"the state is of other parameters: {what}. {remedy}")

"""Where a state's arrays are: on the parameters' devices, or nowhere yet."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_port.scalars import is_known

Tree = Any


def is_abstract(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)


def abstract(tree: Tree, like: jax.ShapeDtypeStruct | None = None) -> Tree:
    """The shapes and dtypes of arrays; those of the shape of `like` have its sharding."""

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        same = like is not None and like.shape == x.shape
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.sharding if like is not None and same else None)

    return jax.tree.map(shape, tree)


def on_devices_of(leaves: Sequence[Any], scalars: Tree) -> Tree:
    """Scalars on the devices to which parameters are committed, on all of a mesh: as a jitted step returns them.

    Left where they are made they would be moved in the first step, and the second compile again.
    """
    arrays = [x for x in leaves if isinstance(x, jax.Array) and is_known(x) and x.committed]
    if not arrays:
        return scalars
    sharding = max((x.sharding for x in arrays), key=lambda sharding: len(sharding.device_set))
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    elif len(sharding.device_set) > 1:
        return scalars
    return jax.tree.map(lambda x: jax.device_put(x, sharding), scalars)

"""Where arrays are: a state's on the parameters' devices, or nowhere yet; in a step, on explicit axes of a mesh."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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


def is_explicit(x: Any) -> bool:
    """Whether an array's type says how it is divided, so that operands must agree: on a mesh with explicit axes."""
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def sharded_as(like: Any, x: jax.Array) -> jax.Array:
    """`x` divided as `like` is, where that is a matter of types."""
    sharding = jax.typeof(like).sharding
    if not is_explicit(like) or jax.typeof(x).sharding.spec == sharding.spec:
        return x
    return jax.sharding.reshard(x, sharding)


def replicated(x: jax.Array) -> jax.Array:
    """`x` whole on every device, where that is a matter of types."""
    if not is_explicit(x):
        return x
    return jax.sharding.reshard(x, NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec()))


def side_by_side(p: jax.Array, g: jax.Array, slot: Tree) -> tuple[jax.Array, jax.Array, Tree]:
    """A parameter, its gradient and its state divided alike, where that is a matter of types.

    As the state is, which in ZeRO-1 is divided where parameters and gradients are whole; all whole where the state has
    other shapes than the parameter (Adafactor's means).
    """
    if not is_explicit(p):
        return p, g, slot
    arrays = jax.tree.leaves(slot)
    if any(x.shape != p.shape for x in arrays):
        return jax.tree.map(replicated, (p, g, slot))
    like = arrays[0] if arrays else p
    return sharded_as(like, p), sharded_as(like, g), slot

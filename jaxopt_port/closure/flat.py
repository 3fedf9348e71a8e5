"""Parameters as one real vector, as torch's L-BFGS has them: leaf after leaf, complex numbers as pairs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_port.param_groups import leaf_paths
from jaxopt_port.rule import as_complex, as_real
from jaxopt_port.scalars import x64_for
from jaxopt_port.sharding import is_abstract, replicated, sharded_as

Tree = Any
Leaves = list[jax.Array]
# The loss and its gradient, flat, at parameters given as leaves.
Evaluate = Callable[[Leaves], tuple[jax.Array, jax.Array]]


def leaves_of(params: Tree) -> Leaves:
    """The arrays of a tree of parameters.

    Raises:
      TypeError: a parameter that is neither floating point nor complex.
    """
    leaves = [leaf if is_abstract(leaf) else jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]
    for index, leaf in enumerate(leaves):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"parameter {leaf_paths(params)[index]!r} is {leaf.dtype}: only floating point and complex "
                "parameters can be optimized. Leave it out of the parameters."
            )
    return leaves


def wide_enough(params: Tree) -> AbstractContextManager[Any]:
    """The context in which float64 parameters stay float64, with `jax_enable_x64` off, too."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)]
    return x64_for(*dtypes)


def flat_dtype(leaves: Leaves) -> Any:
    """The dtype of the vector: what the leaves promote to, as real numbers; float32 for 16-bit leaves."""
    return jnp.result_type(jnp.float32, *(jnp.finfo(leaf.dtype).dtype for leaf in leaves))


def unflat_dtype(leaf: Any, dtype: Any) -> Any:
    """The dtype of a leaf's part of a vector of a dtype: complex where the leaf is."""
    return jnp.result_type(dtype, jnp.complex64) if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else dtype


def flat_size(leaves: Leaves) -> int:
    """The length of the vector: a complex number counts as two."""
    return sum(leaf.size * (2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1) for leaf in leaves)


def flatten(grads: Sequence[jax.Array | None], leaves: Leaves) -> jax.Array:
    """The gradient of every leaf as one vector, zeros for None; whole, on explicit mesh axes."""
    dtype = flat_dtype(leaves)
    parts = []
    for grad, leaf in zip(grads, leaves, strict=True):
        real = as_real(jnp.zeros_like(leaf) if grad is None else grad)
        parts.append(replicated(real).reshape(-1).astype(dtype))
    return parts[0] if len(parts) == 1 else jnp.concatenate([*parts, jnp.zeros(0, dtype)])


def unflatten(vector: jax.Array, leaves: Leaves) -> Leaves:
    """The parts of a vector in the leaves' shapes, in the vector's dtype: complex where the leaf is."""
    return [as_complex(leaf, part) for leaf, part in _parts(vector, leaves)]


def move(leaves: Leaves, t: jax.Array, d: jax.Array) -> Leaves:
    """`leaves + t * d`, every leaf rounded to its own dtype."""
    moved = [(leaf, as_real(leaf).astype(d.dtype) + t * part) for leaf, part in _parts(d, leaves)]
    return [as_complex(leaf, new).astype(leaf.dtype) for leaf, new in moved]


def gradient(
    closure: Callable[..., Any], treedef: Any, args: Sequence[Any], has_aux: bool
) -> Callable[[Leaves], tuple[Any, Leaves]]:
    """A function of leaves that gives what `closure` returns, and its gradient in torch's convention."""

    def evaluate(leaves: Leaves) -> tuple[Any, Leaves]:
        def of_leaves(leaves: Leaves) -> Any:
            return closure(treedef.unflatten(leaves), *args)

        returned, grads = jax.value_and_grad(of_leaves, has_aux=has_aux)(leaves)
        return returned, [g.conj() for g in grads]

    return evaluate


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """The inner product; a sum rather than `jnp.dot`, which a TPU would compute from bfloat16 factors."""
    return jnp.sum(a * b)


def max_abs(x: jax.Array) -> jax.Array:
    """The largest absolute value, NaN where there is one."""
    return jnp.max(jnp.abs(x), initial=0)


def power_of_two(x: jax.Array) -> jax.Array:
    """The power of two at or below a number, to divide by without rounding; 1 for 0 and for what is not finite."""
    power = jnp.ldexp(jnp.ones_like(x), jnp.frexp(x)[1] - 1)
    return jnp.where((x > 0) & jnp.isfinite(x), power, 1)


def _parts(vector: jax.Array, leaves: Leaves) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Every leaf with its part of the vector, as real numbers in the leaf's sharding."""
    vector, offset = replicated(vector), 0
    for leaf in leaves:
        real = as_real(leaf)
        part = vector[offset : offset + real.size].reshape(real.shape)
        yield leaf, sharded_as(real, part)
        offset += real.size

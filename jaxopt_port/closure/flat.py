"""Parameters as one real vector, as torch's L-BFGS has them: leaf after leaf, complex numbers as pairs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_port.param_groups import leaf_paths

Tree = Any
Leaves = list[jax.Array]
# The loss and its gradient, flat, at parameters given as leaves.
Evaluate = Callable[[Leaves], tuple[jax.Array, jax.Array]]


def leaves_of(params: Tree) -> Leaves:
    """The arrays of a tree of parameters.

    Raises:
      TypeError: a parameter that is neither floating point nor complex.
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]
    for index, leaf in enumerate(leaves):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"parameter {leaf_paths(params)[index]!r} is {leaf.dtype}: only floating point and complex "
                "parameters can be optimized. Leave it out of the parameters."
            )
    return leaves


def flat_dtype(leaves: Leaves) -> Any:
    """The dtype of the vector: what the leaves promote to, as real numbers; float32 for 16-bit leaves."""
    return jnp.result_type(jnp.float32, *(jnp.finfo(leaf.dtype).dtype for leaf in leaves))


def flat_size(leaves: Leaves) -> int:
    return sum(leaf.size * (2 if jnp.iscomplexobj(leaf) else 1) for leaf in leaves)


def flatten(grads: Sequence[jax.Array | None], leaves: Leaves) -> jax.Array:
    """The gradient of every leaf as one vector, zeros for None."""
    dtype = flat_dtype(leaves)
    parts = [
        _view_as_real(jnp.zeros_like(leaf) if grad is None else grad).reshape(-1).astype(dtype)
        for grad, leaf in zip(grads, leaves, strict=True)
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate([*parts, jnp.zeros(0, dtype)])


def move(leaves: Leaves, t: jax.Array, d: jax.Array) -> Leaves:
    """`leaves + t * d`, every leaf rounded to its own dtype."""
    moved, offset = [], 0
    for leaf in leaves:
        real = _view_as_real(leaf)
        part = d[offset : offset + real.size].reshape(real.shape)
        new = real.astype(d.dtype) + t * part
        if jnp.iscomplexobj(leaf):
            new = jax.lax.complex(new[..., 0], new[..., 1])
        moved.append(new.astype(leaf.dtype))
        offset += real.size
    return moved


def evaluation(closure: Callable[..., Any], treedef: Any, args: Sequence[Any], has_aux: bool) -> Callable[..., Any]:
    """A function of leaves that gives what `closure` returns, and its gradient flat, in torch's convention."""

    def evaluate(leaves: Leaves) -> tuple[Any, jax.Array]:
        def of_leaves(leaves: Leaves) -> Any:
            return closure(treedef.unflatten(leaves), *args)

        returned, grads = jax.value_and_grad(of_leaves, has_aux=has_aux)(leaves)
        return returned, flatten([g.conj() for g in grads], leaves)

    return evaluate


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """The inner product; a sum rather than `jnp.dot`, which a TPU would compute from bfloat16 factors."""
    return jnp.sum(a * b)


def largest(x: jax.Array) -> jax.Array:
    """The largest absolute value, NaN where there is one."""
    return jnp.max(jnp.abs(x), initial=0)


def _view_as_real(x: jax.Array) -> jax.Array:
    return jnp.stack([x.real, x.imag], -1) if jnp.iscomplexobj(x) else x

"""Gradients from one backward pass to the next: torch's zero_grad and accumulation."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_port.checks import flatten_like
from jaxopt_port.dtypes import is_gradient
from jaxopt_port.param_groups import leaf_paths
from jaxopt_port.rule import is_sparse
from jaxopt_port.scalars import x64_for

Tree = Any


def _is_leaf(x: Any) -> bool:
    return x is None or is_sparse(x)


def _zeros(g: Any) -> Any:
    """Zeros like `g`; a sparse gradient gets no rows at all: JAX's padding, indices one past the end."""
    if not is_sparse(g):
        return jnp.zeros_like(g)
    nowhere = jnp.broadcast_to(jnp.asarray(g.shape[: g.n_sparse], g.indices.dtype), g.indices.shape)
    return type(g)((jnp.zeros_like(g.data), nowhere), shape=g.shape)


def _sum(grads: Tree, index: int, old: Any, new: Any) -> Any:
    if old is None or new is None:
        return new if old is None else old
    if not is_gradient(new):
        return new
    if old.shape != new.shape or old.dtype != new.dtype:
        path = leaf_paths(grads, _is_leaf)[index]
        message = f"a gradient {new.dtype}{list(new.shape)} cannot be added to one {old.dtype}{list(old.shape)}"
        message = f"{message}, at {path!r}" if path else message
        if old.shape != new.shape:
            raise ValueError(f"{message}: give gradients of the same parameters")
        raise TypeError(f"{message}: cast the new ones, jax.tree.map(lambda n, g: n.astype(g.dtype), new, grads)")
    with x64_for(old.dtype):
        return old + new


def zero_grad(grads: Tree, set_to_none: bool = True) -> Tree:
    """`optimizer.zero_grad()`: the gradients before anything was accumulated.

    Args:
      grads: a tree of gradients.
      set_to_none: None for every gradient, which a step skips; with False zeros, which a step takes (momentum and
        weight decay still move the parameter). Inside `lax.scan` a carry cannot change from None to an array: use
        False there.

    Returns:
      The tree with every gradient replaced.

    Example:
      >>> zero_grad({"w": jnp.ones(2)}), zero_grad({"w": jnp.ones(2)}, set_to_none=False)
      ({'w': None}, {'w': Array([0., 0.], dtype=float32)})
    """
    return jax.tree.map(lambda g: None if set_to_none or g is None else _zeros(g), grads, is_leaf=_is_leaf)


def accumulate_grad(grads: Tree, new: Tree) -> Tree:
    """What a further `loss.backward()` does: adds the new gradients to the old. A sum, not a mean.

    Args:
      grads: the gradients so far; None where there is none.
      new: the gradients to add; None where a parameter took no part.

    Returns:
      The tree of sums; None + g = g.

    Raises:
      ValueError: another tree, or a gradient of another shape.
      TypeError: a gradient of another dtype.

    Example:
      >>> accumulate_grad({"w": None, "b": jnp.ones(1)}, {"w": jnp.ones(1), "b": jnp.ones(1)})
      {'b': Array([2.], dtype=float32), 'w': Array([1.], dtype=float32)}
    """
    old, treedef = jax.tree.flatten(grads, is_leaf=_is_leaf)
    more = flatten_like(treedef, new, "the new gradients", "the gradients so far")
    return treedef.unflatten(_sum(grads, index, *pair) for index, pair in enumerate(zip(old, more, strict=True)))

"""Rule: one optimizer's arithmetic on one array, and a step of one leaf with it."""

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any


def _takes_all(p: jax.Array) -> None:
    pass


def is_sparse(g: Any) -> bool:
    """Whether a gradient is a BCOO. (Importing jax.experimental.sparse to ask takes a second.)"""
    return hasattr(g, "n_sparse")


def _takes_dense(g: Any) -> None:
    if is_sparse(g):
        raise RuntimeError("this optimizer does not support sparse gradients: use sparse_adam, or g.todense()")


class Rule(NamedTuple):
    """One optimizer's arithmetic on one array. It knows nothing of trees, groups, None, jit or sharding.

    Args:
      init: `(p, options) -> slot`, a NamedTuple of arrays shaped like `p` (None for what the options do not need).
      scalars: `(step, h, s) -> (c, s)`, torch's Python-float arithmetic in float64. `step` counts from 1, `h` has
        the group's options as attributes, `s` is a dict of the scalar state beside `step`. All may be vectors with an
        element a parameter, so it is elementwise. What it returns in `c`, a dict, `update` gets.
      update: `(p, g, slot, c) -> (p, slot)`, torch's tensor arithmetic. `c` has the group's static options and the
        scalars as attributes, these rounded to the array's dtype as torch rounds a number that meets a tensor, and
        `dtype`, the parameter's own (16-bit parameters are computed in float32).
      check: raises torch's errors for bad options, given as a dict.
      live: the options that live in the state as float64 and can change at any step.
      structural: those of `live` that decide which slots exist: fixed where falsy, live otherwise.
      scalar_state: the scalar state beside `step` and its first values.
      check_param: raises torch's errors for a parameter that the optimizer cannot take.
      check_grad: raises for a gradient it cannot take; where the rule takes sparse ones, `update` gets `p` and `slot`
        as they are, since only their rows are to be computed with.
      float64_update: `update` computes scalars itself, from tensors or shapes: it gets them as float64.
    """

    init: Callable[[jax.Array, SimpleNamespace], Any]
    scalars: Callable[[jax.Array, SimpleNamespace, dict[str, jax.Array]], tuple[dict[str, Any], dict[str, jax.Array]]]
    update: Callable[[jax.Array, Any, Any, SimpleNamespace], tuple[jax.Array, Any]]
    check: Callable[[Mapping[str, Any]], None]
    live: tuple[str, ...]
    structural: tuple[str, ...] = ()
    scalar_state: Mapping[str, Any] = {}
    check_param: Callable[[jax.Array], None] = _takes_all
    check_grad: Callable[[Any], None] = _takes_dense
    float64_update: bool = False


@partial(jax.jit, static_argnums=0)
def step_leaf(
    static: tuple[Callable[..., Any], tuple[tuple[str, Any], ...]], p: jax.Array, g: Any, slot: Any, c: dict[str, Any]
) -> tuple[jax.Array, Any]:
    """One leaf's step. An inner jit, so that leaves of the same shape are traced and lowered once."""
    update, options = static
    c_ = SimpleNamespace(**{**dict(options), **c}, dtype=p.dtype)
    if getattr(c_, "maximize", False):
        g = -g
    wide = _compute_dtype(p.dtype)
    rest = (p, slot) if is_sparse(g) else as_real((p, slot), wide)
    p_, slot_ = update(rest[0], as_real(g, wide), rest[1], c_)
    slot = jax.tree.map(_cast_like, as_complex(p, slot_), slot)
    return as_complex(p, p_).astype(p.dtype), slot


def _cast_like(new: jax.Array, old: jax.Array) -> jax.Array:
    if new.shape != old.shape:
        raise ValueError(f"the state of a parameter has an array {list(old.shape)} that should be {list(new.shape)}")
    return new.astype(old.dtype)


def _compute_dtype(dtype: Any) -> Any:
    """The real dtype in which a leaf is computed: 16-bit floats are computed in float32, rounded at the end."""
    real = jnp.finfo(dtype).dtype
    return jnp.dtype(jnp.float32) if real.itemsize < 4 else real


def as_real(tree: Tree, dtype: Any = None) -> Tree:
    """torch's view_as_real: complex arrays as real ones with a last axis of two."""

    def real(x: jax.Array) -> jax.Array:
        x = jnp.stack([x.real, x.imag], -1) if jnp.iscomplexobj(x) else x
        return x if dtype is None or not jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(dtype)

    return jax.tree.map(real, tree)


def as_complex(p: jax.Array, tree: Tree) -> Tree:
    """torch's view_as_complex of what belongs to `p`, where `p` is complex."""
    return jax.tree.map(lambda x: jax.lax.complex(x[..., 0], x[..., 1]), tree) if jnp.iscomplexobj(p) else tree


def rounding(c: Mapping[str, jax.Array], keep: bool) -> Callable[[jax.Array], Mapping[str, jax.Array]]:
    """Rounds a group's scalars to the dtype in which a leaf is computed, once a dtype."""
    if keep:
        return lambda leaf: c
    rounded: dict[Any, Mapping[str, jax.Array]] = {}

    def round_to(leaf: jax.Array) -> Mapping[str, jax.Array]:
        dtype = _compute_dtype(leaf.dtype)
        if dtype not in rounded:
            rounded[dtype] = {k: v.astype(dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v for k, v in c.items()}
        return rounded[dtype]

    return round_to

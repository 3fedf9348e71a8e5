"""The scalars of a parameter group at one step: torch's Python-float arithmetic, once for all the group's leaves."""

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.number import is_number, to_float64
from jaxopt_port.scalars import float64

ScalarState = dict[str, jax.Array]
Static = tuple[tuple[str, Any], ...]


def group_scalars(
    scalars: Callable[..., Any],
    static: Static,
    live: Mapping[str, Any],
    state: ScalarState,
    moves: tuple[bool, ...] | jax.Array,
    dtypes: tuple[Any, ...],
) -> tuple[dict[Any, dict[str, jax.Array]], ScalarState]:
    """One step of a group's scalars.

    Args:
      scalars: the rule's function of this name.
      static: the group's options that are not live.
      live: the group's hyper-parameters, `Number`s.
      state: the group's scalar state.
      moves: which of the group's parameters step; a traced bool vector where only the running program knows.
      dtypes: those in which the group's leaves are computed.

    Returns:
      For each dtype the scalars, rounded to it, 0-d or vectors with an element a parameter; and the new scalar state.
    """
    known = moves if isinstance(moves, tuple) else None
    with float64():
        return _group_scalars(scalars, static, known, dtypes, dict(live), state, moves if known is None else None)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _group_scalars(
    scalars: Callable[..., Any],
    static: Static,
    known: tuple[bool, ...] | None,
    dtypes: tuple[Any, ...],
    live: dict[str, Any],
    old: ScalarState,
    moving: jax.Array | None,
) -> tuple[dict[Any, dict[str, jax.Array]], ScalarState]:
    mask = np.array(known, bool) if moving is None else moving
    all_move = known is not None and all(known)
    if not all_move:
        old = {name: jnp.broadcast_to(value, mask.shape) for name, value in old.items()}
    h = SimpleNamespace(**jax.tree.map(to_float64, live, is_leaf=is_number), **dict(static))
    step = old["step"] + jnp.ones((), old["step"].dtype)
    c, rest = scalars(step.astype(jnp.float64), h, {name: value for name, value in old.items() if name != "step"})
    new = {name: jnp.asarray(value, old[name].dtype) for name, value in {"step": step, **rest}.items()}
    if not all_move:
        new = {name: jnp.where(mask, value, old[name]) for name, value in new.items()}
    ones = {"one": jnp.where(step > 0, 1.0, 2.0), "another_one": jnp.where(step > -1, 1.0, 2.0)}
    arrays = {name: jnp.asarray(value) for name, value in {**c, **ones}.items()}
    return {dtype: _rounded(arrays, dtype) for dtype in dtypes}, new


def _rounded(c: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
    """The scalars in a dtype, each computed once.

    XLA repeats cheap arithmetic on scalars in the kernel of every leaf that uses it, which makes 1,000 leaves take a
    third longer to compile, and vectors with an element a parameter ten times as long. A reduction it never repeats:
    adding -0.0 changes no bit.
    """
    floats = {name: value.astype(dtype) for name, value in c.items() if jnp.issubdtype(value.dtype, jnp.floating)}
    stacked = jnp.stack(jnp.broadcast_arrays(*floats.values()))
    pairs = jnp.stack([stacked, jnp.full_like(stacked, -0.0)], -1)
    once = jax.lax.reduce(pairs, np.array(-0.0, dtype), jax.lax.add, (stacked.ndim,))
    return {**c, **{name: once[i] for i, name in enumerate(floats)}}

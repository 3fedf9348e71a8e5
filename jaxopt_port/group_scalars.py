"""The scalars of a parameter group at one step: torch's Python-float arithmetic, once for all the group's leaves."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.number import is_number, to_float64
from jaxopt_port.rule import Scalars, ScalarState
from jaxopt_port.scalars import float64

Static = tuple[tuple[str, Any], ...]


def group_scalars(
    scalars: Callable[..., Any],
    static: Static,
    live: Mapping[str, Any],
    state: ScalarState,
    moves: tuple[bool, ...] | jax.Array,
    dtypes: tuple[Any, ...],
) -> tuple[dict[Any, list[Scalars]], ScalarState]:
    """One step of a group's scalars.

    Args:
      scalars: the rule's function of this name.
      static: the group's options that are not live.
      live: the group's hyper-parameters, `Number`s.
      state: the group's scalar state.
      moves: which of the group's parameters step; a traced bool vector where only the running program knows.
      dtypes: those in which the group's leaves are computed.

    Returns:
      For each dtype the scalars, rounded to it, of each of the group's leaves, or of all as vectors where `moves` is
      one; and the new scalar state.
    """
    known = moves if isinstance(moves, tuple) else None
    with float64():
        c, new = _group_scalars(scalars, static, known, dtypes, dict(live), state, moves if known is None else None)
    return {dtype: each * len(moves) if known and len(each) == 1 else each for dtype, each in c.items()}, new


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _group_scalars(
    scalars: Callable[..., Any],
    static: Static,
    known: tuple[bool, ...] | None,
    dtypes: tuple[Any, ...],
    live: dict[str, Any],
    old: ScalarState,
    moving: jax.Array | None,
) -> tuple[dict[Any, list[Scalars]], ScalarState]:
    mask = np.array(known, bool) if moving is None else moving
    all_move = known is not None and all(known)
    if not all_move:
        old = {name: jnp.broadcast_to(value, mask.shape) for name, value in old.items()}
    hyper = SimpleNamespace(**jax.tree.map(to_float64, live, is_leaf=is_number), **dict(static))
    step = old["step"] + jnp.ones((), old["step"].dtype)
    kept = {name: value for name, value in old.items() if name != "step"}
    c, rest = _checked(scalars(step.astype(jnp.float64), hyper, kept), kept.keys())
    new = {name: jnp.asarray(value, old[name].dtype) for name, value in {"step": step, **rest}.items()}
    if not all_move:
        new = {name: jnp.where(mask, value, old[name]) for name, value in new.items()}
    ones = {"one": jnp.where(step > 0, 1.0, 2.0), "another_one": jnp.where(step > -1, 1.0, 2.0)}
    arrays = {name: jnp.asarray(value) for name, value in {**c, **ones}.items()}
    return {dtype: _rounded(arrays, dtype, apart=moving is None) for dtype in dtypes}, new


def _checked(returned: Any, kept: Collection[str]) -> tuple[Scalars, ScalarState]:
    """What a rule's scalars returned, which may be a user's."""
    if not (isinstance(returned, tuple) and len(returned) == 2 and all(isinstance(x, dict) for x in returned)):
        raise TypeError(f"a rule's scalars has to return (c, state), two dicts, not a {type(returned).__name__}")
    if returned[1].keys() != set(kept):
        raise TypeError(
            f"a rule's scalars has to return the scalar state that it got, {sorted(kept)}, not {sorted(returned[1])}: "
            "first values are in Rule(scalar_state={...})"
        )
    return returned


def _rounded(c: Scalars, dtype: Any, apart: bool) -> list[Scalars]:
    """The scalars in a dtype, each computed once: for all the leaves, or where these differ and are `apart` for each.

    XLA repeats cheap arithmetic on scalars in the kernel of every leaf that uses it, which makes 1,000 leaves take a
    third longer to compile. And kernels that look at different elements of one vector are different kernels, which are
    compiled one by one (100 leaves of one shape: 4 s against 0.5). A reduction XLA never repeats, so what goes through
    one is an array of its own. Adding -0.0 changes no bit.
    """
    stacked = _once(_stack([value.astype(dtype) for value in c.values()]))
    whole = stacked.ndim == 1 or not apart
    columns = [stacked] if whole else [_once(stacked[:, at]) for at in range(stacked.shape[1])]
    return [
        {name: x != 0 if c[name].dtype == bool else x for name, x in zip(c, column, strict=True)} for column in columns
    ]


def _stack(xs: list[jax.Array]) -> jax.Array:
    """`jnp.stack`, as a choice: XLA on a CPU makes a kernel of each array that it concatenates, and one of all this.

    From nine kernels on it hands them to threads, which in a step of a small tree takes most of the time.
    """
    xs = jnp.broadcast_arrays(*xs)
    at = jax.lax.broadcasted_iota(jnp.int32, (len(xs), *xs[0].shape), 0)
    stacked = jnp.zeros(at.shape, xs[0].dtype)
    for index, x in enumerate(xs):
        stacked = jnp.where(at == index, x, stacked)
    return stacked


def _once(x: jax.Array) -> jax.Array:
    pairs = jnp.stack([x, jnp.full_like(x, -0.0)], -1)
    return jax.lax.reduce(pairs, np.array(-0.0, x.dtype), jax.lax.add, (x.ndim,))

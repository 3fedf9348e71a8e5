"""The memory of L-BFGS: the last steps, and the direction that they make of a gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.closure.flat import Leaves, dot

# Of a step, `(y^T s, y, s)`, with y the difference of gradients and s that of parameters.
Learn = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
LONG = 1 << 14  # elements of a vector that is taken in blocks on a CPU
FOLDS = 8  # parts of it that are added to each other, a power of two
BLOCK = FOLDS * 960  # a multiple of most numbers of threads, in every part


class LBFGSState(NamedTuple):
    """torch's state, by torch's names; its lists are ring buffers, `history_size` rows of one vector each.

    Args:
      d: the last direction, a tree like the parameters; complex where they are, float32 where they have 16 bits.
      t: the last step length.
      old_dirs: differences of gradients.
      old_stps: differences of parameters.
      ro: the inverse of their inner products.
      H_diag: the scale of the first inverse Hessian.
      prev_flat_grad: the gradient from which the last step started.
      prev_loss: the loss from which it started.
      oldest: the row of the oldest pair.
      stored: how many pairs there are: torch's `len(old_dirs)`.
      stop: why the last call ended, a `Stop`.
    """

    d: Any
    t: jax.Array
    old_dirs: jax.Array
    old_stps: jax.Array
    ro: jax.Array
    H_diag: jax.Array
    prev_flat_grad: jax.Array
    prev_loss: jax.Array
    oldest: jax.Array
    stored: jax.Array
    stop: jax.Array


class StrongWolfeState(LBFGSState):
    """The same of steps with a line search."""

    __slots__ = ()


def remember(s: LBFGSState, grad: jax.Array, learn: Learn) -> LBFGSState:
    """Store the last step, in place of the oldest one where the memory is full.

    Before the first step d and t are zero, so that nothing is stored.

    Args:
      s: the state so far.
      grad: the gradient where the step ended.
      learn: whether the step is worth storing, and the scale that it gives.
    """
    y, step = grad - s.prev_flat_grad, s.d * s.t
    ys = dot(y, step)
    good, scale = learn(ys, y, step)
    size = s.ro.shape[0]
    row = (s.oldest + s.stored) % size

    def put(buffer: jax.Array, new: jax.Array) -> jax.Array:
        # The row is written back where nothing is stored: a conditional would copy the whole buffer.
        old = jax.lax.dynamic_index_in_dim(buffer, row, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(buffer, jnp.where(good, new, old), row, 0)

    full = s.stored == size
    return s._replace(
        old_dirs=put(s.old_dirs, y),
        old_stps=put(s.old_stps, step),
        ro=put(s.ro, 1 / ys),
        H_diag=jnp.where(good, scale, s.H_diag),
        oldest=jnp.where(good & full, (s.oldest + 1) % size, s.oldest),
        stored=jnp.where(good & ~full, s.stored + 1, s.stored),
    )


def forget(s: LBFGSState, when: jax.Array) -> LBFGSState:
    """As before the first step, so that the direction is that of steepest descent."""
    return s._replace(
        H_diag=jnp.where(when, 1, s.H_diag), oldest=jnp.where(when, 0, s.oldest), stored=jnp.where(when, 0, s.stored)
    )


def direction(s: LBFGSState, grad: jax.Array) -> jax.Array:
    """Minus the gradient times the approximate inverse Hessian: the two-loop recursion."""
    if grad.size < LONG or jax.device_count() > 1:
        return _two_loops(s, grad)
    return jax.lax.platform_dependent(s, grad, cpu=partial(_two_loops, blocked=True), default=_two_loops)


def _two_loops(s: LBFGSState, grad: jax.Array, blocked: bool = False) -> jax.Array:
    """The recursion on whole vectors; or, for a CPU, on one of whole blocks and what is left.

    XLA gives every thread of a CPU the same number of elements. Where a vector's length is no multiple of the threads
    it asks at every element whether there is one, and takes several times as long.
    """
    cut = grad.size // BLOCK * BLOCK if blocked else grad.size
    spans = [(0, cut), (cut, grad.size)][: 1 if cut == grad.size else 2]

    def row_of(i: jax.Array) -> jax.Array:
        return (s.oldest + i) % s.ro.size

    def dot_row(rows: jax.Array, row: jax.Array, parts: Leaves) -> jax.Array:
        first, *rest = (
            _folded_dot(rows, row, x) if blocked and start == 0 else dot(_row(rows, row, start, x.size), x)
            for (start, _), x in zip(spans, parts, strict=True)
        )
        return sum(rest, first)

    def add_row(parts: Leaves, scale: jax.Array, rows: jax.Array, row: jax.Array) -> Leaves:
        return [x + scale * _row(rows, row, start, x.size) for (start, _), x in zip(spans, parts, strict=True)]

    def backward(k: jax.Array, carry: tuple[Leaves, jax.Array]) -> tuple[Leaves, jax.Array]:
        q, al = carry
        row = row_of(s.stored - 1 - k)
        a = dot_row(s.old_stps, row, q) * s.ro[row]
        return add_row(q, -a, s.old_dirs, row), al.at[row].set(a)

    def forward(i: jax.Array, r: Leaves) -> Leaves:
        row = row_of(i)
        return add_row(r, al[row] - dot_row(s.old_dirs, row, r) * s.ro[row], s.old_stps, row)

    q = [-grad] if len(spans) == 1 else [-grad[start:end] for start, end in spans]
    q, al = jax.lax.fori_loop(0, s.stored, backward, (q, jnp.zeros_like(s.ro)))
    r = jax.lax.fori_loop(0, s.stored, forward, [x * s.H_diag for x in q])
    return r[0] if len(r) == 1 else jnp.concatenate(r)


def _folded_dot(rows: jax.Array, row: jax.Array, x: jax.Array) -> jax.Array:
    """The inner product with a row, added up in another order.

    XLA leaves a sum on a CPU to a library, for which it copies the row, and that takes as long as the sum. So row and
    vector are first folded into a short vector, in one pass of XLA's own.
    """
    length = x.size // FOLDS
    sums = [_row(rows, row, start, length) * x[start : start + length] for start in range(0, x.size, length)]
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums[::2], sums[1::2], strict=True)]
    return jnp.sum(jnp.where(jnp.isnan(sums[0]), jnp.nan, sums[0]))  # the library has no `where`: here it starts


def _row(rows: jax.Array, row: jax.Array, start: int, length: int) -> jax.Array:
    """A part of a row of the memory."""
    return jax.lax.dynamic_slice(rows, (row, jnp.asarray(start, row.dtype)), (1, length))[0]

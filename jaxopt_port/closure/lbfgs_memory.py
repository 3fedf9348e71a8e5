"""The memory of L-BFGS: the last steps, and the direction that they make of a gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.closure.flat import dot

# Of a step, `(y^T s, y, s)`, with y the difference of gradients and s that of parameters.
Learn = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


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

    def pair(i: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        row = (s.oldest + i) % s.ro.shape[0]
        y, step, ro = (jax.lax.dynamic_index_in_dim(b, row, keepdims=False) for b in (s.old_dirs, s.old_stps, s.ro))
        return row, y, step, ro

    def backward(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, al = carry
        row, y, step, ro = pair(s.stored - 1 - k)
        a = dot(step, q) * ro
        return q + -a * y, al.at[row].set(a)

    def forward(i: jax.Array, r: jax.Array) -> jax.Array:
        row, y, step, ro = pair(i)
        return r + (al[row] - dot(y, r) * ro) * step

    q, al = jax.lax.fori_loop(0, s.stored, backward, (-grad, jnp.zeros_like(s.ro)))
    return jax.lax.fori_loop(0, s.stored, forward, q * s.H_diag)

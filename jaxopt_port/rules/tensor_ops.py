"""torch's tensor operations that more than one rule uses, with torch's rounding."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp


def add_weight_decay(g: jax.Array, p: jax.Array, weight_decay: jax.Array) -> jax.Array:
    """`g + weight_decay * p`; with 0 the gradient's own bits, as torch's `if weight_decay != 0` leaves them."""
    return jnp.where(weight_decay != 0, g + weight_decay * p, g)


def decayed(p: jax.Array, g: jax.Array, c: SimpleNamespace) -> tuple[jax.Array, jax.Array]:
    """The parameter and the gradient after weight decay: `decoupled_weight_decay` says which of them it changes."""
    if c.decoupled_weight_decay:
        return rounded(p * c.decay), g
    return p, add_weight_decay(g, p, c.weight_decay)


def rounded(x: jax.Array) -> jax.Array:
    """`x` as it is, but rounded before the next operation, as between two of torch's.

    A compiler makes one fused multiply-add of a product and a sum, which torch does within an operation (`add(alpha=)`,
    `addcmul`, `lerp`) and never across two, and an inexact reciprocal root of a division by a root. That matters where
    the error is nearly the same in every step and adds up: with `p * decay` unrounded AdamW is 116 eps off after 1,000
    steps. The absolute value of what is positive changes nothing, and compilers do not see through it, as they do
    through barriers and `reduce_precision`. A square they know to be positive: for that there is `square`.
    """
    return jnp.where(x > 0, jnp.abs(x), x)


def square(x: jax.Array) -> jax.Array:
    """`x * x`, rounded before the next operation: of factors that a compiler does not know to be the same."""
    return rounded(x * rounded(x))


def stored(x: jax.Array, by: jax.Array, c: SimpleNamespace) -> jax.Array:
    """`x` as it is, but computed once: what uses it reads it from memory, where it may have replaced the old array.

    XLA repeats cheap arithmetic in every kernel that uses it. Where a slot's new value is in the slot and in the step,
    the step's kernel would compute it again from the old slot, which then has to be kept beside the new: a copy of
    the parameters for every such slot. A division by an array it never repeats. `by` is any array of the shape of
    `x`; dividing by 1 changes no bit, but a subnormal becomes 0, as it does in any arithmetic of XLA's on a CPU.
    """
    return x / jnp.where(by > 0, c.one, c.another_one)


def over(x: jax.Array, number: jax.Array) -> jax.Array:
    """`x / number`, rounded once: by a divisor that is the same for all elements XLA multiplies, by its reciprocal.

    So it is another for those that are NaN, which divided by anything they stay.
    """
    return x / jnp.where(jnp.isnan(x), jnp.ones_like(number), number)


def lerp(start: jax.Array, end: jax.Array, weight: jax.Array) -> jax.Array:
    """`start + weight * (end - start)`, from the nearer end: torch changes the form at weight 0.5."""
    near_start = jnp.abs(weight) < 0.5
    return jnp.where(near_start, start, end) + jnp.where(near_start, weight, weight - 1) * (end - start)


def moving_square(average: jax.Array, g: jax.Array, decay: jax.Array, weight: jax.Array) -> jax.Array:
    """`decay * average + weight * g * g`, in the order of torch's `mul_(decay).addcmul_(g, g, value=weight)`."""
    return rounded(average * decay) + (weight * g) * g


def norm(x: jax.Array, axis: int | None = None) -> jax.Array:
    """The 2-norm of the whole array, or along an axis that stays with length 1."""
    return jnp.sqrt(jnp.sum(x * x, axis, keepdims=axis is not None))


def sign(x: jax.Array) -> jax.Array:
    """torch's sign: 0 for NaN and for -0.0, where `jnp.sign` gives back NaN and -0.0."""
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)

"""Why a step or a run ended."""

from enum import IntEnum

import jax
import jax.numpy as jnp


class Stop(IntEnum):
    """Why a step or a run ended. In a state it is an int32 array: `Stop(int(state.slots.stop)).name`."""

    NOT_YET = 0
    """It goes on."""
    GRADIENT = 1
    """The largest element of the gradient is within the tolerance."""
    CHANGE = 2
    """A step: parameters or loss move by less than the tolerance; a run: neither comes down any more."""
    DIRECTION = 3
    """A step of lbfgs: the direction does not descend by more than the tolerance."""
    LINE_SEARCH = 4
    """The line search found no better point."""
    MAX_ITER = 5
    """As many iterations (steps, in a run) as were allowed."""
    MAX_EVAL = 6
    """As many evaluations as were allowed."""
    NON_FINITE = 7
    """The last loss, gradient or parameter is infinite or not a number."""


def first_of(*reasons: tuple[jax.Array, Stop]) -> jax.Array:
    """The first reason whose condition holds, NOT_YET where none does."""
    stop = jnp.int32(Stop.NOT_YET)
    for condition, reason in reversed(reasons):
        stop = jnp.where(condition, jnp.int32(reason), stop)
    return stop


def or_non_finite(stop: jax.Array, *arrays: jax.Array) -> jax.Array:
    """The reason as it is reported: NON_FINITE, whatever it was, where the loss, its gradient or a parameter is."""
    finite = jnp.array([jnp.all(jnp.isfinite(x)) for x in arrays]).all()
    return jnp.where(finite, stop, jnp.int32(Stop.NON_FINITE))

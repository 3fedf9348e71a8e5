"""The dtypes that torch computes in. Spelled out, so that JAX's strict promotion takes them."""

from collections.abc import Iterable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_gradient(g: Any) -> bool:
    """Not None, nor the float0 that `jax.grad` gives for an integer."""
    return g is not None and g.dtype != jax.dtypes.float0


def is_inexact(g: Any) -> bool:
    """Whether it is an array of floats or complex numbers, and not the float0 that stands for an integer's gradient."""
    return jnp.issubdtype(jnp.result_type(g), jnp.inexact)


def widened(dtype: Any) -> np.dtype:
    """float32 for 16-bit floats and for integers, else the dtype itself: in what torch meets a number with an array."""
    return (
        np.dtype(dtype) if jnp.issubdtype(dtype, jnp.inexact) and np.dtype(dtype).itemsize > 2 else np.dtype("float32")
    )


def promoted(dtypes: Iterable[Any]) -> np.dtype:
    """The dtype that torch gives to arrays of these together."""
    with jax.numpy_dtype_promotion("standard"):
        return reduce(jnp.promote_types, dtypes)


def times(x: jax.Array, number: Any) -> jax.Array:
    """An array times a number, as torch has it: 16 bits are computed in float32 and rounded once."""
    wide = widened(x.dtype)
    return (x.astype(wide) * jnp.asarray(number, wide)).astype(x.dtype)


def with_room(x: jax.Array, divisor: jax.Array) -> jax.Array:
    """`x`, but 2^-64 of it where the reciprocal of the divisor is subnormal, which XLA takes for zero on a CPU.

    A quotient stays what it is where both its numbers have the same divisor.
    """
    wide = widened(divisor.dtype)
    return jnp.where(divisor.astype(wide) > 0.5 / jnp.finfo(wide).tiny, times(x, 2.0**-64), x)

"""Number: a float64 that lives in a JAX program as float32, with every bit.

Hyper-parameters are Python floats in torch, and JAX makes a float32 of a float64 leaf wherever `jax_enable_x64` is off:
in `jnp.asarray`, in a checkpoint that is restored, in a wrapper that selects between two states. A `Number` is one
float32 array of four that all of them leave alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxopt_port.scalars import Scalar, float64

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
SMALL, UP = 2.0**-60, 2.0**100  # what is below SMALL is kept times UP, or its last bits would be subnormal


class Number(NamedTuple):
    r"""A float64 as four float32.

    .. math:: x = (h + m + l) \cdot s

    :math:`h, m, l` hold 24 bits each of the magnitude and :math:`s` is 1, or :math:`2^{-100}` for magnitudes below
    :math:`2^{-60}`, with the sign of :math:`x`. Exact for 0, infinities, NaN and all magnitudes that a float32 has,
    1.4e-45 to 3.4e38. On a TPU, which emulates float64 by pairs of float32, a program computes with the first 48 bits.

    Args:
      parts: :math:`(h, m, l, s)`, float32 [..., 4]; with axes before the last for the states that `vmap` makes.

    Example:
      >>> number = to_number(0.1)
      >>> number, float(number) == 0.1
      (Number(0.1), True)
    """

    parts: jax.Array

    def __float__(self) -> float:
        return float(to_numpy(self))

    def astype(self, dtype: Any) -> jax.Array:
        """The number rounded to a dtype, in a trace too, where `float` has no value to give.

        Args:
          dtype: the dtype.

        Returns:
          An array of it, of the shape of `parts` without its last axis.
        """
        with float64():
            return to_float64(self).astype(dtype)

    def __repr__(self) -> str:
        try:
            return f"Number({to_numpy(self).tolist()!r})"
        except Exception:  # a tracer, an abstract value, a sharding: whatever a tree.map put there
            return f"Number(parts={self.parts!r})"


def is_number(x: Any) -> bool:
    return isinstance(x, Number)


def to_number(value: Scalar) -> Number:
    """A `Number` of a Python number or of an array, traced or not, of any shape.

    Raises:
      ValueError: a magnitude that a float32 does not have. In a trace, where it cannot be seen, it becomes 0 or
        infinity, as it does in a float32.
    """
    if isinstance(value, jax.Array) and (isinstance(value, Tracer) or value.dtype != np.float64):
        with float64():  # NumPy would wait for the value
            return Number(_parts_in_a_trace(jnp.asarray(value, jnp.float64)))
    x = np.asarray(value, np.float64)
    magnitude = np.abs(x)
    outside = np.isfinite(x) & (magnitude > LARGEST) | (magnitude > 0) & (magnitude < SMALLEST)
    if outside.any():
        raise ValueError(
            f"{x[outside][0]} is outside the numbers that a hyper-parameter can be: 0, or a magnitude of "
            f"{SMALLEST:.2g} to {LARGEST:.2g}"
        )
    return Number(jnp.asarray(_parts(x)))


def _parts(x: np.ndarray) -> np.ndarray:
    up = np.copysign(np.where(np.abs(x) < SMALL, UP, 1.0), x)
    parts = []
    with np.errstate(invalid="ignore"):  # infinity - infinity
        rest = x * up
        for _ in range(3):
            parts.append(rest.astype(np.float32))
            rest = np.where(np.isfinite(rest), rest - parts[-1], 0.0)
    return np.stack([*parts, (1 / up).astype(np.float32)], -1)


@jax.jit
def _parts_in_a_trace(x: jax.Array) -> jax.Array:
    """The same in JAX. Derivatives go through the three parts; the power of two counts as a constant."""
    negative = (x < 0) | (1 / x < 0)  # -0.0 too, without a look at its bits, which a TPU does not give
    up = jax.lax.stop_gradient(jnp.where(negative, -1.0, 1.0) * jnp.where(jnp.abs(x) < SMALL, UP, 1.0))
    rest = x * up
    parts = []
    for _ in range(3):
        parts.append(jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=23))  # XLA may elide a cast and back
        rest = jnp.where(jnp.isfinite(parts[-1]), rest - parts[-1], 0.0)
    return jnp.stack([*parts, 1 / up], -1).astype(jnp.float32)


def to_float64(number: Number) -> jax.Array:
    """The float64 that a `Number` is worth, to be computed with under `float64()`."""
    (parts,) = jax.tree.leaves(number)  # nnx.Optimizer puts a box around the array
    with float64():
        parts = jnp.asarray(parts)  # taken apart as float32: a float64's slice has no second derivative with x64 off
        high, middle, low, scale = (parts[..., i].astype(jnp.float64) for i in range(4))
        return (high + middle + low) * scale


def to_numpy(number: Number) -> np.ndarray:
    """The float64 that a `Number` is worth, outside a trace."""
    (parts,) = jax.tree.leaves(number)
    parts = np.asarray(parts).astype(np.float64)
    return parts[..., :3].sum(-1) * parts[..., 3]

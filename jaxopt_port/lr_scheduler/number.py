"""Numbers that compute as Python's do: Python's own outside jit, and `Double` in a trace.

The schedulers are written once, in torch's formulas, for both.
"""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_port.scalars import rounded

Number = Any  # a Python int or float, or a Double
Condition = bool | jax.Array


def _raw(x: Any) -> jax.Array:
    return x.value if isinstance(x, Double) else jnp.asarray(x, jnp.float64)


def _beside(x: Any, other: jax.Array) -> jax.Array:
    """`x`, not as a constant: XLA turns a division by a constant into a multiplication, and a power of one into others.

    Where `other` is NaN, so is what is computed of the two, whatever `x` is.
    """
    return x.value if isinstance(x, Double) else jnp.where(jnp.isnan(other), jnp.nan, _raw(x))


def _operator(f: Callable[..., jax.Array]) -> tuple[Callable[..., "Double"], Callable[..., "Double"]]:
    def forward(self: "Double", other: Any) -> "Double":
        return Double(rounded(f(self.value, _beside(other, self.value))))

    def backward(self: "Double", other: Any) -> "Double":
        return Double(rounded(f(_beside(other, self.value), self.value)))

    return forward, backward


def _comparison(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: f(self.value, _raw(other))


class Double:
    """A traced float64 with the arithmetic of a Python float: every operation rounds, none is fused or rewritten.

    A scheduler's Python function gets one for its epoch in a trace: `+ - * / // % **`, comparisons, `jnp.where` and
    the functions of `jax.numpy` take it. Where Python itself asks for its value there is an error that names the
    remedy.
    """

    def __init__(self, value: Any):
        self.value = _raw(value)

    @classmethod
    def scalar(cls, value: Any) -> "Double":
        """Of an array of one element, of any shape and dtype."""
        return cls(_raw(value).reshape(()))

    __add__, __radd__ = _operator(jnp.add)
    __sub__, __rsub__ = _operator(jnp.subtract)
    __mul__, __rmul__ = _operator(jnp.multiply)
    __truediv__, __rtruediv__ = _operator(jnp.divide)
    __floordiv__, __rfloordiv__ = _operator(jnp.floor_divide)
    __mod__, __rmod__ = _operator(jnp.mod)
    __pow__, __rpow__ = _operator(jax.lax.pow)
    __lt__, __le__, __gt__, __ge__ = map(_comparison, (operator.lt, operator.le, operator.gt, operator.ge))
    __eq__, __ne__ = map(_comparison, (operator.eq, operator.ne))

    def __neg__(self) -> "Double":
        return Double(-self.value)

    def __floor__(self) -> "Double":
        return Double(jnp.floor(self.value))

    def __jax_array__(self) -> jax.Array:
        return self.value

    def _unknown(self) -> Any:
        raise TypeError(
            "the epoch has no value while jit or scan traces the scheduler, and this function asks for it (if, math, "
            "int, an index). Give the scheduler lr_scheduler.tabulate(function, steps), or call step outside jit."
        )

    __bool__ = __int__ = __float__ = __index__ = _unknown


def either(condition: Condition, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """`yes() if condition else no()`: numbers, or trees of numbers. A trace computes both and selects."""
    if isinstance(condition, bool):
        return yes() if condition else no()
    return jax.tree.map(lambda a, b: a if a is b else Double(jnp.where(condition, _raw(a), _raw(b))), yes(), no())


def count(conditions: Iterable[Condition]) -> Number:
    """How many of them hold."""
    total = sum(conditions)
    return total if isinstance(total, int) else Double(total)


def cos(x: Number) -> Number:
    """math.cos. XLA's on CPU is the C library's, bit for bit."""
    return Double(rounded(jnp.cos(x.value))) if isinstance(x, Double) else math.cos(x)


def largest(first: Number, second: Number) -> Number:
    """Python's `max(first, second)`: the first where they do not compare."""
    return either(second > first, lambda: second, lambda: first)


def smallest(first: Number, second: Number) -> Number:
    """Python's `min(first, second)`: the first where they do not compare."""
    return either(second < first, lambda: second, lambda: first)

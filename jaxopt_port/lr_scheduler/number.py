"""Numbers that compute as Python's do: Python's own outside jit, and `Double` in a trace.

The schedulers are written once, in torch's formulas, for both.
"""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

Number = Any  # a Python int or float, or a Double
Condition = bool | jax.Array


def _raw(x: Any) -> jax.Array:
    return x.value if isinstance(x, Double) else jnp.asarray(x, jnp.float64)


def _operator(f: Callable[..., jax.Array]) -> tuple[Callable[..., "Double"], Callable[..., "Double"]]:
    return lambda self, other: self._compute(f, self, other), lambda self, other: self._compute(f, other, self)


def _comparison(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: f(self.value, _raw(other))


class Double:
    """A traced float64 with the arithmetic of a Python float: every operation rounds, none is fused or rewritten.

    XLA contracts `a * b + c` to a fused multiply-add, merges constants, and divides by one by multiplying with its
    inverse. So every result and every constant is multiplied by a `one` that only the running program knows: that
    changes no bit, and neither does a fused multiply-add with it. (An optimization barrier and `reduce_precision` do
    not keep XLA from it, and what is selected by one condition LLVM merges.)

    A scheduler's Python function gets a Double for its epoch in a trace. It takes `+ - * / // % **` and comparisons;
    `jnp.asarray` makes an array of it. Whatever else asks for its value gets an error.
    """

    def __init__(self, value: Any, one: jax.Array | None):
        self.value = jnp.asarray(value, jnp.float64)
        self.one = one

    def _compute(self, f: Callable[..., jax.Array], *operands: Any) -> "Double":
        one = next((x.one for x in operands if isinstance(x, Double) and x.one is not None), None)
        if one is None:
            return Double(f(*map(_raw, operands)), None)
        return Double(f(*(x.value if isinstance(x, Double) else x * one for x in operands)) * one, one)

    def __neg__(self) -> "Double":
        return Double(-self.value, self.one)

    def __floor__(self) -> "Double":
        return Double(jnp.floor(self.value), self.one)

    def cos(self) -> "Double":
        return self._compute(jnp.cos, self)

    def log(self) -> "Double":
        return self._compute(jnp.log, self)

    __add__, __radd__ = _operator(jnp.add)
    __sub__, __rsub__ = _operator(jnp.subtract)
    __mul__, __rmul__ = _operator(jnp.multiply)
    __truediv__, __rtruediv__ = _operator(jnp.divide)
    __floordiv__, __rfloordiv__ = _operator(jnp.floor_divide)
    __mod__, __rmod__ = _operator(jnp.mod)
    __pow__, __rpow__ = _operator(jax.lax.pow)
    __lt__, __le__, __gt__, __ge__ = map(_comparison, (operator.lt, operator.le, operator.gt, operator.ge))
    __eq__, __ne__ = map(_comparison, (operator.eq, operator.ne))

    def __jax_array__(self) -> jax.Array:
        return self.value

    def _unknown(self) -> Any:
        raise TypeError("a number has no value while jit or scan traces the scheduler")

    __bool__ = __int__ = __float__ = __index__ = _unknown


def numbers(tree: Any) -> Any:
    """The tree with every array as a number: a Python number, if all have values."""
    traced = [x for x in jax.tree.leaves(tree) if isinstance(x, Tracer)]
    if not traced:
        return jax.tree.map(lambda x: x.item() if hasattr(x, "item") else x, tree)
    known_at_runtime = jnp.reshape(traced[0], ()).astype(jnp.float64)
    one = 1.0 + 1e-30 * jnp.where(jnp.abs(known_at_runtime) < 1e9, known_at_runtime, 0.0)  # rounds to 1
    return jax.tree.map(lambda x: Double(jnp.reshape(x, ()), one), tree)


def either(condition: Condition, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """`yes() if condition else no()`: numbers, or trees of numbers. A trace computes both and selects."""
    if isinstance(condition, bool):
        return yes() if condition else no()

    def select(a: Number, b: Number) -> Number:
        one = next((x.one for x in (a, b) if isinstance(x, Double)), None)
        return a if a is b else Double(jnp.where(condition, _raw(a), _raw(b)), one)

    return jax.tree.map(select, yes(), no())


def ask(function: Callable[[Any], Any], epoch: Number) -> Number:
    """`function(epoch)`; where it cannot be traced, with the remedy in the error."""
    try:
        return function(epoch)
    except (TypeError, ValueError) as error:
        if isinstance(epoch, Double):
            error.add_note(
                "Under jit the epoch has no value, and the scheduler's function asks for it (if, math, int, an index, "
                "a jnp function without jnp.asarray around the epoch). Give the scheduler "
                "lr_scheduler.tabulate(function, steps), or call step outside jit."
            )
        raise


def count(conditions: Iterable[Condition]) -> Number:
    """How many of them hold."""
    total = sum(conditions)
    return total if isinstance(total, int) else Double(total, None)


def cos(x: Number) -> Number:
    """math.cos. XLA's on CPU is the C library's, bit for bit."""
    return x.cos() if isinstance(x, Double) else math.cos(x)


def int_log(x: Number, base: int) -> Number:
    """`int(math.log(x, base))`."""
    return math.floor(x.log() / math.log(base)) if isinstance(x, Double) else int(math.log(x, base))


def largest(first: Number, second: Number) -> Number:
    """Python's `max(first, second)`: the first where they do not compare."""
    return either(second > first, lambda: second, lambda: first)


def smallest(first: Number, second: Number) -> Number:
    """Python's `min(first, second)`: the first where they do not compare."""
    return either(second < first, lambda: second, lambda: first)

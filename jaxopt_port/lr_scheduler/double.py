"""Numbers that compute as Python's do: Python's own outside jit, and `Double` in a trace.

The schedulers are written once, in torch's formulas, for both.
"""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxopt_port.number import is_number, to_float64, to_numpy

Float = Any  # a Python int or float, or in a trace a Double
Condition = bool | jax.Array

NO_VALUE = (
    "under jit the epoch has no value, and {function} asks for it (if, math, int, an index, a jnp function without "
    "jnp.asarray around the epoch): give the scheduler lr_scheduler.tabulate(function, steps), or call step outside jit"
)


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
        raise TypeError(NO_VALUE.format(function="a function"))

    __bool__ = __int__ = __float__ = __index__ = _unknown


def python_numbers(tree: Any) -> Any:
    """The tree with a Python number for every array and `Number`; with Doubles, if one of them has no value."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_number)
    if not any(isinstance(x, Tracer) for x in jax.tree.leaves(leaves)):
        known = [to_numpy(x) if is_number(x) else x for x in leaves]
        return treedef.unflatten([x.item() if hasattr(x, "item") else x for x in known])
    values = [jnp.reshape(to_float64(x) if is_number(x) else x, ()) for x in leaves]
    at_runtime = next(x for x in values if isinstance(x, Tracer)).astype(jnp.float64)
    one = 1.0 + 1e-30 * jnp.where(jnp.abs(at_runtime) < 1e9, at_runtime, 0.0)  # rounds to 1
    return treedef.unflatten([Double(x, one) for x in values])


def is_one_number(x: Any) -> bool:
    """Whether it is a real number of any kind, traced or not."""
    return is_number(x) or (hasattr(x, "__float__") and math.prod(np.shape(x)) == 1 and not np.iscomplexobj(x))


def either(condition: Condition, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """`yes() if condition else no()`: numbers, or trees of numbers. A trace computes both and selects."""
    if isinstance(condition, bool):
        return yes() if condition else no()

    def select(a: Float, b: Float) -> Float:
        one = next((x.one for x in (a, b) if isinstance(x, Double)), None)
        return a if a is b else Double(jnp.where(condition, _raw(a), _raw(b)), one)

    return jax.tree.map(select, yes(), no())


def value_at(name: str, function: Callable[[Any], Any], epoch: Float) -> Float:
    """`function(epoch)` of a scheduler's argument `name`: one number.

    Raises:
      TypeError: under jit, a function that cannot be traced.
      ValueError: it returns something else than one number.
    """
    try:
        value = function(epoch)
    except Exception as error:
        if isinstance(epoch, Double):
            raise TypeError(NO_VALUE.format(function=name)) from error
        raise
    if isinstance(value, Double):
        return value
    if not is_one_number(value):
        what = f"an array of shape {list(np.shape(value))}" if np.shape(value) else repr(value)
        raise ValueError(f"{name} must return one number, not {what}: a list of functions has one for each group")
    return value.reshape(()) if hasattr(value, "reshape") else value


def count(conditions: Iterable[Condition]) -> Float:
    """How many of them hold."""
    total = sum(conditions)
    return total if isinstance(total, int) else Double(total, None)


def cos(x: Float) -> Float:
    """math.cos. XLA's on a CPU is the C library's, bit for bit."""
    return x.cos() if isinstance(x, Double) else math.cos(x)


def int_log(x: Float, base: int) -> Float:
    """`int(math.log(x, base))`."""
    return math.floor(x.log() / math.log(base)) if isinstance(x, Double) else int(math.log(x, base))


def python_max(first: Float, second: Float) -> Float:
    """Python's `max(first, second)`: the first where they do not compare."""
    return either(second > first, lambda: second, lambda: first)


def python_min(first: Float, second: Float) -> Float:
    """Python's `min(first, second)`: the first where they do not compare."""
    return either(second < first, lambda: second, lambda: first)

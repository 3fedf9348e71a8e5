"""A rule's update in torch CUDA's float32 arithmetic.

The rule's own `update` is read operation by operation as a jaxpr. What XLA rounds otherwise than IEEE on a GPU (`/`,
`sqrt`) and what torch's kernels fuse (a multiply-add) goes through float64. Float32 `+`, `-` and `*` are right as they
are; each product is `rounded`, so that no compiler makes a multiply-add of its own.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from jaxopt_port.rules.tensor_ops import rounded
from jaxopt_port.scalars import float64

ROUND_NOTHING = frozenset(
    (
        "abs",
        "broadcast_in_dim",
        "clamp",
        "concatenate",
        "convert_element_type",
        "copy",
        "max",
        "mesh_cast",
        "min",
        "neg",
        "pcast",
        "pvary",
        "reshape",
        "reshard",
        "select_n",
        "sharding_constraint",
        "sign",
        "slice",
        "squeeze",
        "stop_gradient",
        "transpose",
    )
)


@dataclass(frozen=True)
class CudaUpdate:
    """A rule's `update` in torch CUDA's arithmetic. Compares by its fields, as what is static under jit has to."""

    name: str
    update: Callable[..., Any]

    def __call__(self, p: jax.Array, g: jax.Array, slot: Any, c: SimpleNamespace) -> tuple[jax.Array, Any]:
        numbers = {name: x for name, x in vars(c).items() if isinstance(x, jax.Array)}
        static = {name: x for name, x in vars(c).items() if name not in numbers}

        def update(tensors: Any, numbers: dict[str, jax.Array]) -> Any:
            return self.update(*tensors, SimpleNamespace(**static, **numbers))

        tensors = (p, g, slot)
        closed, shapes = jax.make_jaxpr(update, return_shape=True)(tensors, numbers)
        given = [*(Known(x) for x in jax.tree.leaves(tensors)), *(Known(x, True) for x in jax.tree.leaves(numbers))]
        new = _evaluate(self.name, closed.jaxpr, closed.consts, given)
        return jax.tree.unflatten(jax.tree.structure(shapes), [value.array for value in new])


@dataclass(frozen=True)
class Known:
    """An array; `is_number` where torch has a Python number."""

    array: Any
    is_number: bool = False

    def added_to(self, x: jax.Array) -> jax.Array:
        return x + self.array

    def taken_from(self, x: jax.Array) -> jax.Array:
        return x - self.array


@dataclass(frozen=True)
class Term:
    """`alpha * x`, `alpha * x * y`, `x * y` or `alpha * x / y`, of which nothing is rounded yet."""

    alpha: Any  # a number, or None
    x: Any
    y: Any = None
    over: bool = False
    is_number = False

    @property
    def array(self) -> jax.Array:
        scaled = self.x if self.alpha is None else _mul(self.alpha, self.x)
        return scaled if self.y is None else (_div if self.over else _mul)(scaled, self.y)

    def added_to(self, x: jax.Array) -> jax.Array:
        if self.alpha is None:
            return _fma(self.x, self.y, x)
        if self.y is None:
            return _fma(self.alpha, self.x, x)
        if self.over:
            return _fma(self.alpha, _div(self.x, self.y), x)
        one = self.alpha == 1
        return _fma(jnp.where(one, self.x, self.alpha), jnp.where(one, self.y, _mul(self.x, self.y)), x)

    def taken_from(self, x: jax.Array) -> jax.Array:
        if self.alpha is not None and self.y is None:  # torch.sub(alpha=)
            return _fma(-self.alpha, self.x, x)
        return x - self.array  # addcmul with value=-1


@dataclass(frozen=True)
class Choice:
    """`select_n` of cases of which one at least is not rounded yet."""

    which: jax.Array
    cases: Sequence[Any]
    is_number = False

    @property
    def array(self) -> jax.Array:
        return jax.lax.select_n(self.which, *(case.array for case in self.cases))

    def added_to(self, x: jax.Array) -> jax.Array:
        return jax.lax.select_n(self.which, *(case.added_to(x) for case in self.cases))

    def taken_from(self, x: jax.Array) -> jax.Array:
        return jax.lax.select_n(self.which, *(case.taken_from(x) for case in self.cases))


Value = Known | Term | Choice


def _evaluate(name: str, jaxpr: Jaxpr, consts: Sequence[Any], given: Sequence[Value]) -> list[Value]:
    """The results of a jaxpr. What is used more than once is a tensor of its own in torch, and rounded."""
    uses = Counter(v for vs in (jaxpr.outvars, *(eqn.invars for eqn in jaxpr.eqns)) for v in vs if _is_var(v))
    values: dict[Any, Value] = {}

    def read(v: Any) -> Value:
        return values[v] if _is_var(v) else Known(v.val, True)

    def write(variables: Sequence[Any], new: Sequence[Value]) -> None:
        for v, value in zip(variables, new, strict=True):
            values[v] = value if uses[v] == 1 or isinstance(value, Known) else Known(value.array)

    write(jaxpr.constvars, [Known(x, np.ndim(x) == 0) for x in consts])
    write(jaxpr.invars, given)
    for eqn in jaxpr.eqns:
        ins = [read(v) for v in eqn.invars]
        if "jaxpr" in eqn.params and eqn.primitive.name in ("jit", "pjit", "closed_call"):
            inner = eqn.params["jaxpr"]
            new = _evaluate(name, inner.jaxpr, inner.consts, ins)
        else:
            new = [_apply(name, eqn, ins)]
        write(eqn.outvars, new)
    return [read(v) for v in jaxpr.outvars]


def _apply(name: str, eqn: Any, ins: Sequence[Value]) -> Value:
    operation, is_float32 = eqn.primitive.name, eqn.outvars[0].aval.dtype == jnp.float32
    if operation == "select_n" and is_float32 and not all(isinstance(x, Known) for x in ins):
        return Choice(ins[0].array, ins[1:])
    is_number = all(x.is_number for x in (ins[1:] if operation == "select_n" else ins))
    if operation in ROUND_NOTHING or not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact):
        new = eqn.primitive.bind(*(x.array for x in ins), **eqn.params)
        return Known(new[0] if eqn.primitive.multiple_results else new, is_number)
    if operation == "square" or (operation == "integer_pow" and eqn.params["y"] == 2):
        operation, ins = "mul", [ins[0], ins[0]]
    if not is_float32 or operation not in OPERATIONS:
        raise ValueError(
            f"exact knows + - * / and sqrt in float32, and {name} computes {operation!r} in "
            f"{eqn.outvars[0].aval.dtype}: use the optimizer as it is"
        )
    value = OPERATIONS[operation](*ins)
    return Known(value.array, is_number) if is_number or isinstance(value, Known) else value


def _add(a: Value, b: Value) -> Value:
    return Known(b.added_to(a.array) if isinstance(a, Known) else a.added_to(b.array))


def _sub(a: Value, b: Value) -> Value:
    return Known(b.taken_from(a.array))


def _times(a: Value, b: Value) -> Value:
    if a.is_number or b.is_number:
        return Term(a.array, b.array) if a.is_number else Term(b.array, a.array)
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Term) and one.alpha is not None and one.y is None:
            return Term(one.alpha, one.x, other.array)
    return Term(None, a.array, b.array)


def _over(a: Value, b: Value) -> Value:
    if b.is_number:
        return Known(_mul(a.array, _div(jnp.float32(1), b.array)))
    if isinstance(a, Term) and a.alpha is not None and a.y is None:
        return Term(a.alpha, a.x, b.array, over=True)
    return Known(_div(a.array, b.array))


OPERATIONS: dict[str, Callable[..., Value]] = {
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "mul": _times,
    "div": _over,
    "sqrt": lambda a: Known(_sqrt(a.array)),
}


# XLA may elide a cast to float32 and back, and LLVM makes a float32 division of a float64 one whose result is cast:
# `rounded` on either side of a cast stops both.


def _mul(a: jax.Array, b: jax.Array) -> jax.Array:
    return rounded(a * rounded(b))  # compilers see through the absolute value of a square, if it looks like one


def _div(a: jax.Array, b: jax.Array) -> jax.Array:
    with float64():
        return rounded(rounded(_wide(a) / _wide(b)).astype(jnp.float32))


def _sqrt(a: jax.Array) -> jax.Array:
    with float64():
        return rounded(rounded(jnp.sqrt(_wide(a))).astype(jnp.float32))


def _fma(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """`a * b + c`, rounded once.

    The product is exact in float64, the sum is not, and to round it to float64 and then to float32 goes wrong about
    once in 10^9. Rounded to odd it does not: where the sum has an error, its last bit is made 1 (Boldo and Melquiond,
    Emulation of FMA and correctly rounded sums, 2008). The error is Knuth's.
    """
    with float64():
        product, c = _wide(a) * _wide(b), _wide(c)
        nearest = product + c
        x, y, s = jax.lax.stop_gradient((product, c, nearest))
        of_y = s - x
        error = (x - (s - of_y)) + (y - of_y)
        bits = jax.lax.bitcast_convert_type(s, jnp.int64)
        inexact = (jnp.abs(error) > 0) & (bits & 1 == 0)  # not where it is NaN, beside an infinity
        bits = bits + jnp.where(inexact, jnp.where((error > 0) == (s > 0), 1, -1), 0)
        odd = jax.lax.bitcast_convert_type(bits, jnp.float64)
        return rounded((nearest + jnp.where(inexact, odd - s, 0)).astype(jnp.float32))


def _wide(x: Any) -> jax.Array:
    return jnp.asarray(x).astype(jnp.float64)


def _is_var(v: Any) -> bool:
    return not isinstance(v, Literal)

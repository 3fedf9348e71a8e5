"""The loss and its gradient as a program: what jit compiles for a closure, and when it compiles anew."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jax.extend.core.primitives import custom_jvp_call_p, custom_vjp_call_p

from jaxopt_port.closure.flat import Leaves, Tree, flatten, gradient, leaves_of
from jaxopt_port.closure.reach import Looks, Same, captured_arrays, code_of, reach

ARRAYS = jax.Array | np.ndarray | np.generic | complex | float | int
CONFIG = (
    "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion", "jax_disable_jit", "jax_debug_nans", "jax_threefry_partitionable",
    "jax_random_seed_offset",
)  # fmt: skip


class Program:
    """What a closure and its gradient compute, without the arrays that go into it: a static argument of jit.

    A torch closure reads its batch from a variable around it, and jit would keep the first one that it sees of a
    function. So what the closure captured is handed over beside the program.

    Two programs are equal where every operation is the same, with equal parameters by the measure of JAX's own caches.
    What stays inside has to be the same as well: numbers and NumPy arrays byte for byte; anything else, such as an
    array that an inner jit has captured or a function on the host, is the same only where it is the same object. The
    gradient is in the program, so that a derivative rule of the closure's own counts as what it does.

    Args:
      closed: the program as traced, a jaxpr.
      out: the structure of what it returns.
    """

    def __init__(self, closed: ClosedJaxpr, out: Any):
        jaxpr = closed.jaxpr
        self.captured, self.out = len(jaxpr.constvars), out
        self.jaxpr = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
        self.key = (_contents(self.jaxpr, {}), self.captured, out)
        self.hash = hash(self.key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self.key == other.key)

    def __hash__(self) -> int:
        return self.hash

    def gradient(self, operands: Sequence[Any], leaves: Leaves) -> tuple[Any, Leaves]:
        """What the closure returns at parameters given as leaves, and its gradient in torch's convention."""
        program = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, []))
        return self.out.unflatten(program(*operands[: self.captured], *leaves, *operands[self.captured :]))

    def evaluation(self, operands: Sequence[Any]) -> Callable[[Leaves], tuple[Any, jax.Array]]:
        """The same as a function of the leaves, with the gradient as one vector."""

        def evaluate(leaves: Leaves) -> tuple[Any, jax.Array]:
            returned, grads = self.gradient(operands, leaves)
            return returned, flatten(grads, leaves)

        return evaluate


def trace(
    closure: Callable[..., Any], params: Tree, args: Sequence[Any] = (), has_aux: bool = False
) -> tuple[Program, list[Any]]:
    """Trace a closure with its gradient.

    Args:
      closure: `(params, *args) -> loss`, or `(loss, aux)` with `has_aux`.
      params: the parameters.
      args: handed to `closure`. Numbers and arrays go into the program; what else is in them is part of it.
      has_aux: whether `closure` returns something beside the loss.

    Returns:
      `(program, operands)`: the program, and the arrays that go into it.
    """
    return Traces()(closure, params, args, has_aux)


class Traces:
    """`trace`, which remembers what it made of a function for as long as nothing changes that the function can reach.

    Other parameters, and other numbers and arrays in `args`, are operands, and change nothing; nor does another array
    in a variable that the function itself captures, nor that the function is made anew from the same code.
    """

    def __init__(self) -> None:
        self.made: WeakKeyDictionary[Any, tuple[Hashable, Program, list[Any]]] = WeakKeyDictionary()
        self.by_value: WeakSet[Any] = WeakSet()  # what looks at the arrays that it captures

    def __call__(
        self, closure: Callable[..., Any], params: Tree, args: Sequence[Any], has_aux: bool
    ) -> tuple[Program, list[Any]]:
        leaves, treedef = leaves_of(params), jax.tree.structure(params)
        given, args_treedef = jax.tree.flatten(tuple(args))
        arrays = {i: x for i, x in enumerate(given) if isinstance(x, ARRAYS)}
        others = [x for i, x in enumerate(given) if i not in arrays]
        code, (captured, make) = code_of(closure), captured_arrays(closure)
        known = _can_be_key(code) and not any(isinstance(x, Tracer) for x in [*leaves, *given])
        now = reach(make(dict.fromkeys(captured)), others) if known and code not in self.by_value else None
        if now is not None and captured and Same(Looks) in now:
            self.by_value.add(code)
            now = None
        if now is None:
            captured, make = {}, lambda _: closure
            now = reach(closure, others) if known else None
        operands = [*arrays.values(), *captured.values()]
        types = [jax.typeof(x) for x in [*leaves, *operands]]
        key = (treedef, args_treedef, *types, *arrays, *captured, has_aux, _context())
        before = self.made.get(code) if known else None
        if now is not None and before is not None and before[0] == (now, key):
            return before[1], [*before[2], *operands]

        def evaluate(leaves: Leaves, arrays: dict[int, Any], captured: dict[int, Any]) -> tuple[Any, Leaves]:
            args = args_treedef.unflatten(arrays.get(i, x) for i, x in enumerate(given))
            return gradient(make(captured), treedef, args, has_aux)(leaves)

        try:
            closed, shapes = jax.make_jaxpr(evaluate, return_shape=True)(leaves, arrays, captured)
        except Exception:  # such as TypeError: a shape that is a captured array
            if not captured:
                raise
            closed, shapes = None, None
        if closed is None:
            self.by_value.add(code)
            try:
                return self(closure, params, args, has_aux)
            except Exception:  # the function's own
                self.by_value.discard(code)
                raise
        program = Program(closed, jax.tree.structure(shapes))
        if now is not None:
            self.made[code] = (now, key), program, closed.consts
        return program, [*closed.consts, *operands]


def _can_be_key(x: Any) -> bool:
    """Whether something can be remembered: a dataclass that is called has no hash, one with slots no reference."""
    try:
        hash(ref(x))
    except Exception:
        return False
    return True


def _context() -> Hashable:
    """What a trace depends on beside the function and what goes into it."""
    return *(getattr(jax.config, name) for name in CONFIG), jax.sharding.get_abstract_mesh()


def _contents(jaxpr: Jaxpr, seen: dict[int, int]) -> Hashable:
    """All that says what a jaxpr computes: variables by the order in which they come, and so jaxprs that come again."""
    numbers: dict[Var, int] = {}

    def atoms(xs: Sequence[Any]) -> Hashable:
        return tuple(
            (x.aval, _fixed(x.val, seen) if isinstance(x, Literal) else numbers.setdefault(x, len(numbers))) for x in xs
        )

    def equation(eqn: JaxprEqn) -> Hashable:
        # The gradient has gone through derivative rules already, which are new objects in every trace.
        has_rule = eqn.primitive in (custom_jvp_call_p, custom_vjp_call_p)
        params, names = jax.tree.flatten(eqn.params["call_jaxpr"] if has_rule else eqn.params)
        fixed = tuple(_fixed(x, seen) for x in params)
        return eqn.primitive, names, fixed, eqn.ctx, atoms(eqn.invars), atoms(eqn.outvars)

    if id(jaxpr) in seen:
        return "again", seen[id(jaxpr)]
    seen[id(jaxpr)] = len(seen)
    inputs = atoms([*jaxpr.constvars, *jaxpr.invars])
    return len(jaxpr.constvars), inputs, tuple(map(equation, jaxpr.eqns)), atoms(jaxpr.outvars)


def _fixed(x: Any, seen: dict[int, int]) -> Hashable:
    """What is inside a program, to compare."""
    if isinstance(x, ClosedJaxpr):
        return _contents(x.jaxpr, seen), tuple(_fixed(const, seen) for const in x.consts)
    if isinstance(x, Jaxpr):
        return _contents(x, seen)
    if isinstance(x, np.ndarray | np.generic | complex | float):  # 0.0 == -0.0, and NaN != NaN
        x = np.asarray(x)
        return x.dtype, x.shape, x.tobytes()
    try:
        hash(x)
    except TypeError:
        return Same(x)
    return type(x), x

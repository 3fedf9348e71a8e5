"""Whether a closure is what it was at its last call, and with it all that it can reach.

Tracing a closure takes long, and cannot be left out where the closure reads another batch than last time. Where nothing
has changed it can. So what a function can reach is walked through: the variables around it and of its module, the
functions that it calls with theirs, the attributes of objects. JAX's arrays are the same where they are the same
object, NumPy's where they have the same bytes, numbers and strings where they are equal, functions, lists and dicts
where they have the same code and the same things in them. Where something cannot be looked into (an iterator, a random
generator, the clock), nothing is said, and the closure is traced.

JAX's arrays in variables that the closure itself captures, in its defaults, or that a partial binds, are handed over as
arguments: the closure is made again with others in their place, and so traced but once.
"""

import dis
import functools
import hashlib
import types
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

# Packages that hold no values of the user's, and whose functions give the same for the same.
PURE = {"abc", "builtins", "cmath", "collections", "dataclasses", "enum", "functools", "itertools", "math"} | {
    "operator", "typing", "types", "equinox", "flax", "jax", "jaxlib", "jaxopt_port", "jaxtyping", "numpy", "optax",
}  # fmt: skip
IMPURE = {"eval", "exec", "getattr", "globals", "input", "locals", "next", "open", "vars", "__import__"}
MOST = 10_000  # values that are looked at
LARGEST = 1 << 26  # bytes of a NumPy array that is looked at


class _OpaqueError(Exception):
    """Something cannot be looked into."""


class Same:
    """Equal where the object is the same. It keeps the object, so that no other one can take its address."""

    def __init__(self, x: Any):
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.x is other.x

    def __hash__(self) -> int:
        return id(self.x)


class _Plain:
    """An object whose values are all in its `__dict__` is as large as one of this class."""


def reach(function: Any, others: Sequence[Any] = ()) -> Hashable:
    """All that a function and other values can reach, to compare with what it is later; None where that is unknown.

    The function itself is not in it, so that what is kept under it does not keep it.
    """
    try:
        inside = [] if _is_constant(function) else list(_inside(function))
        return tuple(_walk([*inside, *others]))
    except _OpaqueError:
        return None


def code_of(function: Any) -> Any:
    """What stays the same where a function is made anew; the function itself where it is no plain one."""
    while isinstance(function, functools.partial | types.MethodType):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    return function.__code__ if isinstance(function, types.FunctionType) else function


def captured_arrays(function: Any) -> tuple[dict[int, jax.Array], Callable[[dict[int, Any]], Any]]:
    """The arrays around a function, in its defaults or bound by a partial; and how to make the function with others."""
    if isinstance(function, functools.partial):
        bound = (function.args, function.keywords)
        leaves, treedef = jax.tree.flatten(bound, is_leaf=lambda x: type(x) not in (tuple, list, dict))

        def bind(arrays: dict[int, Any]) -> Any:
            args, keywords = treedef.unflatten(arrays.get(i, x) for i, x in enumerate(leaves))
            return functools.partial(function.func, *args, **keywords)

        return {i: x for i, x in enumerate(leaves) if _is_array(x)}, bind
    if not isinstance(function, types.FunctionType):
        return {}, lambda _: function
    cells, defaults = function.__closure__ or (), function.__defaults__ or ()

    def copy(arrays: dict[int, Any]) -> Any:
        around = tuple(types.CellType(arrays[i]) if i in arrays else cell for i, cell in enumerate(cells))
        values = tuple(arrays.get(len(cells) + i, x) for i, x in enumerate(defaults))
        made = types.FunctionType(function.__code__, function.__globals__, function.__name__, values, around)
        made.__kwdefaults__ = function.__kwdefaults__
        vars(made).update(vars(function))
        return made

    held = [*(cell.cell_contents if _is_full(cell) else None for cell in cells), *defaults]
    return {i: x for i, x in enumerate(held) if _is_array(x)}, copy


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, Tracer)


def _walk(todo: list[Any]) -> Iterator[Hashable]:
    seen: dict[int, Any] = {}
    while todo:
        x = todo.pop()
        if isinstance(x, float | complex | np.generic | np.ndarray):
            yield _bytes(np.asarray(x))
        elif x is None or isinstance(x, bool | int | str | bytes | np.dtype):
            yield type(x), x
        else:
            yield _kind(x)
            if id(x) not in seen and not _is_constant(x):
                seen[id(x)] = x
                if len(seen) > MOST:
                    raise _OpaqueError
                inside = list(_inside(x))
                yield len(inside)
                todo.extend(inside)


def _kind(x: Any) -> Hashable:
    """What an object is beside what is inside it: itself where there is more to it."""
    if isinstance(x, types.FunctionType):
        return x.__code__
    return type(x) if type(x) in (tuple, list, dict, functools.partial, types.MethodType) else Same(x)


def _bytes(x: np.ndarray) -> Hashable:
    """0.0 == -0.0, and NaN != NaN: so the bytes are compared."""
    if x.nbytes > LARGEST or x.dtype.hasobject:
        raise _OpaqueError
    return x.dtype, x.shape, hashlib.blake2b(x.tobytes()).digest()


def _is_constant(x: Any) -> bool:
    """Whether the same object is always the same value."""
    if isinstance(x, Tracer):
        raise _OpaqueError
    if isinstance(x, types.BuiltinFunctionType):  # a method holds an object
        if not _is_pure(x.__module__) or not isinstance(x.__self__, types.ModuleType | None):
            raise _OpaqueError
        return True
    if isinstance(x, type):
        return _is_pure(x.__module__)
    # What jit has captured it keeps, whatever becomes of the variable.
    return isinstance(x, jax.Array | np.ufunc) or (hasattr(x, "lower") and type(x).__module__.startswith("jaxlib"))


def _is_pure(module: str | None) -> bool:
    return (module or "").partition(".")[0] in PURE and not str(module).startswith("numpy.random")


def _inside(x: Any) -> Iterator[Any]:
    """The values to which one leads."""
    if isinstance(x, tuple | list):
        yield from x
    elif isinstance(x, dict):
        yield from (*x.keys(), *x.values())
    elif isinstance(x, types.FunctionType):
        if _assigns(x.__code__):  # another array, perhaps, to a variable that was read already
            raise _OpaqueError
        yield from (x.__defaults__, x.__kwdefaults__)
        yield from (value for name, value in vars(x).items() if not name.startswith("__") or name == "__wrapped__")
        yield from (cell.cell_contents for cell in x.__closure__ or () if _is_full(cell))
        if not _is_pure(x.__globals__.get("__name__")):
            yield from _of_code(x.__code__, x.__globals__)
    elif isinstance(x, types.MethodType):
        yield from (x.__func__, x.__self__)
    elif isinstance(x, functools.partial):
        yield from (x.func, x.args, tuple(x.keywords.items()))
    elif isinstance(x, classmethod | staticmethod):
        yield x.__func__
    elif isinstance(x, property):
        yield x.fget
    elif isinstance(x, type):
        methods = (types.FunctionType, classmethod, staticmethod, property)
        yield from x.__mro__[1:]
        yield from (v for k, v in vars(x).items() if isinstance(v, methods) or not k.startswith(("__", "_abc_")))
    elif type(x) is types.SimpleNamespace or (type(x).__basicsize__ == _Plain.__basicsize__ and hasattr(x, "__dict__")):
        yield from (type(x), vars(x))
    else:
        raise _OpaqueError


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _of_code(code: types.CodeType, variables: dict[str, Any]) -> Iterator[Any]:
    """What code reads of the variables of its module, and of other modules."""
    globals_, names, imports = _names(code)
    if imports or globals_ & IMPURE:
        raise _OpaqueError
    for name in sorted(globals_ & variables.keys()):
        x = variables[name]
        yield name
        if not isinstance(x, types.ModuleType):
            yield x
        elif not _is_pure(x.__name__):
            if not hasattr(x, "__file__"):  # time
                raise _OpaqueError
            yield from (vars(x)[each] for each in sorted(names & vars(x).keys()))
        elif x.__name__ == "numpy" and "random" in names:
            raise _OpaqueError


@functools.lru_cache(maxsize=1000)
def _assigns(code: types.CodeType) -> bool:
    """Whether code, or a function made in it, assigns to a variable around it."""
    stores = {each.argval for each in dis.get_instructions(code) if each.opname in ("STORE_DEREF", "DELETE_DEREF")}
    return not stores.isdisjoint(code.co_freevars) or any(
        _assigns(const) for const in code.co_consts if isinstance(const, types.CodeType) and const.co_freevars
    )


@functools.lru_cache(maxsize=1000)
def _names(code: types.CodeType) -> tuple[set[str], set[str], bool]:
    """The globals that code reads, all names in it, and whether it imports; with those of functions made in it."""
    instructions = list(dis.get_instructions(code))
    globals_ = {str(each.argval) for each in instructions if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    names, imports = set(code.co_names), any(each.opname == "IMPORT_NAME" for each in instructions)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            more_globals, more_names, imports_too = _names(const)
            globals_, names, imports = globals_ | more_globals, names | more_names, imports or imports_too
    return globals_, names, imports

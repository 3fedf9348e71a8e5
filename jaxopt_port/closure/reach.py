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

import builtins
import collections
import dis
import functools
import hashlib
import itertools
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
FILES = {"fromfile", "fromregex", "genfromtxt", "load", "loadtxt", "memmap"}  # functions of numpy that read one
SHOWS = {"Tracer", "hasattr", "id", "is_concrete", "repr", "str", "suppress", "type"}  # whether an array is traced
PARTIALS = (functools.partial, jax.tree_util.Partial)
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


class Looks:
    """Stands among what can be reached for code that may see whether an array is traced, which nothing should tell."""


class _Plain:
    """An object whose values are all in its `__dict__` is as large as one of this class."""


def reach(function: Any, others: Sequence[Any] = ()) -> tuple[Hashable, ...] | None:
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
    if type(function) in PARTIALS:
        bound, leaves = (function.args, function.keywords), list[Any]()
        _replaced(bound, leaves.append)

        def bind(arrays: dict[int, Any]) -> Any:
            at = itertools.count()
            args, keywords = _replaced(bound, lambda x: arrays.get(next(at), x)) if arrays else bound
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


def _replaced(x: Any, leaf: Callable[[Any], Any]) -> Any:
    """Tuples, lists and dicts with other leaves; dicts in their own order, not in that of a pytree."""
    if type(x) is dict:
        return {key: _replaced(value, leaf) for key, value in x.items()}
    return type(x)(_replaced(each, leaf) for each in x) if type(x) in (tuple, list) else leaf(x)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, Tracer)


def _walk(todo: list[Any]) -> Iterator[Hashable]:
    seen: dict[int, tuple[int, Any]] = {}
    while todo:
        x = todo.pop()
        exact = _is_constant(type(x))  # the class of a user's may have more to it
        if type(x) in (np.ndarray, np.memmap) or (exact and isinstance(x, float | complex | np.generic)):
            yield type(x), _bytes(np.asarray(x))
        elif x is None or isinstance(x, np.dtype) or (exact and isinstance(x, int | str | bytes)):
            yield type(x), x
        elif id(x) in seen:  # which of them: two lists may differ in nothing but where they are
            yield seen[id(x)][0]
        else:
            yield _kind(x)
            if not _is_constant(x):
                seen[id(x)] = len(seen), x
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
    if isinstance(x, type):  # types.new_class makes them of a user's
        return _is_pure(x.__module__) and (x.__module__ != "types" or getattr(types, x.__name__, None) is x)
    if x is NotImplemented or x is Ellipsis:
        return True
    if isinstance(x, np.ufunc):
        return set("".join(x.types)) != set("O->")  # np.frompyfunc makes them of a function
    # What jit has captured it keeps, whatever becomes of the variable.
    is_jitted = type(x).__module__.startswith("jaxlib") and hasattr(x, "lower")
    return isinstance(x, jax.Array) or (is_jitted and not getattr(jax.config, "jax_disable_jit"))  # noqa: B009


def _is_pure(module: str | None) -> bool:
    return (module or "").partition(".")[0] in PURE and not str(module).startswith("numpy.random")


def _inside(x: Any) -> Iterator[Any]:
    """The values to which one leads."""
    if isinstance(x, tuple | list | dict):
        yield from (*x.keys(), *x.values()) if isinstance(x, dict) else x
        if type(x) not in (tuple, list, dict):
            yield from _of_subclass(x)
    elif isinstance(x, types.FunctionType):
        if _assigns(x.__code__):  # another array, perhaps, to a variable that was read already
            raise _OpaqueError
        yield from (x.__defaults__, x.__kwdefaults__)
        yield from (value for name, value in vars(x).items() if not name.startswith("__") or name == "__wrapped__")
        yield from (cell.cell_contents for cell in x.__closure__ or () if _is_full(cell))
        if _is_pure(x.__globals__.get("__name__")):
            if x.__name__ in FILES:
                raise _OpaqueError
        else:
            if x.__name__ == "__call__" or not x.__name__.startswith("__"):
                yield Looks if _looks(x.__code__) else None
            yield from _of_code(x.__code__, x.__globals__)
    elif isinstance(x, types.MethodType):
        yield from (x.__func__, x.__self__)
    elif type(x) in PARTIALS:
        yield from (x.func, x.args, tuple(x.keywords.items()))
    elif isinstance(x, classmethod | staticmethod):
        yield x.__func__
    elif type(x) is property:
        yield x.fget
    elif isinstance(x, type):
        yield from (type(x), *x.__mro__[1:])
        yield from (v for k, v in vars(x).items() if _is_method(v) or not k.startswith(("__", "_abc_impl")))
    elif type(x) is types.SimpleNamespace or (type(x).__basicsize__ == _Plain.__basicsize__ and hasattr(x, "__dict__")):
        yield from (type(x), vars(x))
    else:
        raise _OpaqueError


def _of_subclass(x: Any) -> Iterator[Any]:
    """What a tuple, a list or a dict of a class of its own has beside its elements."""
    if any("__slots__" in vars(cls) and cls.__slots__ for cls in type(x).__mro__):
        raise _OpaqueError
    yield type(x)
    yield getattr(x, "__dict__", None)
    yield x.default_factory if isinstance(x, collections.defaultdict) else None


def _is_method(x: Any) -> bool:
    """Whether an attribute of a class is called or looked up where a special method is wanted."""
    if isinstance(x, types.GetSetDescriptorType | types.BuiltinFunctionType | type):
        return False
    return callable(x) or hasattr(type(x), "__get__")


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _of_code(code: types.CodeType, variables: dict[str, Any]) -> Iterator[Any]:
    """What code reads of the variables of its module, and of other modules."""
    globals_, names, bare, imports = _names(code)
    if imports or globals_ & IMPURE:
        raise _OpaqueError
    for name in sorted(globals_):
        around = variables if name in variables else vars(builtins)
        if name not in around:
            continue
        x = around[name]
        yield name
        if not isinstance(x, types.ModuleType):
            yield x
        elif not _is_pure(x.__name__):
            if not hasattr(x, "__file__") or name in bare or "__dict__" in names:  # time; one that is handed on
                raise _OpaqueError
            yield from (vars(x)[each] for each in sorted((names | {"__getattr__"}) & vars(x).keys()))
        elif x.__name__ in ("numpy", "jax.numpy") and names & (FILES | {"random"} if x.__name__ == "numpy" else FILES):
            raise _OpaqueError


@functools.lru_cache(maxsize=1000)
def _assigns(code: types.CodeType) -> bool:
    """Whether code, or a function made in it, assigns to a variable around it."""
    stores = {each.argval for each in dis.get_instructions(code) if each.opname in ("STORE_DEREF", "DELETE_DEREF")}
    return not stores.isdisjoint(code.co_freevars) or any(
        _assigns(const) for const in code.co_consts if isinstance(const, types.CodeType) and const.co_freevars
    )


@functools.lru_cache(maxsize=1000)
def _looks(code: types.CodeType) -> bool:
    """Whether code, or a function made in it, may tell one array from another, or catch what a traced one raises."""
    instructions = list(dis.get_instructions(code))
    compares = any(
        after.opname == "IS_OP"
        and not (before.opname.startswith("LOAD_CONST") and before.argval in (None, True, False))
        for before, after in itertools.pairwise(instructions)
    )
    catches = any(
        before.opname == "PUSH_EXC_INFO" and after.opname != "WITH_EXCEPT_START"
        for before, after in itertools.pairwise(instructions)
    )
    return (
        compares
        or catches
        or not SHOWS.isdisjoint(code.co_names)
        or any(_looks(const) for const in code.co_consts if isinstance(const, types.CodeType))
    )


@functools.lru_cache(maxsize=1000)
def _names(code: types.CodeType) -> tuple[set[str], set[str], set[str], bool]:
    """Of code and of functions made in it: globals that it reads, all names in it, globals of which it reads not only
    attributes, and whether it imports.
    """
    instructions = list(dis.get_instructions(code))
    globals_ = {str(each.argval) for each in instructions if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    bare = {
        str(each.argval)
        for each, after in itertools.pairwise(instructions)
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME") and after.opname not in ("LOAD_ATTR", "LOAD_METHOD")
    }
    names, imports = set(code.co_names), any(each.opname == "IMPORT_NAME" for each in instructions)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            more_globals, more_names, more_bare, imports_too = _names(const)
            globals_, names, bare = globals_ | more_globals, names | more_names, bare | more_bare
            imports = imports or imports_too
    return globals_, names, bare, imports

"""The pickle inside a `.pt` file, read by an interpreter that knows plain data and tensors, and nothing else.

Python's own unpickler is not used: it calls what the file names, recurses as deep as the file says, and makes room for
memo entries that do not exist. This one knows the opcodes that `torch.load(weights_only=True)` knows, looks no name
up, and does work and takes memory in proportion to the length of the pickle.
"""

import collections
import pickle
import reprlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxopt_port.torch_interop.files import numpy_objects
from jaxopt_port.torch_interop.files.pt_types import DTYPES, MAX_DEPTH, STORAGES, UNTYPED_STORAGE, PtFileError

MAX_NAME = 256  # bytes of a module's or a function's name
MAX_DIMENSIONS = 64  # torch's and NumPy's
MAX_KEY = 1 << 16  # characters of a dict's key
MAX_SHARING = 100  # items a byte of the pickle may stand for, where one container is used in many places
COPIES = 2  # of a byte of the pickle: a NumPy array's bytes are made of a text, and the array of them
DICTS = (dict, collections.OrderedDict, collections.Counter)

LoadStorage = Callable[[str, np.dtype | None, int], np.ndarray]


class Name(NamedTuple):
    """A function or a class that the pickle named. It is never looked up."""

    full: str


class Storage(NamedTuple):
    """The bytes behind a tensor, and their type where the file gives one."""

    data: np.ndarray
    dtype: np.dtype | None


class PickleReader:
    """One run over one pickle.

    Args:
      data: the pickle.
      load_storage: `(key, dtype, elements)` -> its bytes; the dtype is None, and elements are bytes, for untyped ones.
    """

    def __init__(self, data: bytes, load_storage: LoadStorage):
        self._data = data
        self._load_storage = load_storage
        self._at = 0
        self._copied = 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The object, checked.

        Raises:
          PtFileError: the pickle is damaged, or holds what is not plain data.
        """
        if self._take(1) != pickle.PROTO or self._take(1) != b"\2":
            raise PtFileError("the pickle is not of protocol 2, torch's default: save without pickle_protocol=")
        try:
            while (opcode := self._take(1)) != pickle.STOP:
                operation = _OPERATIONS.get(opcode)
                if operation is None:
                    raise PtFileError(f"pickle opcode {opcode!r} at byte {self._at - 1} is not one that torch writes")
                operation(self)
            (result,) = self._stack
        except PtFileError:
            raise
        except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise PtFileError(f"the pickle is damaged before byte {self._at}") from error
        _Walk(MAX_SHARING * len(self._data)).visit(result, 0)
        return result

    # Bytes of the pickle.

    def _take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise PtFileError("the pickle is cut short")
        return self._data[start : self._at]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + MAX_NAME)
        if end < 0:
            raise PtFileError("a name in the pickle does not end")
        return self._take(end + 1 - self._at)[:-1].decode("utf-8", "replace")

    # The stack.

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop_to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    # Containers.

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise PtFileError(f"the pickle appends to a {type(target).__name__}")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in DICTS:
            raise PtFileError(f"the pickle sets items of a {type(target).__name__}")
        if len(items) % 2:
            raise IndexError
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def _build(self) -> None:
        (state,) = self._pop(1)
        target = self._stack[-1]
        if type(target) is numpy_objects.ElementType:
            target.build(state)
        elif type(target) is np.ndarray and target.shape == (0,):
            self._count(state)
            numpy_objects.fill(target, state)
        elif type(target) is collections.OrderedDict and type(state) is dict and list(state) == ["_metadata"]:
            vars(target).update(state)  # a module's state_dict has its layers' versions there
        else:
            raise PtFileError(f"the pickle sets attributes of a {type(target).__name__}")

    # Names and calls.

    def _global(self) -> None:
        full = f"{self._line()}.{self._line()}".replace("__builtin__.", "builtins.")
        if full in DTYPES:
            self._push(DTYPES[full])
        elif full in _CALLS or full in STORAGES or full in (UNTYPED_STORAGE, "numpy.ndarray"):
            self._push(Name(full))
        else:
            above = [x for items in (*self._marked, self._stack) for x in items if isinstance(x, str)]
            near = f" near {reprlib.repr(above[-1])}" if above else ""
            raise PtFileError(
                f"it holds a {full}{near}, which is not plain data: only "
                "tensors, arrays, numbers, strings, None, lists, tuples, sets and dicts are read. Save a file without: "
                'torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)'
            )

    def _reduce(self) -> None:
        name, args = self._pop(2)
        if type(name) is not Name or type(args) is not tuple:
            raise PtFileError("the pickle calls what is not a function")
        call = _CALLS.get(name.full)
        if call is None:
            raise PtFileError(f"the pickle calls {name.full}")
        self._count(args)
        self._push(call(*args))

    def _count(self, args: tuple[Any, ...]) -> None:
        """Refuse a call in a loop over one long list: what is copied so often was written so often."""
        self._copied += sum(len(each) for each in args if isinstance(each, str | bytes | list | dict))
        if self._copied > COPIES * len(self._data):
            raise PtFileError("the pickle copies more than it holds")

    def _storage(self) -> None:
        (identity,) = self._pop(1)
        kind, storage_type, key, _location, elements = identity
        if (kind, type(storage_type), type(key), type(elements)) != ("storage", Name, str, int) or elements < 0:
            raise PtFileError("a storage without a type, a name or a size")
        dtype = STORAGES.get(storage_type.full)
        if dtype is None and storage_type.full != UNTYPED_STORAGE:
            raise PtFileError(f"a storage of type {storage_type.full}")
        self._push(Storage(self._load_storage(key, dtype, elements), dtype))


def _checked_key(key: Any) -> Any:
    """The key, if it is one that takes the same time to look up whatever the file holds."""
    if (
        key is None
        or isinstance(key, bool | float)
        or (type(key) is int and -(1 << 63) <= key < 1 << 64)
        or isinstance(key, np.integer | np.floating)
        or (isinstance(key, str | bytes) and len(key) <= MAX_KEY)
    ):
        return key
    raise PtFileError(f"a {type(key).__name__} as a dict's key or in a set: strings and numbers are read")


class _Walk:
    """Bounds how deep an object is and how many items it has when each container is counted wherever it is used."""

    def __init__(self, max_items: int):
        self._max_items = max_items
        self._seen: dict[int, tuple[int, int]] = {}  # of each container the height and the items

    def visit(self, value: Any, depth: int) -> tuple[int, int]:
        if isinstance(value, Name | Storage | numpy_objects.ElementType):
            raise PtFileError(f"a {type(value).__name__.lower()} stands where a value should")
        if id(value) not in self._seen:
            inside = _inside(value)
            if not inside:
                return 0, 1
            if depth >= MAX_DEPTH:
                raise PtFileError(f"containers are nested more than {MAX_DEPTH} deep, or one contains itself")
            visited = [self.visit(each, depth + 1) for each in inside]
            height = 1 + max(height for height, _ in visited)
            self._seen[id(value)] = height, 1 + sum(items for _, items in visited)
        height, items = self._seen[id(value)]
        if depth + height > MAX_DEPTH:
            raise PtFileError(f"containers are nested more than {MAX_DEPTH} deep")
        if items > self._max_items:
            raise PtFileError("one container is used so often that the whole is far larger than the file")
        return height, items


def _inside(value: Any) -> list[Any]:
    """The items of a container; none of anything else."""
    if isinstance(value, dict):
        return [*value.values(), *getattr(value, "__dict__", {}).values()]
    return list(value) if isinstance(value, list | tuple | set) else []


def _tensor(storage: Storage, dtype: np.dtype, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """A view into a storage."""
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise PtFileError("a tensor without a storage or a shape")
    if not len(shape) == len(strides) <= MAX_DIMENSIONS or any(
        type(x) is not int or x < 0 for x in (offset, *shape, *strides)
    ):
        raise PtFileError("a tensor whose offset, shape or strides are not (up to 64) whole numbers of at least 0")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    elements = storage.data.nbytes // dtype.itemsize
    if 0 not in shape and last >= elements:
        raise PtFileError(f"a tensor reaches element {last} of a storage of {elements}")
    try:
        if 0 in shape:
            return np.empty(shape, dtype)
        steps = [stride * dtype.itemsize for stride in strides]
        return np.ndarray(shape, dtype, storage.data, offset * dtype.itemsize, steps)
    except (ValueError, OverflowError) as error:
        raise PtFileError(f"a tensor of {len(shape)} dimensions that NumPy cannot hold ({error})") from error


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any = False, _hooks: Any = None, metadata: Any = None
) -> Any:
    _check_metadata(metadata)
    if type(storage) is not Storage or storage.dtype is None:
        raise PtFileError("a tensor without a type")
    return _tensor(storage, storage.dtype, offset, shape, strides)


def _untyped_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, metadata: Any = None
) -> Any:
    _check_metadata(metadata)
    if not isinstance(dtype, np.dtype):
        raise PtFileError("a tensor without a type")
    return _tensor(storage, dtype, offset, shape, strides)


def _check_metadata(metadata: Any) -> None:
    if metadata:
        raise PtFileError("a tensor that is lazily conjugated or negated: save x.resolve_conj().resolve_neg()")


def _parameter(data: Any, _grad: Any = True, _hooks: Any = None) -> Any:
    return data


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise PtFileError(f"a {type(value).__name__} where a {kind.__name__} should be")
    return value


def _latin1(text: Any, _encoding: Any) -> bytes:
    try:
        return _expect(text, str).encode("latin1")
    except UnicodeEncodeError as error:
        raise PtFileError("bytes that are not bytes") from error


def _set(items: Any) -> set[Any]:
    return {_checked_key(item) for item in _expect(items, list)}


def _device(kind: Any, index: Any = None) -> str:
    return _expect(kind, str) if index is None else f"{_expect(kind, str)}:{_expect(index, int)}"


def _counter(counts: Any) -> collections.Counter[Any]:
    return collections.Counter(_expect(counts, dict))


_CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: collections.OrderedDict(),
    "collections.Counter": _counter,
    "torch._utils._rebuild_tensor_v2": _typed_tensor,
    "torch._utils._rebuild_tensor_v3": _untyped_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": lambda sizes: _expect(sizes, tuple),
    "torch.device": _device,
    "_codecs.encode": _latin1,
    "numpy.dtype": numpy_objects.ElementType,
    **{f"{module}.scalar": numpy_objects.number for module in numpy_objects.MODULES},
    **{f"{module}._reconstruct": numpy_objects.empty for module in numpy_objects.MODULES},
    "builtins.bytes": lambda: b"",
    "builtins.bytearray": lambda data=b"": bytearray(_expect(data, bytes)),
    "builtins.set": _set,
    "builtins.complex": lambda real, imag: complex(_expect(real, float), _expect(imag, float)),
}

R = PickleReader
_OPERATIONS: Mapping[bytes, Callable[[PickleReader], None]] = {
    pickle.NONE: lambda r: r._push(None),
    pickle.NEWTRUE: lambda r: r._push(True),
    pickle.NEWFALSE: lambda r: r._push(False),
    pickle.BININT: lambda r: r._push(r._number("<i")),
    pickle.BININT1: lambda r: r._push(r._number("<B")),
    pickle.BININT2: lambda r: r._push(r._number("<H")),
    pickle.LONG1: lambda r: r._push(pickle.decode_long(r._take(r._number("<B")))),
    pickle.BINFLOAT: lambda r: r._push(r._number(">d")),
    pickle.BINUNICODE: lambda r: r._push(r._take(r._number("<I")).decode("utf-8", "surrogatepass")),
    pickle.EMPTY_TUPLE: lambda r: r._push(()),
    pickle.EMPTY_LIST: lambda r: r._push([]),
    pickle.EMPTY_DICT: lambda r: r._push({}),
    pickle.MARK: R._mark,
    pickle.TUPLE: lambda r: r._push(tuple(r._pop_to_mark())),
    pickle.TUPLE1: lambda r: r._push(tuple(r._pop(1))),
    pickle.TUPLE2: lambda r: r._push(tuple(r._pop(2))),
    pickle.TUPLE3: lambda r: r._push(tuple(r._pop(3))),
    pickle.APPEND: lambda r: r._append(r._pop(1)),
    pickle.APPENDS: lambda r: r._append(r._pop_to_mark()),
    pickle.SETITEM: lambda r: r._set_items(r._pop(2)),
    pickle.SETITEMS: lambda r: r._set_items(r._pop_to_mark()),
    pickle.BINPUT: lambda r: r._put(r._number("<B")),
    pickle.LONG_BINPUT: lambda r: r._put(r._number("<I")),
    pickle.BINGET: lambda r: r._push(r._memo[r._number("<B")]),
    pickle.LONG_BINGET: lambda r: r._push(r._memo[r._number("<I")]),
    pickle.GLOBAL: R._global,
    pickle.REDUCE: R._reduce,
    pickle.BUILD: R._build,
    pickle.BINPERSID: R._storage,
}

"""The pickle inside a `.pt` file, read by an interpreter that knows plain data and tensors, and nothing else.

Python's own unpickler is not used: it calls what the file names, recurses as deep as the file says, and makes room for
memo entries that do not exist. This one looks no name up, and does work and takes memory in proportion to the length
of the pickle. What is not plain data becomes an `Unknown`.
"""

import argparse
import collections
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

from jaxopt_port.torch_interop.files.numpy_objects import Unfinished
from jaxopt_port.torch_interop.files.pickle_calls import (
    CALLS,
    DICTS,
    LISTS,
    ORDERED_DICT,
    SETS,
    Keys,
    NotPlainError,
    Storage,
    expect,
)
from jaxopt_port.torch_interop.files.pt_types import DTYPES, QUANTIZED_STORAGES, STORAGES, UNTYPED_STORAGE, PtFileError
from jaxopt_port.torch_interop.files.unknown import Unknown

MAX_NAME = 1024  # bytes of a module's or a function's name
COPIES = 2  # of a byte of the pickle: a NumPy array's bytes are made of a text, and the array of them

LoadStorage = Callable[[str, np.dtype | None, int], np.ndarray]


def no_storage(_key: str, _dtype: np.dtype | None, _elements: int) -> np.ndarray:
    """For a pickle that has no tensors."""
    raise PtFileError("a tensor where none should be")


class PickleReader:
    """One run over one pickle, from where the file stands.

    Args:
      file: a binary file.
      size: how many bytes there are from there.
      load_storage: `(key, dtype, elements)` -> its bytes; the dtype is None, and elements are bytes, for untyped ones.
    """

    def __init__(self, file: IO[bytes], size: int, load_storage: LoadStorage = no_storage):
        self._file = file
        self._size = size
        self._load_storage = load_storage
        self.at = 0  # bytes read
        self._copied = 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._keys = Keys()

    def read(self) -> Any:
        """The object, which `check` has to see yet.

        Raises:
          PtFileError: the pickle is damaged, or would take more work or memory than its length.
        """
        if self._take(1) != pickle.PROTO or self._take(1) not in (b"\2", b"\3", b"\4", b"\5"):
            raise PtFileError("the pickle is not of protocol 2 to 5: save it without pickle_protocol=")
        try:
            while (opcode := self._take(1)) != pickle.STOP:
                operation = _OPERATIONS.get(opcode)
                if operation is None:
                    raise PtFileError(f"pickle opcode {opcode!r} at byte {self.at - 1} is not one that torch writes")
                operation(self)
            (result,) = self._stack
        except PtFileError:
            raise
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, AttributeError, NotPlainError) as error:
            raise PtFileError(f"the pickle is damaged before byte {self.at}") from error
        return result

    # Bytes of the pickle.

    def _take(self, count: int) -> bytes:
        self.at += count
        if self.at > self._size:
            raise PtFileError("the pickle is cut short")
        return self._file.read(count)

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _text(self, length: str) -> str:
        return self._take(self._number(length)).decode("utf-8", "surrogatepass")

    def _python2_text(self, length: str) -> str | bytes:
        """Python 2 has one type for texts and bytes; NumPy's arrays are such too."""
        data = self._take(self._number(length))
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data

    def _line(self) -> str:
        line = self._file.readline(min(MAX_NAME, self._size - self.at))
        self.at += len(line)
        if not line.endswith(b"\n"):
            raise PtFileError("a name in the pickle does not end")
        return line[:-1].decode("utf-8", "replace")

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
        value = self._memo[index] = self._stack[-1]
        if type(value) is Unfinished:
            value.memo.append(index)

    def _get(self, index: int) -> None:
        value = self._memo[index]
        if type(value) is Unfinished:
            raise PtFileError("a NumPy array or type is used before it is whole")
        self._push(value)

    # Containers.

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Unknown):
            target.items.extend(items)
        else:
            expect(target, *LISTS).extend(items)

    def _add(self, items: list[Any]) -> None:
        expect(self._stack[-1], set).update(self._keys.checked(item) for item in items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if len(items) % 2:
            raise IndexError
        pairs = zip(items[::2], items[1::2], strict=True)
        if isinstance(target, Unknown):
            target.items.extend(pairs)
        elif type(target) in DICTS:
            for key, value in pairs:
                target[self._keys.checked(key)] = value
        else:
            raise PtFileError(f"the pickle sets items of a {type(target).__name__}")

    def _build(self) -> None:
        (state,) = self._pop(1)
        target = self._stack[-1]
        if type(target) is Unfinished:
            self._count(state)
            finished = self._stack[-1] = target.finish(state)
            self._memo.update(dict.fromkeys(target.memo, finished))
        elif type(target) is Unknown and target.args is not None and target.state is None:
            target.state = state
        elif type(target) in (collections.OrderedDict, argparse.Namespace):
            self._count((state,))
            for name, value in expect(state, dict).items():
                if hasattr(type(target), expect(name, str)):
                    raise PtFileError(f"an attribute {name} of a {type(target).__name__}, which is a method's name")
                vars(target)[name] = value  # a module's state_dict has its layers' versions in _metadata
        else:
            raise PtFileError(f"the pickle sets attributes of a {type(target).__name__}")

    # Names and calls.

    def _global(self, module: str, name: str) -> None:
        module = "builtins" if module == "__builtin__" else module
        full = f"{module}.{name}"
        self._push(DTYPES[full] if full in DTYPES else Unknown(module, name))

    def _stack_global(self) -> None:
        module, name = self._pop(2)
        if len(expect(module, str)) + len(expect(name, str)) > MAX_NAME:
            raise PtFileError("a name in the pickle does not end")
        self._global(module, name)

    def _reduce(self, kwargs: Any = None) -> None:
        function, args = self._pop(2)
        if type(function) is not Unknown or function.args is not None or type(args) is not tuple:
            raise PtFileError("the pickle calls what is not a function")
        try:
            if kwargs:
                raise NotPlainError
            self._push(self._call(function.full, args))
        except NotPlainError:
            self._push(Unknown(function.module, function.name, args, kwargs))

    def _new_with_names(self) -> None:
        (kwargs,) = self._pop(1)
        self._reduce(expect(kwargs, dict))

    def _call(self, full: str, args: tuple[Any, ...]) -> Any:
        if full not in CALLS and full not in SETS and full != ORDERED_DICT:
            raise NotPlainError
        self._count(args)
        if full in SETS:
            (items,) = args or ([],)
            return SETS[full](self._keys.checked(item) for item in expect(items, list, tuple))
        if full == ORDERED_DICT:  # Python 2 has the items here
            (pairs,) = args or ([],)
            return collections.OrderedDict((self._keys.checked(key), value) for key, value in expect(pairs, list))
        return CALLS[full](*args)

    def _count(self, args: Any) -> None:
        """Refuse a call in a loop over one long list: what is copied so often was written so often."""
        self._copied += sum(len(each) for each in args if isinstance(each, str | bytes | bytearray | list | dict))
        if self._copied > COPIES * self.at:
            raise PtFileError("the pickle copies more than it holds")

    def _storage(self) -> None:
        (identity,) = self._pop(1)
        if identity[0] == "module":  # a class, beside the text of its source
            self._push(identity[1])
            return
        kind, storage_type, key, _location, elements, *view = identity
        if (kind, type(storage_type), type(key), type(elements)) != ("storage", Unknown, str, int) or elements < 0:
            raise PtFileError("a storage without a type, a name or a size")
        name = f"torch.{storage_type.name}" if storage_type.module == "torch.cuda" else storage_type.full
        dtype = STORAGES.get(name, QUANTIZED_STORAGES.get(name))
        if dtype is None and name != UNTYPED_STORAGE:
            raise PtFileError(f"a storage of type {name}")
        data = self._load_storage(key, dtype, elements)
        if view and view[0] is not None:  # torch 0.3 and older: a part of another storage, counted in elements
            _key, start, length = view[0]
            width = dtype.itemsize if dtype else 1
            if not 0 <= expect(start, int) <= start + expect(length, int) <= elements:
                raise PtFileError("a part of a storage that reaches beyond it")
            data = data[start * width : (start + length) * width]
        self._push(Storage(storage_type.module, storage_type.name, data, dtype))


R = PickleReader
_OPERATIONS: Mapping[bytes, Callable[[PickleReader], Any]] = {
    pickle.NONE: lambda r: r._push(None),
    pickle.NEWTRUE: lambda r: r._push(True),
    pickle.NEWFALSE: lambda r: r._push(False),
    pickle.BININT: lambda r: r._push(r._number("<i")),
    pickle.BININT1: lambda r: r._push(r._number("<B")),
    pickle.BININT2: lambda r: r._push(r._number("<H")),
    pickle.LONG1: lambda r: r._push(pickle.decode_long(r._take(r._number("<B")))),
    pickle.BINFLOAT: lambda r: r._push(r._number(">d")),
    pickle.BINUNICODE: lambda r: r._push(r._text("<I")),
    pickle.SHORT_BINUNICODE: lambda r: r._push(r._text("<B")),
    pickle.BINUNICODE8: lambda r: r._push(r._text("<Q")),
    pickle.BINSTRING: lambda r: r._push(r._python2_text("<I")),
    pickle.SHORT_BINSTRING: lambda r: r._push(r._python2_text("<B")),
    pickle.BINBYTES: lambda r: r._push(r._take(r._number("<I"))),
    pickle.SHORT_BINBYTES: lambda r: r._push(r._take(r._number("<B"))),
    pickle.BINBYTES8: lambda r: r._push(r._take(r._number("<Q"))),
    pickle.BYTEARRAY8: lambda r: r._push(bytearray(r._take(r._number("<Q")))),
    pickle.EMPTY_TUPLE: lambda r: r._push(()),
    pickle.EMPTY_LIST: lambda r: r._push([]),
    pickle.EMPTY_DICT: lambda r: r._push({}),
    pickle.EMPTY_SET: lambda r: r._push(set()),
    pickle.MARK: R._mark,
    pickle.POP: lambda r: r._pop(1) if r._stack else r._pop_to_mark(),
    pickle.POP_MARK: R._pop_to_mark,
    pickle.TUPLE: lambda r: r._push(tuple(r._pop_to_mark())),
    pickle.TUPLE1: lambda r: r._push(tuple(r._pop(1))),
    pickle.TUPLE2: lambda r: r._push(tuple(r._pop(2))),
    pickle.TUPLE3: lambda r: r._push(tuple(r._pop(3))),
    pickle.FROZENSET: lambda r: r._push(frozenset(map(r._keys.checked, r._pop_to_mark()))),
    pickle.APPEND: lambda r: r._append(r._pop(1)),
    pickle.APPENDS: lambda r: r._append(r._pop_to_mark()),
    pickle.ADDITEMS: lambda r: r._add(r._pop_to_mark()),
    pickle.SETITEM: lambda r: r._set_items(r._pop(2)),
    pickle.SETITEMS: lambda r: r._set_items(r._pop_to_mark()),
    pickle.BINPUT: lambda r: r._put(r._number("<B")),
    pickle.LONG_BINPUT: lambda r: r._put(r._number("<I")),
    pickle.MEMOIZE: lambda r: r._put(len(r._memo)),
    pickle.BINGET: lambda r: r._get(r._number("<B")),
    pickle.LONG_BINGET: lambda r: r._get(r._number("<I")),
    pickle.GLOBAL: lambda r: r._global(r._line(), r._line()),
    pickle.STACK_GLOBAL: R._stack_global,
    pickle.REDUCE: R._reduce,
    pickle.NEWOBJ: R._reduce,
    pickle.NEWOBJ_EX: R._new_with_names,
    pickle.BUILD: R._build,
    pickle.BINPERSID: R._storage,
    pickle.FRAME: lambda r: r._take(8),
}

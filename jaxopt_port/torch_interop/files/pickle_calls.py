"""The closed list of what a pickle may call: plain data and tensors. Any other call becomes an `Unknown`."""

import argparse
import collections
import datetime
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxopt_port.torch_interop.files import numpy_objects
from jaxopt_port.torch_interop.files.pt_types import PtFileError
from jaxopt_port.torch_interop.files.unknown import Unknown

MAX_DIMENSIONS = 64  # torch's and NumPy's
MAX_KEY = 1 << 16  # characters of a dict's key, or items of one that is a tuple
DICTS = (dict, collections.OrderedDict, collections.Counter, collections.defaultdict)
LISTS = (list, collections.deque)
TENSOR_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")


class NotPlainError(Exception):
    """A call of the closed list with an argument that is not: it becomes an `Unknown` too."""


class Storage(Unknown):
    """The bytes behind a tensor, and their type where the file gives one. By itself it is not plain data."""

    __slots__ = ("data", "dtype")

    def __init__(self, module: str, name: str, data: np.ndarray, dtype: np.dtype | None):
        super().__init__(module, name, (data if dtype is None else data.view(dtype),))
        self.data = data
        self.dtype = dtype


def expect(value: Any, *kinds: type) -> Any:
    """The value, if it is of one of these types.

    Raises:
      NotPlainError: it is an object that is not plain data.
      PtFileError: it is of another type.
    """
    if type(value) in kinds:
        return value
    if isinstance(value, Unknown):
        raise NotPlainError
    raise PtFileError(f"a {type(value).__name__} where a {kinds[0].__name__} should be")


# Keys.


class Keys:
    """Checks what is put into dicts and sets: it must take the same time to look up whatever the file holds."""

    MAX_EQUAL = 64  # tuples and complex numbers of one hash: a hostile file has many

    def __init__(self) -> None:
        self._of_hash: dict[int, set[Any]] = {}

    def checked(self, key: Any) -> Any:
        """The key."""
        if type(key) is str and len(key) <= MAX_KEY:  # nearly all of them
            return key
        self._size(key, 0)
        if isinstance(key, tuple | frozenset | complex):
            same = self._of_hash.setdefault(hash(key), set())
            same.add(key)
            if len(same) > self.MAX_EQUAL:
                raise PtFileError("too many keys of one hash")
        return key

    def _size(self, key: Any, depth: int) -> int:
        if type(key) in (str, bytes, np.str_, np.bytes_):
            size = len(key)
        elif isinstance(key, tuple | frozenset) and depth < 4 and len(key) <= MAX_KEY:
            size = 1
            for each in key:
                size += 1 + self._size(each, depth + 1)
                if size > MAX_KEY:
                    break
        elif type(key) is int and not -(1 << 63) <= key < 1 << 64:
            size = MAX_KEY + 1
        elif key is None or isinstance(key, _KEYS):
            size = 1
        else:
            raise PtFileError(f"a {type(key).__name__} as a dict's key or in a set, which Python cannot look up")
        if size > MAX_KEY:
            raise PtFileError(f"a {type(key).__name__} as a dict's key or in a set that is too large for one")
        return size


_KEYS = (bool, int, float, complex, np.generic, np.dtype, Unknown, pathlib.PurePath, range, datetime.date)
_KEYS += (datetime.time, datetime.timedelta, datetime.tzinfo)


# Tensors.


def _tensor(storage: Any, dtype: np.dtype, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    """A view into a storage."""
    shape, strides = expect(shape, tuple), expect(strides, tuple)
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


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    """Of a storage that has a type; the rest is requires_grad, hooks and, of a view that is lazy, what to do."""
    dtype = expect(storage, Storage).dtype
    return _whole("_rebuild_tensor_v2", _tensor(storage, _type(dtype), offset, shape, strides), *rest[2:])


def _untyped_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *rest: Any
) -> Any:
    array = _tensor(expect(storage, Storage), _type(dtype), offset, shape, strides)
    return _whole("_rebuild_tensor_v3", array, *rest)


def _type(dtype: Any) -> np.dtype:
    if isinstance(dtype, Unknown) or (isinstance(dtype, np.dtype) and dtype.type is np.void):
        raise NotPlainError  # torch.float4_e2m1fn_x2, torch.complex32
    if isinstance(dtype, np.dtype):
        return dtype
    raise PtFileError("a tensor without a type")


def _whole(function: str, array: np.ndarray, metadata: Any = None) -> Any:
    """The array, or what stands for one that torch would conjugate or negate when it is used."""
    return Unknown("torch._utils", function, (array, metadata)) if metadata else array


def _quantized(storage: Any, offset: Any, shape: Any, strides: Any, quantizer: Any, *_rest: Any) -> Any:
    """Integers, and what they are multiplied by."""
    dtype = expect(storage, Storage).dtype
    return Unknown(
        "torch._utils", "_rebuild_qtensor", (_tensor(storage, _type(dtype), offset, shape, strides), quantizer)
    )


def _parameter(data: Any, _grad: Any = True, _hooks: Any = None, state: Any = None) -> Any:
    return _with_attributes("torch.nn.parameter", "Parameter", data, state)


def _from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor that has attributes, or is of a subclass."""
    if not isinstance(function, Unknown) or not isinstance(kind, Unknown):
        raise PtFileError("a tensor without a type")
    if function.full not in TENSORS:  # a DTensor's
        return Unknown(kind.module, kind.name, expect(args, tuple), state=state)
    return _with_attributes(kind.module, kind.name, TENSORS[function.full](*expect(args, tuple)), state)


def _with_attributes(module: str, name: str, data: Any, state: Any) -> Any:
    """The array where the attributes are plain ones (transformers' `_is_hf_initialized`): those are left out."""
    if isinstance(data, Unknown):
        raise NotPlainError
    attributes = state if isinstance(state, dict) else {} if state is None else {"": state}
    plain = all(x is None or isinstance(x, str | bool | int | float) for x in attributes.values())
    if plain and f"{module}.{name}" in TENSOR_TYPES:
        return data
    return Unknown(module, name, (data,), state=state)


# Other objects.


def _latin1(text: Any, _encoding: Any = None) -> bytes:
    try:
        return expect(text, str).encode("latin1")
    except UnicodeEncodeError as error:
        raise PtFileError("bytes that are not bytes") from error


def _device(kind: Any, index: Any = None) -> str:
    return expect(kind, str) if index is None else f"{expect(kind, str)}:{expect(index, int)}"


def _complex(real: Any, imag: Any) -> complex:
    return complex(expect(real, float), expect(imag, float))


def _counter(counts: Any = None) -> collections.Counter[Any]:
    return collections.Counter(expect(counts, dict, type(None)))


def _default_dict(factory: Any = None) -> collections.defaultdict[Any, Any]:
    if factory is not None and (not isinstance(factory, Unknown) or factory.full not in _FACTORIES):
        raise NotPlainError
    return collections.defaultdict(None if factory is None else _FACTORIES[factory.full])


def _deque(items: Any = (), maxlen: Any = None) -> collections.deque[Any]:
    return collections.deque(expect(items, tuple, list), expect(maxlen, int, type(None)))


def _path(kind: str) -> Callable[..., pathlib.PurePath]:
    """A path that can be opened where it is of this system, else a pure one."""
    windows = kind.endswith("WindowsPath")
    pure = pathlib.PureWindowsPath if windows else pathlib.PurePosixPath
    make = pathlib.Path if not kind.startswith("Pure") and windows == (os.name == "nt") else pure
    return lambda *parts: make(*(expect(part, str) for part in parts))


def _numbers(make: Callable[..., Any], *kinds: type) -> Callable[..., Any]:
    """A call with numbers and such alone."""
    return lambda *args: make(*(expect(arg, int, type(None), *kinds) for arg in args))


SETS: Mapping[str, type] = {"builtins.set": set, "builtins.frozenset": frozenset}
ORDERED_DICT = "collections.OrderedDict"
_FACTORIES: Mapping[str, Callable[[], Any]] = {
    **{f"builtins.{kind.__name__}": kind for kind in (list, dict, set, int, float, str, bool)},
    "builtins.long": int,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.deque": collections.deque,
}
TENSORS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _typed_tensor,
    "torch._utils._rebuild_tensor_v2": _typed_tensor,
    "torch._utils._rebuild_tensor_v3": _untyped_tensor,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
CALLS: Mapping[str, Callable[..., Any]] = {
    **TENSORS,
    "torch.Size": lambda sizes: expect(sizes, tuple),
    "torch.device": _device,
    "torch.serialization._get_layout": lambda name: expect(name, str),
    "torch.torch_version.TorchVersion": lambda version: expect(version, str),
    "collections.Counter": _counter,
    "collections.defaultdict": _default_dict,
    "collections.deque": _deque,
    "argparse.Namespace": lambda: argparse.Namespace(),
    **{
        f"{module}.{kind}": _path(kind)
        for module in ("pathlib", "pathlib._local")  # the second is Python 3.13's
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
    "datetime.date": _numbers(datetime.date, bytes),
    "datetime.time": _numbers(datetime.time, bytes, datetime.timezone),
    "datetime.datetime": _numbers(datetime.datetime, bytes, datetime.timezone),
    "datetime.timedelta": _numbers(datetime.timedelta),
    "datetime.timezone": _numbers(datetime.timezone, datetime.timedelta, str),
    "builtins.bytes": lambda: b"",
    "builtins.bytearray": lambda data=b"": bytearray(expect(data, bytes)),
    "builtins.complex": _complex,
    "builtins.range": _numbers(range),
    "builtins.xrange": _numbers(range),
    "builtins.slice": _numbers(slice),
    "_codecs.encode": _latin1,
    "numpy.dtype": numpy_objects.element_type,
    **{f"{module}.multiarray.scalar": numpy_objects.number for module in numpy_objects.MODULES},
    **{f"{module}.multiarray._reconstruct": numpy_objects.array for module in numpy_objects.MODULES},
    **{f"{module}.numeric._frombuffer": numpy_objects.from_buffer for module in numpy_objects.MODULES},
}

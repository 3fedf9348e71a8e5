"""The pickle inside a `.pt` file, written: protocol 2, with the opcodes that torch reads with `weights_only=True`."""

import collections
import pickle
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_port.torch_interop.files.pt_types import DTYPES, MAX_DEPTH, STORAGES, UNTYPED_STORAGE, PtFileError

_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}
_NAME_OF = {dtype: name for name, dtype in DTYPES.items()}


class Tensor(NamedTuple):
    """Where an array lies in the file, counted in elements."""

    storage: int
    storage_elements: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


def write_pickle(obj: Any) -> tuple[bytes, list[memoryview]]:
    """The pickle of an object, and the bytes of its storages.

    Raises:
      PtFileError: something in it cannot be written.
    """
    arrays: dict[int, np.ndarray] = {}
    obj = _plain(obj, arrays, "the object", 0)
    tensors, storages = _lay_out(arrays)
    out = bytearray(pickle.PROTO + b"\2")
    _write(obj, tensors, out)
    return bytes(out + pickle.STOP), storages


def _plain(obj: Any, arrays: dict[int, np.ndarray], where: str, depth: int) -> Any:
    """The object with Python's numbers for NumPy's and dicts for other mappings, checked.

    Its arrays are gathered by the `id` of their object, which what is returned keeps alive.
    """
    obj = obj.item() if isinstance(obj, np.generic) else obj
    kind = type(obj)
    if isinstance(obj, np.ndarray | jax.Array):
        typed = isinstance(obj.dtype, np.dtype) and obj.dtype.newbyteorder("=") in _NAME_OF  # jax.random.key's is not
        if not typed or isinstance(obj, np.ma.MaskedArray):
            raise PtFileError(f"{where} is an array of {obj.dtype}, which torch does not have")
        array = np.asarray(obj)
        arrays[id(obj)] = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return obj
    if depth > MAX_DEPTH:
        raise PtFileError(f"containers are nested more than {MAX_DEPTH} deep, or one contains itself")
    if isinstance(obj, Mapping):
        items = {}
        for key, value in obj.items():
            inside = f"{where}[{key!r}]"
            key = key.item() if isinstance(key, np.generic) else key
            if type(key) not in (str, int, float, bool, bytes, type(None)):
                raise PtFileError(f"{where} has a {type(key).__name__} as a key: strings and numbers can be written")
            key = _plain(key, arrays, f"a key of {where}", depth + 1)
            items[key] = _plain(value, arrays, inside, depth + 1)
        if kind not in (collections.OrderedDict, collections.Counter):
            return items
        new = kind(items)
        for name, value in vars(obj).items():
            if name != "_metadata":
                raise PtFileError(f"{where} is an OrderedDict with an attribute {name}")
            vars(new)[name] = _plain(value, arrays, f"{where}._metadata", depth + 1)
        return new
    if kind in (list, tuple, set):
        return kind(_plain(value, arrays, f"{where}[{index}]", depth + 1) for index, value in enumerate(obj))
    if kind is int and obj.bit_length() > 2000:
        raise PtFileError(f"{where} is a number of {obj.bit_length()} bits")
    if kind not in _WRITERS and not isinstance(obj, np.dtype):
        raise PtFileError(
            f"{where} is a {kind.__module__}.{kind.__qualname__}, which is not plain data: "
            "arrays, numbers, strings, None, lists, tuples, sets and dicts can be written"
        )
    if isinstance(obj, np.dtype) and obj not in _NAME_OF:
        raise PtFileError(f"{where} is the dtype {obj}, which torch does not have")
    return obj


def _lay_out(arrays: dict[int, np.ndarray]) -> tuple[dict[int, Tensor], list[memoryview]]:
    """A place for each array. Those whose memory overlaps become views of one storage."""
    tensors: dict[int, Tensor] = {}
    storages: list[memoryview] = []
    for group in _overlapping(arrays):
        members = {key: arrays[key] for key in group}
        shared = _shared_memory(list(members.values())) if len(group) > 1 else None
        for key, x in members.items():
            whole = np.ascontiguousarray(x).reshape(-1) if shared is None else shared
            if shared is None or key == group[0]:
                storages.append(whole.view(np.uint8).data)
            offset = (_address(x) - _address(whole)) // x.itemsize if shared is not None else 0
            strides = _contiguous(x.shape) if shared is None else tuple(stride // x.itemsize for stride in x.strides)
            tensors[key] = Tensor(len(storages) - 1, whole.size, offset, x.shape, strides, x.dtype)
    return tensors, storages


def _overlapping(arrays: dict[int, np.ndarray]) -> list[list[int]]:
    """The arrays in groups whose stretches of memory overlap, in the order of their first members."""
    bounds = {key: np.lib.array_utils.byte_bounds(x) for key, x in arrays.items() if x.size}
    group_of = {key: [key] for key in arrays}
    previous, end = 0, 0
    for key in sorted(bounds, key=lambda key: bounds[key]):
        low, high = bounds[key]
        if low < end:
            group_of[previous].append(key)
            group_of[key] = group_of[previous]
        previous, end = key, max(end, high)
    return list({id(group): group for group in group_of.values()}.values())


def _shared_memory(members: Sequence[np.ndarray]) -> np.ndarray | None:
    """The stretch of memory that they span, as a flat array; None where torch cannot share it."""
    first = min(members, key=_address)
    size = first.itemsize
    for x in members:
        steps = [_address(x) - _address(first), *x.strides]
        if x.dtype != first.dtype or any(step < 0 or step % size for step in steps):
            return None
    end = max(np.lib.array_utils.byte_bounds(x)[1] for x in members)
    return np.lib.stride_tricks.as_strided(first, ((end - _address(first)) // size,), (size,), writeable=False)


def _address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _write(obj: Any, tensors: dict[int, Tensor], out: bytearray) -> None:
    if id(obj) in tensors:
        _write_tensor(tensors[id(obj)], tensors, out)
    elif isinstance(obj, np.dtype):
        _write_name(_NAME_OF[obj], out)
    else:
        _WRITERS[type(obj)](obj, tensors, out)


def _write_tensor(x: Tensor, tensors: dict[int, Tensor], out: bytearray) -> None:
    typed = x.dtype in _STORAGE_OF
    _write_name(f"torch._utils._rebuild_tensor_{'v2' if typed else 'v3'}", out)
    out += pickle.MARK + pickle.MARK
    _write("storage", tensors, out)
    _write_name(_STORAGE_OF.get(x.dtype, UNTYPED_STORAGE), out)
    for part in (str(x.storage), "cpu", x.storage_elements * (1 if typed else x.dtype.itemsize)):
        _write(part, tensors, out)
    out += pickle.TUPLE + pickle.BINPERSID
    for part in (x.offset, x.shape, x.strides, False, collections.OrderedDict()):  # requires_grad, hooks
        _write(part, tensors, out)
    if not typed:
        _write_name(_NAME_OF[x.dtype], out)
    out += pickle.TUPLE + pickle.REDUCE


def _write_name(full: str, out: bytearray) -> None:
    module, _, name = full.rpartition(".")
    out += pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _write_call(full: str, args: tuple[Any, ...], tensors: dict[int, Tensor], out: bytearray) -> None:
    _write_name(full, out)
    _write(args, tensors, out)
    out += pickle.REDUCE


def _write_int(x: int, _: dict[int, Tensor], out: bytearray) -> None:
    if -(1 << 31) <= x < 1 << 31:
        out += pickle.BININT + struct.pack("<i", x)
    else:
        encoded = pickle.encode_long(x)
        out += pickle.LONG1 + bytes([len(encoded)]) + encoded


def _write_str(x: str, _: dict[int, Tensor], out: bytearray) -> None:
    encoded = x.encode("utf-8", "surrogatepass")
    out += pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _write_list(items: list[Any], tensors: dict[int, Tensor], out: bytearray) -> None:
    out += pickle.EMPTY_LIST + pickle.MARK
    for item in items:
        _write(item, tensors, out)
    out += pickle.APPENDS


def _write_tuple(items: tuple[Any, ...], tensors: dict[int, Tensor], out: bytearray) -> None:
    out += pickle.MARK
    for item in items:
        _write(item, tensors, out)
    out += pickle.TUPLE


def _write_dict(items: dict[Any, Any], tensors: dict[int, Tensor], out: bytearray) -> None:
    out += pickle.EMPTY_DICT
    _write_items(items, tensors, out)


def _write_ordered_dict(items: collections.OrderedDict[Any, Any], tensors: dict[int, Tensor], out: bytearray) -> None:
    _write_call("collections.OrderedDict", (), tensors, out)
    _write_items(items, tensors, out)
    if vars(items):
        _write(vars(items), tensors, out)
        out += pickle.BUILD


def _write_items(items: dict[Any, Any], tensors: dict[int, Tensor], out: bytearray) -> None:
    out += pickle.MARK
    for key, value in items.items():
        _write(key, tensors, out)
        _write(value, tensors, out)
    out += pickle.SETITEMS


_WRITERS: dict[type, Any] = {
    type(None): lambda x, tensors, out: out.extend(pickle.NONE),
    bool: lambda x, tensors, out: out.extend(pickle.NEWTRUE if x else pickle.NEWFALSE),
    int: _write_int,
    float: lambda x, tensors, out: out.extend(pickle.BINFLOAT + struct.pack(">d", x)),
    complex: lambda x, *to: _write_call("__builtin__.complex", (x.real, x.imag), *to),
    str: _write_str,
    bytes: lambda x, *to: _write_call("_codecs.encode", (x.decode("latin1"), "latin1"), *to),
    bytearray: lambda x, *to: _write_call("__builtin__.bytearray", (bytes(x),), *to),
    list: _write_list,
    tuple: _write_tuple,
    dict: _write_dict,
    collections.OrderedDict: _write_ordered_dict,
    collections.Counter: lambda x, *to: _write_call("collections.Counter", (dict(x),), *to),
    set: lambda x, *to: _write_call("__builtin__.set", (list(x),), *to),
}

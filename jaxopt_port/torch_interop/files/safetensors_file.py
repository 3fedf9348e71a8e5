"""safetensors files, read and written without torch, in all element types that torch and NumPy share.

The format is a header in JSON and one buffer. The `safetensors` package has no float8 without torch, and maps no file
into NumPy's arrays, so it is the tests' oracle and not what reads here.
"""

import json
import math
import mmap as memory_map
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import jax
import ml_dtypes
import numpy as np

from jaxopt_port.torch_interop.files import legacy_file
from jaxopt_port.torch_interop.files.pt_types import PtFileError
from jaxopt_port.torch_interop.files.reads import Reads, room
from jaxopt_port.torch_interop.files.source import Source, mistaken, opened, read_json, size_left, written
from jaxopt_port.torch_interop.files.zip_archive import MAGIC, check_bools

MAX_HEADER = 100_000_000  # bytes, the package's limit
INDEX = ".safetensors.index.json"
TYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype("?"),
    **{f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "C64": np.dtype("<c8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
_NAMES = {dtype: name for name, dtype in TYPES.items()}


def load_safetensors(source: Source, *, mmap: bool = False) -> dict[str, np.ndarray]:
    """`safetensors.torch.load_file(source)`, with NumPy arrays for tensors.

    Args:
      source: a file; a `model.safetensors.index.json`, whose parts lie beside it; a folder with either; or a file that
        is open for reading bytes.
      mmap: map the file instead of reading it: arrays are read when they are used, and may be written to without
        changing the file, which must stay as it is while they are in use. Of a path.

    Returns:
      Array by name, in the order of the header or of the index, which sort the names where the package wrote them: not
      the order of the model, which numbers an optimizer's parameters. `load_optimizer` takes that as `param_names`.

    Raises:
      PtFileError: the file is damaged, is not of this format, or has an element type that NumPy does not.
      OSError: the file cannot be opened.

    Example:
      >>> import tempfile, numpy as np
      >>> path = tempfile.mkdtemp() + "/model.safetensors"
      >>> save_safetensors({"weight": np.ones(2, np.float32)}, path)
      >>> load_safetensors(path)
      {'weight': array([1., 1.], dtype=float32)}

    Source: https://huggingface.co/docs/safetensors.
    """
    if isinstance(source, str | os.PathLike):
        path = _in_folder(Path(source)) if Path(source).is_dir() else Path(source)
        if path.name.endswith(".json"):
            return load_parts(path, partial(load_safetensors, mmap=mmap))
        source = path
    elif mmap:
        raise ValueError("mmap=True needs a path")
    with opened(source) as file, Reads(file) as reads:
        return _read(file, reads, mmap)


def save_safetensors(tensors: Mapping[str, Any], target: Source, metadata: Mapping[str, str] | None = None) -> None:
    """`safetensors.torch.save_file(tensors, target)`. The file appears whole or not at all.

    Args:
      tensors: NumPy or JAX array by name. The names keep their order in the header.
      target: where to: a path, or a file that is open for writing bytes.
      metadata: texts by name; by default transformers' `{"format": "pt"}`, without which it refuses the file.

    Raises:
      PtFileError: something is not an array of a type that the format has; the message names it.
      OSError: the file cannot be written.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> path = tempfile.mkdtemp() + "/model.safetensors"
      >>> save_safetensors({"scale": jnp.ones(2, jnp.bfloat16)}, path)
      >>> load_safetensors(path)["scale"].dtype
      dtype(bfloat16)

    Source: https://huggingface.co/docs/safetensors.
    """
    arrays = {_name(name): _array(name, x) for name, x in tensors.items()}
    in_file = sorted(arrays, key=lambda name: -arrays[name].itemsize)  # each then lies on a multiple of its size
    ends = np.cumsum([0, *(arrays[name].nbytes for name in in_file)]).tolist()
    offsets = {name: ends[i : i + 2] for i, name in enumerate(in_file)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} if metadata is None else dict(metadata)}
    for name, x in arrays.items():
        header[name] = {"dtype": _NAMES[x.dtype], "shape": x.shape, "data_offsets": offsets[name]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written(target) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in in_file:
            file.write(arrays[name].reshape(-1).view(np.uint8).data)


def _name(name: Any) -> str:
    if type(name) is not str or name == "__metadata__" or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise PtFileError(f"{name!r} is not a name that a safetensors file can have")
    return name


def _array(name: str, x: Any) -> np.ndarray:
    if isinstance(x, Mapping):
        raise PtFileError(f"{name} is a dict: a safetensors file has one level of names, `layer.weight`")
    if not isinstance(x, np.ndarray | np.generic | jax.Array):
        raise PtFileError(f"{name} is a {type(x).__name__}, not an array")
    array = np.asarray(x)
    array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    if array.dtype not in _NAMES:
        raise PtFileError(f"{name} is an array of {array.dtype}, which safetensors files do not have")
    return np.ascontiguousarray(array).reshape(array.shape)


def _in_folder(folder: Path) -> Path:
    """The one file of weights in a folder."""
    found = [path for path in sorted(folder.iterdir()) if path.name.endswith(INDEX)]
    found = found or [path for path in sorted(folder.iterdir()) if path.suffix == ".safetensors"]
    if len(found) != 1:
        raise PtFileError(f"{folder}: {[path.name for path in found] or 'no'} safetensors files; name one")
    return found[0]


def load_parts(path: Path, read: Callable[[Path], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The tensors that an index names, from the files beside it.

    Args:
      path: of the index.
      read: reads one of the files.

    Raises:
      PtFileError: it is not an index, or the files do not have what it says.
    """
    index = read_json(path)
    file_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(file_of, dict) or not all(isinstance(x, str) for x in file_of.values()):
        raise PtFileError(f"{path}: it is not an index of weights in parts: it has no weight_map of names")
    names = dict.fromkeys(file_of.values())
    if outside := [name for name in names if Path(name).name != name]:
        raise PtFileError(f"{path}: {outside[0]!r} is not a file beside the index")
    parts = {name: read(path.with_name(name)) for name in names}
    for name, part in parts.items():
        if strange := [key for key in part if file_of.get(key) != name]:
            raise PtFileError(f"{path}: {strange[0]} is in {name}, where the index does not have it")
    if missing := [key for key, name in file_of.items() if key not in parts[name]]:
        raise PtFileError(f"{path}: {missing[0]} is not in {file_of[missing[0]]}, where the index has it")
    return {key: parts[name][key] for key, name in file_of.items()}


def _read(file: IO[bytes], reads: Reads, mmap: bool) -> dict[str, np.ndarray]:
    start, left = file.tell(), size_left(file)
    head = file.read(legacy_file.HEAD)
    file.seek(start + 8)
    length = int.from_bytes(head[:8], "little")
    if left < 8 or not 2 <= length <= min(left - 8, MAX_HEADER):
        if head.startswith(MAGIC) or legacy_file.MAGIC.match(head):
            raise PtFileError("the file is one of torch.save: load(path) reads it")
        if what := mistaken(head):
            raise PtFileError(what)
        raise PtFileError("the file is not a safetensors file, or is cut short: its header does not fit")
    header = _json(file.read(length))
    if not isinstance(header, dict):
        raise PtFileError("the header of the safetensors file is not a dict")
    header.pop("__metadata__", None)
    places = {name: _place(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, first, last) in sorted(places.items(), key=lambda item: item[1][2:]):
        if first != end:
            raise PtFileError(f"{name} is not where the tensor before it ends")
        end = last
    if end != left - 8 - length:
        raise PtFileError(f"the tensors are of {end} bytes, and the file has {left - 8 - length} for them")
    start += 8 + length
    mapped = memory_map.mmap(file.fileno(), 0, access=memory_map.ACCESS_COPY) if mmap else None
    arrays = {}
    for name, (dtype, shape, first, last) in places.items():
        if mapped is None:
            data = room(last - first)
            reads.into(data, start + first, partial(_check, dtype, name))
        else:
            data = np.frombuffer(mapped, np.uint8, last - first, start + first)
            _check(dtype, name, data)
        arrays[name] = np.ndarray(shape, dtype, data)
    return arrays


def _check(dtype: np.dtype, name: str, data: np.ndarray, _checksum: int = 0) -> None:
    check_bools(data, dtype, name)


def _place(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Type, shape, first byte and the byte after the last of a tensor, checked."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise PtFileError(f"{name!r:.99} is described by {entry!r:.99}, not by dtype, shape and data_offsets")
    dtype, shape, offsets = TYPES.get(str(entry["dtype"])), entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise PtFileError(f"{name!r:.99} is of type {entry['dtype']!r:.99}, which NumPy does not have")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if len(numbers) > 66 or any(type(x) is not int or not 0 <= x < 1 << 63 for x in numbers) or len(offsets) != 2:
        raise PtFileError(f"{name!r:.99} has the shape {shape!r:.99} and the place {offsets!r:.99}")
    first, last = offsets
    if last - first != math.prod(shape) * dtype.itemsize or math.prod(x for x in shape if x) >= 1 << 60:
        raise PtFileError(f"{name!r:.99} of shape {shape!r:.99} has {last - first} bytes")
    return dtype, tuple(shape), first, last


def _json(data: bytes) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(items)) != len(items):
            raise PtFileError("the header has one name twice")
        return found

    try:
        return json.loads(data.decode(), object_pairs_hook=pairs)
    except PtFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise PtFileError(f"the header is not JSON, or of something else: {type(error).__name__}") from error

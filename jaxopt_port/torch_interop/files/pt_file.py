"""torch's `.pt` files, read and written without torch: an uncompressed zip of a pickle and of the tensors' bytes."""

import contextlib
import mmap as memory_map
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from jaxopt_port.torch_interop.files.pickle_reader import PickleReader
from jaxopt_port.torch_interop.files.pickle_writer import write_pickle
from jaxopt_port.torch_interop.files.pt_types import PtFileError as PtFileError

ALIGNMENT = 64  # of each tensor's bytes in the file; torch maps them where they lie
OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that torch wrote first before 1.6
ZIP64_FROM = int(zipfile.ZIP64_LIMIT / 1.05)  # where zipfile puts a field of 20 bytes before ours


def load(path: str | os.PathLike[str], *, mmap: bool = False) -> Any:
    """`torch.load(path, weights_only=True)`, with NumPy arrays for tensors.

    Nothing in the file is run: a closed list of types is read. Work and memory are in proportion to the file's size.

    Args:
      path: a file that `torch.save` (1.6 or later) or `save` wrote.
      mmap: map the file instead of reading it: arrays are read when they are used, may be written to without changing
        the file, and checksums are not checked. The file must stay as it is while they are in use.

    Returns:
      The object. A tensor or parameter, wherever it was, is an array of its dtype (ml_dtypes has bfloat16 and float8);
      views of one tensor stay views of one array; an expanded tensor is a view too, that stands for more elements than
      there are. torch.Size is a tuple, a dtype NumPy's, and a device a string. Keys are strings, numbers or None.
      NumPy's numbers and arrays of numbers are read as such, which torch refuses with `weights_only`.

    Raises:
      PtFileError: the file is damaged, is not torch's zip format, or holds more than plain data.
      OSError: the file cannot be opened.

    Example:
      >>> import tempfile, numpy as np
      >>> path = tempfile.mkdtemp() + "/model.pt"
      >>> save({"weight": np.ones(2, np.float32), "epoch": 3}, path)
      >>> load(path)
      {'weight': array([1., 1.], dtype=float32), 'epoch': 3}

    Source: torch/serialization.py, torch/_weights_only_unpickler.py.
    """
    with open(path, "rb") as file:
        try:
            archive = _Archive(file, mmap)
            return PickleReader(archive.read("data.pkl").tobytes(), archive.storage).read()
        except PtFileError as error:
            raise PtFileError(f"{os.fspath(path)}: {error}") from error


def save(obj: Any, path: str | os.PathLike[str]) -> None:
    """`torch.save(obj, path)`: a file for `torch.load(path, weights_only=True)`, with `mmap=True` too.

    The file appears whole or not at all; one that is there is replaced.

    Args:
      obj: NumPy and JAX arrays, numbers, strings, bytes, None, dtypes, and lists, tuples, sets, dicts, OrderedDicts and
        Counters of them. A NumPy number becomes a Python number, in keys too, a 0-dimensional array a tensor, and any
        other mapping (a FrozenDict, a defaultdict) a dict. Arrays that share memory share it in the file; any other is
        written C-contiguous.
      path: where to.

    Raises:
      PtFileError: something in `obj` has no counterpart in a `.pt` file; the message says where.
      OSError: the file cannot be written.

    Example:
      >>> import tempfile, numpy as np
      >>> path = tempfile.mkdtemp() + "/optimizer.pt"
      >>> save({"state": {0: {"step": np.float32(1.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]}, path)
      >>> load(path)["param_groups"]
      [{'lr': 0.1, 'betas': (0.9, 0.999)}]

    Source: torch/serialization.py.
    """
    pickled, storages = write_pickle(obj)
    records: dict[str, Any] = {
        "data.pkl": pickled,
        ".format_version": b"1",
        ".storage_alignment": str(ALIGNMENT).encode(),
    }
    records |= {"byteorder": b"little"} | {f"data/{key}": x for key, x in enumerate(storages)} | {"version": b"3\n"}
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(scratch, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, data in records.items():
                _write_record(archive, file, f"archive/{name}", data)
        os.replace(scratch, target)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def _write_record(archive: zipfile.ZipFile, file: IO[bytes], name: str, data: Any) -> None:
    info = zipfile.ZipInfo(name)  # dated 1980: the same object gives the same bytes
    before = file.tell() + 30 + len(name) + 4 + (20 if len(data) > ZIP64_FROM else 0)
    padding = -before % ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding  # torch's padding field, "FB"
    archive.writestr(info, data)


class _Record(NamedTuple):
    offset: int  # of the local header
    size: int
    crc: int
    plain: bool  # neither compressed nor encrypted


class _Archive:
    """The records of a `.pt` file, each read once."""

    def __init__(self, file: IO[bytes], mmap: bool):
        self._file = file
        self._size = self._left = os.fstat(file.fileno()).st_size
        self._records = _directory(file)
        self._root = _root(self._records)
        self._map = memory_map.mmap(file.fileno(), 0, access=memory_map.ACCESS_COPY) if mmap else None
        self._big_endian = "byteorder" in self and self.read("byteorder").tobytes() == b"big"
        self._storages: dict[str, tuple[np.dtype | None, np.ndarray]] = {}

    def __contains__(self, name: str) -> bool:
        return f"{self._root}/{name}" in self._records

    def read(self, name: str) -> np.ndarray:
        """The bytes of a record."""
        record = self._records.get(f"{self._root}/{name}")
        if record is None:
            raise PtFileError(f"the record {name} is missing")
        if not record.plain:
            raise PtFileError(f"the record {name} is compressed or encrypted, which torch's never are")
        self._left -= record.size
        if self._left < 0:  # many records in one place
            raise PtFileError("the records together are larger than the file")
        self._file.seek(max(record.offset, 0))  # less than 0 in a file whose beginning is missing
        header = self._file.read(30)
        if record.offset < 0 or len(header) != 30 or not header.startswith(b"PK\3\4"):
            raise PtFileError(f"the record {name} is not where the file says")
        start = record.offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if start + record.size > self._size:
            raise PtFileError(f"the record {name} is cut short")
        if self._map is not None:
            return np.frombuffer(self._map, np.uint8, record.size, start)
        self._file.seek(start)
        data = np.fromfile(self._file, np.uint8, record.size)
        if record.crc not in (0, zlib.crc32(data.data)):  # 0 is torch's word for not computed
            raise PtFileError(f"the record {name} is damaged: its checksum is wrong")
        return data

    def storage(self, key: str, dtype: np.dtype | None, elements: int) -> np.ndarray:
        """The bytes of a storage, the same array each time."""
        if key not in self._storages:
            data = self.read(f"data/{key}")
            if self._big_endian:
                _swap(data, dtype)
            if dtype == np.bool_ and data.max(initial=0) > 1:
                raise PtFileError(f"storage {key} holds a bool that is neither 0 nor 1")
            self._storages[key] = dtype, data
        known, data = self._storages[key]
        if known != dtype:
            raise PtFileError(f"storage {key} has two types, {known} and {dtype}")
        if elements * (1 if dtype is None else dtype.itemsize) != data.nbytes:
            raise PtFileError(f"storage {key} has {data.nbytes} bytes, not those of {elements} elements of {dtype}")
        return data


def _swap(data: np.ndarray, dtype: np.dtype | None) -> None:
    """Turn the bytes of a big-endian file around, in place."""
    if dtype is None:
        raise PtFileError("untyped storages in a big-endian file")
    width = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    if data.nbytes % width:
        raise PtFileError(f"a storage of {data.nbytes} bytes and numbers of {width}")
    data.view(f"u{width}").byteswap(inplace=True)


def _directory(file: IO[bytes]) -> dict[str, _Record]:
    """The records by name. zipfile reads the directory; no record is opened with it."""
    head = file.read(len(OLD_FORMAT))
    if not head:
        raise PtFileError("the file is empty")
    if head == OLD_FORMAT:
        raise PtFileError(
            "the file is in the format from before torch 1.6, which is not read: "
            "write it again with torch.save(torch.load(path), path)"
        )
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises many kinds for a damaged directory
        if head[8:9] == b"{":  # after the header's size, its JSON
            raise PtFileError("the file is in the safetensors format: safetensors.numpy.load_file reads it") from error
        raise PtFileError(
            f"the file is not a whole zip archive, as torch.save writes: {error}, and it begins with {head!r}"
        ) from error
    records = {
        x.filename: _Record(
            x.header_offset,
            x.file_size,
            x.CRC,
            x.compress_type == zipfile.ZIP_STORED and x.compress_size == x.file_size and not x.flag_bits & 1,
        )
        for x in entries
    }
    if len(records) != len(entries):
        raise PtFileError("the file has two records of one name")
    return records


def _root(records: dict[str, _Record]) -> str:
    """The folder of all records: the name that the file had when it was written, or `archive`."""
    roots = [name.removesuffix("/data.pkl") for name in records if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise PtFileError("the file is a zip archive, but has no data.pkl as torch.save writes")
    if f"{roots[0]}/constants.pkl" in records:
        raise PtFileError("the file is a TorchScript program: save the state_dict() of the module instead")
    return roots[0]

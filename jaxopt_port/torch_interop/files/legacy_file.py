"""torch's format from before 1.6: five pickles one after the other, then the bytes of the storages."""

import re
from typing import IO, Any

import numpy as np

from jaxopt_port.torch_interop.files.pickle_check import check
from jaxopt_port.torch_interop.files.pickle_reader import PickleReader
from jaxopt_port.torch_interop.files.pt_types import PtFileError
from jaxopt_port.torch_interop.files.reads import Reads, room
from jaxopt_port.torch_interop.files.source import size_left
from jaxopt_port.torch_interop.files.zip_archive import check_bools

HEAD = 32  # bytes that show whether it is this
MAGIC = re.compile(rb"\x80[\2-\5](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)  # the first pickle, a number
VERSION = 1001


def read(file: IO[bytes], reads: Reads, keep_unknown: bool) -> Any:
    """The object, from where the file stands after `MAGIC`. It stands behind it then, where another may follow.

    Raises:
      PtFileError: as `load` does.
    """
    left = size_left(file)
    if (version := _plain(file)) != VERSION:
        raise PtFileError(f"version {version!r} of the format from before torch 1.6, which has one, {VERSION}")
    system = _plain(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PtFileError(
            "the file is of the format from before torch 1.6 and of a big-endian machine, which is not read: there, "
            'torch.save(torch.load(path, map_location="cpu"), other) with torch 1.6 or later writes one that is'
        )
    storages = _Storages(left)
    reader = PickleReader(file, size_left(file), storages.reserve)
    value = reader.read()
    keys = _plain(file)
    if not isinstance(keys, list) or sorted(storages.made) != sorted(map(str, keys)):
        raise PtFileError("the storages that follow are not those that the tensors are of")
    for key in keys:
        storages.fill(key, file, reads)
    return check(value, reader.at, keep_unknown)


def _plain(file: IO[bytes]) -> Any:
    reader = PickleReader(file, size_left(file))
    return check(reader.read(), reader.at, keep_unknown=False)


class _Storages:
    """Room for the storages, which come after the tensors that are views of them."""

    def __init__(self, left: int):
        self._left = left  # bytes of the file that may be theirs
        self.made: dict[str, tuple[np.dtype | None, np.ndarray]] = {}

    def reserve(self, key: str, dtype: np.dtype | None, elements: int) -> np.ndarray:
        """The bytes of a storage, the same array each time; not filled yet."""
        size = elements * (1 if dtype is None else dtype.itemsize)
        if key not in self.made:
            self._left -= size
            if self._left < 0:
                raise PtFileError("the storages together are larger than the file")
            self.made[key] = dtype, room(size)
        known, data = self.made[key]
        if known != dtype or size != data.nbytes:
            raise PtFileError(f"storage {key} has two types or sizes")
        return data

    def fill(self, key: str, file: IO[bytes], reads: Reads) -> None:
        """Read a storage: how many elements, and their bytes."""
        dtype, data = self.made[key]
        elements = int.from_bytes(file.read(8), "little")
        if elements * (1 if dtype is None else dtype.itemsize) != data.nbytes:
            raise PtFileError(f"storage {key} has {elements} elements of {dtype}, and tensors of {data.nbytes} bytes")
        at = file.tell()
        reads.into(data, at, lambda data, _: check_bools(data, dtype, f"storage {key}"))
        file.seek(at + data.nbytes)

"""The uncompressed zip that torch writes since 1.6: its records, read and written."""

import mmap as memory_map
import struct
import zipfile
import zlib
from typing import IO, Any, NamedTuple

import numpy as np

from jaxopt_port.torch_interop.files.pt_types import PtFileError
from jaxopt_port.torch_interop.files.reads import CHUNK, Reads, room
from jaxopt_port.torch_interop.files.source import size_left

MAGIC = b"PK\3\4"
ALIGNMENT = 64  # of each tensor's bytes in the file; torch maps them where they lie
ZIP64_FROM = int(zipfile.ZIP64_LIMIT / 1.05)  # where zipfile puts a field of 20 bytes before ours


class _Record(NamedTuple):
    offset: int  # of the local header
    size: int
    crc: int
    plain: bool  # neither compressed nor encrypted


class Archive:
    """The records of a `.pt` file, each read once."""

    def __init__(self, file: IO[bytes], reads: Reads, mmap: bool):
        self._file, self._reads = file, reads
        start, size = file.tell(), size_left(file)
        self._end, self._left = start + size, size
        self._map = memory_map.mmap(file.fileno(), 0, access=memory_map.ACCESS_COPY) if mmap else None
        self._storages: dict[str, tuple[np.dtype | None, np.ndarray]] = {}
        self._records = _directory(file)
        if min((record.offset for record in self._records.values()), default=start) != start:
            raise PtFileError("there is something before the archive that the file ends with, or two archives in it")
        self._root = _root(self._records)
        order = self.read("byteorder") if f"{self._root}/byteorder" in self._records else b"little"
        if order not in (b"little", b"big"):
            raise PtFileError(f"byte order {order!r}")
        self._big_endian = order == b"big"

    def read(self, name: str) -> bytes:
        """A record."""
        start, record = self._place(name)
        self._file.seek(start)
        data = self._file.read(record.size)
        if record.crc not in (zlib.crc32(data), 0):  # 0 is torch's word for not computed
            raise PtFileError(f"the record {name} is damaged: its checksum is wrong")
        return data

    def storage(self, key: str, dtype: np.dtype | None, elements: int) -> np.ndarray:
        """The bytes of a storage, the same array each time. They may still be on their way."""
        if key not in self._storages:
            self._storages[key] = dtype, self._storage(key, dtype)
        known, data = self._storages[key]
        if known != dtype:
            raise PtFileError(f"storage {key} has two types, {known} and {dtype}")
        if elements * (1 if dtype is None else dtype.itemsize) != data.nbytes:
            raise PtFileError(f"storage {key} has {data.nbytes} bytes, not those of {elements} elements of {dtype}")
        return data

    def _storage(self, key: str, dtype: np.dtype | None) -> np.ndarray:
        start, record = self._place(f"data/{key}")

        def finish(data: np.ndarray, crc: int) -> None:
            if record.crc and self._map is None and crc != record.crc:
                raise PtFileError(f"the record data/{key} is damaged: its checksum is wrong")
            if self._big_endian:
                _swap(data, dtype)
            check_bools(data, dtype, f"storage {key}")

        if self._map is None:
            data = room(record.size)
            self._reads.into(data, start, finish, checksum=record.crc != 0)
        else:
            data = np.frombuffer(self._map, np.uint8, record.size, start)
            finish(data, 0)
        return data

    def _place(self, name: str) -> tuple[int, _Record]:
        """Where the bytes of a record begin, checked."""
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
        if record.offset < 0 or len(header) != 30 or not header.startswith(MAGIC):
            raise PtFileError(f"the record {name} is not where the file says")
        start = record.offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if start + record.size > self._end:
            raise PtFileError(f"the record {name} is cut short")
        return start, record


def check_bools(data: np.ndarray, dtype: np.dtype | None, what: str) -> None:
    """Raise PtFileError where the bytes are bools that NumPy and JAX would take for other numbers than torch."""
    if dtype == np.bool_ and data.max(initial=0) > 1:
        raise PtFileError(f"{what} holds a bool that is neither 0 nor 1")


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
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises many kinds for a damaged directory
        raise PtFileError(f"the file is not a whole zip archive, as torch.save writes: {error}") from error
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
        raise PtFileError(
            "the file is a TorchScript program; this writes its weights: "
            'torch.save(torch.jit.load(path, map_location="cpu").state_dict(), other)'
        )
    return roots[0]


def write(file: IO[bytes], pickled: bytes, storages: list[memoryview]) -> None:
    """An archive, as torch writes it."""
    records: dict[str, Any] = {
        "data.pkl": pickled,
        ".format_version": b"1",
        ".storage_alignment": str(ALIGNMENT).encode(),
    }
    records |= {"byteorder": b"little"} | {f"data/{key}": x for key, x in enumerate(storages)} | {"version": b"3\n"}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            _write_record(archive, file, f"archive/{name}", memoryview(data))


def _write_record(archive: zipfile.ZipFile, file: IO[bytes], name: str, data: memoryview) -> None:
    info = zipfile.ZipInfo(name)  # dated 1980: the same object gives the same bytes
    before = file.tell() + 30 + len(name) + 4 + (20 if len(data) > ZIP64_FROM else 0)
    padding = -before % ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding  # torch's padding field, "FB"
    info.file_size = len(data)
    with archive.open(info, "w") as record:
        for first in range(0, len(data), CHUNK):
            record.write(data[first : first + CHUNK])

"""Stretches of a file into arrays, by a few threads."""

import io
import mmap
import os
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO

import numpy as np

from jaxopt_port.torch_interop.files.pt_types import PtFileError

CHUNK = 1 << 18  # bytes at a time, so that the checksum finds them in the processor's cache
LARGE = 1 << 22  # bytes from which a thread, and memory in whole pages, is worth it
THREADS = min(4, os.cpu_count() or 1)

Finish = Callable[[np.ndarray, int], None]


def room(size: int) -> np.ndarray:
    """Bytes to be read into.

    NumPy asks for huge pages where an array is large. On a virtual machine that has not used them before, the first
    touch of one takes several times as long as that of ordinary ones, which torch takes. Linux makes ordinary ones at
    once in a third less time than one by one, as they are touched.
    """
    if size < LARGE:
        return np.empty(size, np.uint8)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)


class Reads:
    """Reading that goes on while the rest of a file is looked at. All is there at the end of the `with`."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._pool = ThreadPoolExecutor(THREADS) if isinstance(file, io.BufferedReader | io.FileIO) else None
        self._jobs: list[Future[None]] = []

    def __enter__(self) -> "Reads":
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        try:
            if kind is None:
                for job in self._jobs:
                    job.result()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def into(self, data: np.ndarray, at: int, finish: Finish | None = None, checksum: bool = False) -> None:
        """Read from this place of the file, and call `finish(data, checksum)`: 0 where there is none."""
        if self._pool is not None and data.nbytes >= LARGE:
            self._jobs.append(self._pool.submit(self._read, data, at, finish, checksum))
        else:
            self._read(data, at, finish, checksum)

    def _read(self, data: np.ndarray, at: int, finish: Finish | None, checksum: bool) -> None:
        crc = 0
        for first in range(0, data.nbytes, CHUNK):
            chunk = data.data[first : first + CHUNK]
            if self._piece(chunk, at + first) != len(chunk):
                raise PtFileError("the file is cut short")
            crc = zlib.crc32(chunk, crc) if checksum else 0
        if finish is not None:
            finish(data, crc)

    def _piece(self, chunk: memoryview, at: int) -> int:
        if self._pool is not None:
            return os.preadv(self._file.fileno(), [chunk], at)
        self._file.seek(at)
        return self._file.readinto(chunk)  # pyright: ignore[reportAttributeAccessIssue]

"""Read what `record.py` wrote, without torch. The format is in that file's docstring."""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxopt_port.compare.record import FRAME, MAGIC, VERSION

Arrays = dict[str, np.ndarray]


class TraceError(ValueError):
    """A file that is no trace, or a damaged one."""


class Frame(NamedTuple):
    """A frame: its header, and where its arrays are in the file."""

    header: Mapping[str, Any]
    data: np.ndarray  # bytes, of a memory-mapped file

    def array(self, name: str) -> np.ndarray:
        return self.arrays(name)[name]

    def arrays(self, *prefixes: str) -> Arrays:
        """The arrays whose names begin so, without what they begin with if that ends with a slash."""
        found, at = {}, 0
        for name, dtype, shape in self.header["arrays"]:
            kind = np.dtype(getattr(ml_dtypes, dtype)) if hasattr(ml_dtypes, dtype) else np.dtype(dtype)
            size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
            for prefix in prefixes:
                if name == prefix or (prefix.endswith("/") and name.startswith(prefix)):
                    key = name.removeprefix(prefix) if prefix.endswith("/") else name
                    found[key] = np.array(self.data[at : at + size]).view(kind).reshape(shape)
            at += size
        return found

    def names(self, prefix: str) -> list[str]:
        return [name.removeprefix(prefix) for name, *_ in self.header["arrays"] if name.startswith(prefix)]


@dataclass
class Step:
    """A step of the optimizer.

    Args:
      number: from 1.
      frame: what was recorded.
      redo: how far torch is from itself in it, by variant, quantity and tensor: relative L2, relative largest.
    """

    number: int
    frame: Frame
    redo: Mapping[str, Any] | None = None

    @property
    def full(self) -> bool:
        return self.frame.header["full"]

    @property
    def losses(self) -> list[float]:
        return self.frame.header["losses"]

    @property
    def hyper(self) -> list[list[dict[str, Any]]]:
        """The options of every optimizer's groups when the step was taken."""
        return self.frame.header["hyper"]

    def batches(self) -> list[Arrays]:
        found: dict[int, Arrays] = {}
        for key, array in self.frame.arrays("batch/").items():
            number, _, name = key.partition("/")
            found.setdefault(int(number), {})[name] = array
        return [found[i] for i in sorted(found)]


@dataclass
class Trace:
    """A recorded run.

    Args:
      start: the first frame.
      steps: in order.
      cut: whether the file ends in the middle of a frame, as that of a killed run does.
    """

    start: Frame
    steps: list[Step] = field(default_factory=list)
    cut: bool = False

    @property
    def model(self) -> Arrays:
        return self.start.arrays("model/")

    @property
    def parameters(self) -> list[dict[str, Any]]:
        return self.start.header["parameters"]

    @property
    def optimizers(self) -> list[dict[str, Any]]:
        return self.start.header["optimizers"]

    @property
    def tied(self) -> dict[str, str]:
        return self.start.header["tied"]

    def module_of(self, name: str) -> dict[str, Any] | None:
        """The module that a parameter or an output is of."""
        modules = {module["name"]: module for module in self.start.header["modules"]}
        return modules.get(name.partition("#")[0]) or modules.get(name.rpartition(".")[0])

    def samples(self, step: Step, kind: str) -> Arrays:
        """The sampled elements of `grad` or `after`, by name."""
        flat, found, at = step.frame.array(f"sample/{kind}"), {}, 0
        described = {each["name"]: each for each in (*self.parameters, *self.start.header["buffers"])}
        for name in step.frame.header[kind]:
            is_complex = described[name]["dtype"].startswith("complex")
            count = len(self.index[name]) * (2 if is_complex else 1)
            part = flat[at : at + count]
            found[name] = part[::2] + 1j * part[1::2] if is_complex else part
            at += count
        return found

    def norms(self, step: Step, kind: str) -> dict[str, float]:
        """The L2 norms of `grad` or `after`, by name."""
        return dict(zip(step.frame.header[kind], step.frame.array(f"norm/{kind}").tolist(), strict=True))

    @property
    def index(self) -> Arrays:
        if not hasattr(self, "_index"):
            self._index = self.start.arrays("index/")
        return self._index


def read(path: str | Path) -> Trace:
    """A trace; of a run that was killed, what it had.

    Args:
      path: the file that `record` wrote.

    Returns:
      The trace; its arrays are read when they are asked for.

    Raises:
      FileNotFoundError: no file.
      TraceError: no trace, one of another version, or one whose bytes have changed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is no file: give the path that record(model, optimizer, path) wrote to")
    data = np.memmap(path, np.uint8, "r") if Path(path).stat().st_size else np.zeros(0, np.uint8)
    if data[: len(MAGIC)].tobytes() != MAGIC:
        raise TraceError(f"{path} is no recorded run: it does not begin with {MAGIC.decode()}")
    version = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4].tobytes(), "little")
    if version != VERSION and len(data) >= len(MAGIC) + 4:
        raise TraceError(f"{path} has version {version} of the format, this is version {VERSION}: use its own reader")
    at, frames = len(MAGIC) + 4, []
    while at + FRAME.size <= len(data):
        mark, text, payload = FRAME.unpack(data[at : at + FRAME.size].tobytes())
        begin, end = at + FRAME.size, at + FRAME.size + text + payload
        if mark != b"FRAM":
            raise TraceError(f"{path} is damaged at byte {at}: no frame begins there")
        if end + 4 > len(data):
            break
        if zlib.crc32(data[begin:end].tobytes()) != struct.unpack("<I", data[end : end + 4].tobytes())[0]:
            raise TraceError(f"{path} is damaged between bytes {begin} and {end}: their CRC-32 is another")
        frames.append(Frame(json.loads(data[begin : begin + text].tobytes()), data[begin + text : end]))
        at = end + 4
    if not frames or frames[0].header["kind"] != "start":
        raise TraceError(f"{path} has no start: the run was killed before its first step")
    trace = Trace(frames[0], cut=at < len(data))
    for frame in frames[1:]:
        if frame.header["kind"] == "step":
            trace.steps.append(Step(frame.header["step"], frame))
        else:
            trace.steps[-1].redo = frame.header["apart"]
    return trace

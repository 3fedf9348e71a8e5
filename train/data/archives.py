"""CIFAR's archives, in the binary and in the python version, and SVHN's files: pictures and labels out of them."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PIXELS = 3 * 32 * 32


class Split(NamedTuple):
    """The files of a split in an archive, by the last part of their names."""

    binary: tuple[str, ...]
    python: tuple[str, ...]


class Cifar(NamedTuple):
    """How an archive is laid out: `labels` names each picture's labels in the order of their bytes."""

    labels: tuple[str, ...]
    splits: dict[str, Split]


CIFAR = {
    "cifar10": Cifar(
        ("label",),
        {
            "train": Split(
                tuple(f"data_batch_{i}.bin" for i in range(1, 6)), tuple(f"data_batch_{i}" for i in range(1, 6))
            ),
            "test": Split(("test_batch.bin",), ("test_batch",)),
        },
    ),
    "cifar100": Cifar(
        ("coarse_label", "label"),
        {"train": Split(("train.bin",), ("train",)), "test": Split(("test.bin",), ("test",))},
    ),
}
# What the python version calls the labels.
PYTHON_KEYS = {"cifar10": {"label": b"labels"}, "cifar100": {"label": b"fine_labels", "coarse_label": b"coarse_labels"}}

# What arrays and bytes are pickled with.
NAMES = {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

Picture = tuple[np.ndarray, dict[str, int]]


def cifar(dataset: str, archive: Path, split: str) -> Iterator[Picture]:
    """The pictures of a split, 32x32x3, with their labels by name.

    Raises:
      ValueError: it is not the dataset's archive.
    """
    layout = CIFAR[dataset]
    try:
        with tarfile.open(archive) as tar:
            _read_to_the_end(tar)
            members = {Path(member.name).name: member for member in tar if member.isfile()}
            binary, python = layout.splits[split]
            for name in binary if binary[0] in members else python:
                if name not in members:
                    raise ValueError(f"{archive}: there is no {name} in it, so it is not the archive of {dataset}")
                file = tar.extractfile(members[name])
                assert file is not None
                content = file.read()
                yield from _binary(layout, content) if name in binary else _python(dataset, content)
    except (tarfile.TarError, zlib.error, EOFError, pickle.UnpicklingError, OSError, LookupError, TypeError) as error:
        raise ValueError(f"{archive}: cannot be read as the archive of {dataset} ({error!r})") from error


def _read_to_the_end(tar: tarfile.TarFile) -> None:
    """gzip has a checksum behind the last byte, which nobody else comes to: a tar ends before it."""
    file: Any = tar.fileobj
    while file.read(1 << 20):
        pass


def _binary(layout: Cifar, content: bytes) -> Iterator[Picture]:
    width = len(layout.labels) + PIXELS
    if not content or len(content) % width:
        raise ValueError(f"a file of {len(content)} bytes, not of some times {width}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, width)
    for row in rows:
        labels = dict(zip(layout.labels, row.tolist(), strict=False))
        yield row[len(layout.labels) :].reshape(3, 32, 32).transpose(1, 2, 0), labels


def _python(dataset: str, content: bytes) -> Iterator[Picture]:
    batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    images = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = {name: batch[key] for name, key in PYTHON_KEYS[dataset].items()}
    for at, image in enumerate(images):
        yield image, {name: int(values[at]) for name, values in labels.items()}


class _Unpickler(pickle.Unpickler):
    """Arrays, and what pickle has itself: nothing in the file is run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def svhn(file: Path) -> Iterator[Picture]:
    """The pictures of one of SVHN's files, with their labels; the digit 0 has the label 10 there."""
    import scipy.io

    content = scipy.io.loadmat(file)
    for image, label in zip(np.moveaxis(content["X"], -1, 0), content["y"].ravel().tolist(), strict=True):
        yield image, {"label": label % 10}

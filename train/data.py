"""The pictures: read from a prepared TFDS directory, decoded once into .npy files, then indexed in RAM."""

import hashlib
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from train.errors import UsageError


class Examples(NamedTuple):
    """Pictures and their classes."""

    images: UInt8[np.ndarray, "n 32 32 3"]
    labels: Int32[np.ndarray, " n"]

    def first(self, limit: int | None) -> "Examples":
        """The first so many, or all."""
        return Examples(self.images[:limit], self.labels[:limit])


def load(dataset: str, split: str, data_dir: Path | None = None) -> Examples:
    """All examples of a split, in the dataset's order.

    Args:
      dataset: digits, which are prepared if they are not, or the name of a dataset that is prepared.
      split: train or test.
      data_dir: the TFDS directory that holds the dataset; for digits, by default, the user's cache directory.

    Raises:
      UsageError: there is no such data. Nothing is ever looked for on the network.
    """
    directory = _digits_directory(data_dir) if dataset == "digits" else _prepared_directory(dataset, data_dir)
    cache = _cache_root() / "decoded" / f"{dataset}-{split}-{_fingerprint(directory)}"
    try:
        return Examples(np.load(cache / "images.npy"), np.load(cache / "labels.npy"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError):  # cut short, or not readable: decode again
        shutil.rmtree(cache, ignore_errors=True)
    examples = _decode(directory, split)
    _save(examples, cache)
    return examples


def _digits_directory(data_dir: Path | None) -> Path:
    root = data_dir or _cache_root()
    directory = root / "digits" / "1.0.0"
    if not (directory / "dataset_info.json").exists():
        from train.digits import prepare  # imports TFDS

        try:
            prepare(root)
        except OSError as error:
            remedy = "give another" if data_dir else "give a directory with --data-dir DIR"
            raise UsageError(f"--data-dir {root}: the digits cannot be prepared there ({error}); {remedy}") from error
    return directory


def _prepared_directory(dataset: str, data_dir: Path | None) -> Path:
    versions = sorted(
        (info.parent for info in (data_dir / dataset).glob("*.*.*/dataset_info.json")) if data_dir else (),
        key=lambda directory: [int(number) for number in directory.name.split(".") if number.isdigit()],
    )
    if not versions:
        raise UsageError(
            f"--data-dir {data_dir}: no {dataset}/VERSION/dataset_info.json there; give a directory in which "
            f"`tfds build {dataset} --file_format array_record --data_dir DIR` has prepared {dataset}"
        )
    return versions[-1]


def _decode(directory: Path, split: str) -> Examples:
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS recommends OpenCV on every start
    import tensorflow_datasets as tfds  # takes a second, and is not needed once the pictures are cached

    name, version = directory.parts[-2:]
    try:
        source: Any = tfds.data_source(f"{name}:{version}", data_dir=directory.parent.parent, split=split)
        print(f"decoding {len(source):,} pictures of {name} {split}, once", file=sys.stderr)
        images = np.empty((len(source), 32, 32, 3), np.uint8)
        labels = np.empty(len(source), np.int32)
        for start in range(0, len(source), 1000):
            rows = range(start, min(start + 1000, len(source)))
            for row, example in zip(rows, source.__getitems__(rows), strict=True):
                if example["image"].shape != images.shape[1:]:  # which might broadcast
                    raise ValueError(f"a picture of shape {example['image'].shape}")
                images[row], labels[row] = example["image"], example["label"]
    except Exception as error:  # TFDS and array_record raise many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"--data-dir {directory.parent.parent}: the {split} split of {name} {version} cannot be read as 32x32x3 "
            f"pictures in array_record form ({reason}); prepare it again"
        ) from error
    return Examples(images, labels)


def _save(examples: Examples, cache: Path) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=cache.parent) as scratch:
            whole = Path(scratch) / "whole"
            whole.mkdir()
            np.save(whole / "images.npy", examples.images)
            np.save(whole / "labels.npy", examples.labels)
            os.rename(whole, cache)
    except OSError as error:
        if not cache.exists():  # else another process was faster
            print(f"the decoded pictures are not cached: {error}", file=sys.stderr)


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxopt_port"


def _fingerprint(directory: Path) -> str:
    """Changes when a file of the dataset does."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(directory.iterdir())]
    return hashlib.sha256(repr((str(directory.resolve()), files)).encode()).hexdigest()[:16]

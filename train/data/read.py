"""The examples of a split, out of the cache or out of a prepared directory."""

import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from train.cache import cache_root
from train.config import Config
from train.data import decoded, prepared
from train.data.examples import Data, Examples
from train.errors import UsageError, one_line

SHAPE = (32, 32, 3)


def read(config: Config) -> Data:
    """The data of a run; prepared and decoded where they are not yet.

    Raises:
      UsageError: there is no such data, and none can be had.
    """
    place = prepared.Place(config.dataset, config.data_dir, config.archive)
    train = _load(place, config.split)
    test = _load(place, "test") if config.evaluates else None
    return Data(train.first(config.limit), test, _classes(place, train), _digest(train, test))


def load(dataset: str, split: str, data_dir: Path | None = None, archive: Path | None = None) -> Examples:
    """All examples of a split, in the dataset's order.

    Args:
      dataset: its name.
      split: train or test, or what else it has.
      data_dir: the TFDS directory that holds the dataset, or where it is prepared; by default in the user's cache.
      archive: CIFAR's archive, in place of the download.

    Raises:
      UsageError: there is no such data, and none can be had.
    """
    return _load(prepared.Place(dataset, data_dir, archive), split)


def _load(place: prepared.Place, split: str) -> Examples:
    directory = place.directory()
    entry = cache_root() / "decoded" / f"{place.dataset}-{split}-{_fingerprint(directory)}"

    def decode() -> Examples:
        sound = place.sound()  # before its pictures are believed
        try:
            return _decode(sound, split, place)
        except UsageError:
            if not place.ours(sound) or split not in ("train", "test"):
                raise
            return _decode(place.again(), split, place)

    return decoded.load_or_make(entry, decode)


def _decode(directory: Path, split: str, place: prepared.Place) -> Examples:
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS recommends OpenCV on every start
    import tensorflow_datasets as tfds  # takes a second, and is not needed once the pictures are cached

    name, version = directory.parts[-2:]
    try:
        builder: Any = tfds.builder_from_directory(directory)
        if split.partition("[")[0] not in builder.info.splits:
            names = ", ".join(builder.info.splits)
            raise UsageError(f"--split {split}: {name} {version} in {place.root} has none of this name; it has {names}")
        source = builder.as_data_source(split)
        if not len(source):
            raise ValueError("it has no examples")
        print(f"decoding {len(source):,} pictures of {name} {split}, once", file=sys.stderr)
        images = np.empty((len(source), *SHAPE), np.uint8)
        labels = np.empty(len(source), np.int32)
        for start in range(0, len(source), 1000):
            rows = range(start, min(start + 1000, len(source)))
            for row, example in zip(rows, source.__getitems__(rows), strict=True):
                if example["image"].shape != SHAPE:  # which might broadcast
                    raise ValueError(f"a picture of shape {example['image'].shape}")
                images[row], labels[row] = example["image"], example["label"]
    except UsageError:
        raise
    except Exception as error:  # TFDS and array_record raise many kinds
        raise UsageError(
            f"--data-dir {place.root}: the {split} split of {name} {version} cannot be read as 32x32x3 "
            f"pictures in array_record form ({one_line(error)}); prepare it again"
        ) from error
    return Examples(images, labels)


def _classes(place: prepared.Place, examples: Examples) -> int:
    """As the dataset's features have it, or else as the labels do."""
    try:
        features = json.loads((place.directory() / "features.json").read_bytes())["featuresDict"]["features"]
        return int(features["label"]["classLabel"]["numClasses"])
    except (OSError, ValueError, LookupError, TypeError):
        return int(examples.labels.max()) + 1


def _digest(*parts: Examples | None) -> str:
    """Of every picture and label."""
    digest = hashlib.sha256()
    for array in (array for examples in parts if examples is not None for array in examples):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _fingerprint(directory: Path) -> str:
    """Changes when a file of the dataset does."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(directory.iterdir())]
    return hashlib.sha256(repr((str(directory.resolve()), files)).encode()).hexdigest()[:16]

"""The cache of decoded pictures: arrays with a checksum, so that what is damaged is decoded again."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from train import manifest
from train.data.examples import Examples
from train.data.locks import alone


def load_or_make(entry: Path, make: Callable[[], Examples]) -> Examples:
    """The examples of a cache entry; made and kept there, if that can be, where it is not there or is damaged.

    Of several processes one makes them.
    """
    found = _load(entry)
    if found is not None:
        return found
    made = None
    try:
        with alone(entry.parent, "decoding", left=".*") as scratch:
            found = _load(entry)  # which another process may just have made
            if found is not None:
                return found
            made = make()
            whole = scratch / "whole"
            whole.mkdir()
            np.save(whole / "images.npy", made.images)
            np.save(whole / "labels.npy", made.labels)
            manifest.write(whole)
            os.rename(whole, entry)
    except OSError as error:
        print(f"the decoded pictures are not cached: {error}", file=sys.stderr)
    return make() if made is None else made


def _load(entry: Path) -> Examples | None:
    """None where it is not there, or was damaged and is removed now."""
    if not entry.exists():
        return None
    try:
        manifest.verify(entry)
        examples = Examples(np.load(entry / "images.npy"), np.load(entry / "labels.npy"))
        n = len(examples.labels)
        for array, shape, dtype in zip(examples, ((n, 32, 32, 3), (n,)), (np.uint8, np.int32), strict=True):
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"an array is {array.dtype}{list(array.shape)}, not {dtype.__name__}{list(shape)}")
        return examples
    except (OSError, ValueError, EOFError, manifest.Damaged) as error:
        print(f"the decoded pictures in {entry} are damaged ({error}); they are decoded again", file=sys.stderr)
        shutil.rmtree(entry, ignore_errors=True)
        return None

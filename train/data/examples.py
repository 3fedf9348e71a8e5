"""What a run trains on, and evaluates on."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8


class Examples(NamedTuple):
    """Pictures and their classes."""

    images: UInt8[np.ndarray, "n 32 32 3"]
    labels: Int32[np.ndarray, " n"]

    def first(self, limit: int | None) -> "Examples":
        """The first so many, or all."""
        return Examples(self.images[:limit], self.labels[:limit])


class Data(NamedTuple):
    """What a run needs of a dataset.

    Args:
      train: to train on.
      test: to evaluate on after each epoch, if anything.
      classes: how many there are.
      digest: a checksum of all of it.
    """

    train: Examples
    test: Examples | None
    classes: int
    digest: str

"""What the steps of an epoch came to."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from train.model import layers

LAYERS = len(layers(10))  # whatever the number of classes


class Epoch(NamedTuple):
    """What an epoch came to. It ends early where the loss is no longer finite, or with the run."""

    number: int  # from 1
    step: int  # steps of the run so far
    losses: Float[np.ndarray, " steps"]  # of each step, before it
    correct: Int[np.ndarray, " steps"]
    examples: Int[np.ndarray, " steps"]
    seconds: float  # without the evaluation; the first epoch's has the compilation in it
    lr: Float[np.ndarray, "steps groups"]  # of each parameter group in each step
    test: tuple[float, float] | None = None  # loss and accuracy on the test split
    ema_test: tuple[float, float] | None = None  # those of the average of weights
    norms: dict[str, float] | None = None  # of each layer's parameters before the last step

    @property
    def running_loss(self) -> float:
        """The sum of the steps' losses, as the tutorial prints it."""
        return float(self.losses.sum())

    @property
    def loss(self) -> float:
        """The mean of the steps' losses."""
        return self.running_loss / len(self.losses)

    @property
    def accuracy(self) -> float:
        """The part of the examples that were classified correctly just before the step that they were in."""
        return float(self.correct.sum() / self.examples.sum())

    @property
    def images_per_second(self) -> float:
        return float(self.examples.sum() / self.seconds)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.losses).all())


class Columns(NamedTuple):
    """What the steps of an epoch said, one after the other; `train.step.Record` of them all."""

    losses: Float[np.ndarray, " steps"]
    correct: Int[np.ndarray, " steps"]
    lr: Float[np.ndarray, "steps groups"]
    norms: Float[np.ndarray, "steps layers"]

    @classmethod
    def of(cls, record: Float[np.ndarray, "steps columns"]) -> "Columns":
        """From a `train.step.Record`."""
        losses, correct = record[:, 0], record[:, 1].astype(np.int64)
        return cls(losses, correct, lr=record[:, 2:-LAYERS], norms=record[:, -LAYERS:])


class Steps:
    """The steps of the epoch under way. They are read one behind, so that reading keeps nobody waiting.

    Args:
      columns: of the steps before, where a run goes on.
    """

    def __init__(self, columns: Columns | None = None):
        self._read = [] if columns is None else [columns]
        self._waiting: Any = None
        self.finite = columns is None or bool(np.isfinite(columns.losses).all())

    def __len__(self) -> int:
        """How many were read."""
        return sum(len(columns.losses) for columns in self._read)

    def add(self, record: Any) -> int:
        """Take what a step, or some in a row, said, and read what was taken before. Returns how many steps that were.

        From the first loss on that is not finite nothing is read.
        """
        steps = self.read()
        self._waiting = record
        return steps

    def read(self) -> int:
        """Read what was taken last, and wait for it. Returns how many steps that were."""
        record, self._waiting = self._waiting, None
        if record is None or not self.finite:
            return 0
        rows = np.atleast_2d(record)
        finite = np.isfinite(rows[:, 0])
        self.finite = bool(finite.all())
        steps = len(rows) if self.finite else int(finite.argmin()) + 1
        self._read.append(Columns.of(rows[:steps]))
        return steps

    def columns(self) -> Columns | None:
        """All that was read; None where nothing was."""
        if not self._read:
            return None
        self._read = [Columns(*map(np.concatenate, zip(*self._read, strict=True)))]
        return self._read[0]

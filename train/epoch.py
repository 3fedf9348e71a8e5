"""What an epoch of a run came to."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


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

    @property
    def running_loss(self) -> float:
        """The sum of the steps' losses, as the tutorial prints it."""
        return float(self.losses.sum())

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

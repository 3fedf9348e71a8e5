"""What goes between this process and those that train in PyTorch. Nothing here imports torch."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from train.config import Config

Kind = Literal["run", "time", "part", "redo"]
Choices = UInt8[np.ndarray, "batch channels height width"]
Vector = Float32[np.ndarray, " size"]  # arrays one after the other, in torch's order and layouts


class Task(NamedTuple):
    """What a process is to do.

    Args:
      kind: `run` says all of every step, `time` no more than each epoch; `part` writes how the run stands before a
        step of the optimizer, and does that step; `redo` does it from what `part` wrote.
      config: the run's.
      optimizer: the optimizer's options.
      scheduler: the scheduler's.
      weights: where the run starts, by torch's names, if not where the seed says.
      evaluates: whether it evaluates on the test split after every epoch.
      step: a batch of that step, from 1.
      path: what is written and read.
      choices: what max pooling is to choose in `redo`, whatever is the largest; as in `Redone`.
    """

    kind: Kind
    config: Config
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    weights: dict[str, np.ndarray] | None = None
    evaluates: bool = False
    step: int = 0
    path: Path | None = None
    choices: list[Choices] | None = None


class Hello(NamedTuple):
    """The first message of a run.

    Args:
      shapes: torch's parameters, by name, in torch's order.
      version: torch's.
      device: torch's threads, and the vector instructions of its own kernels.
    """

    shapes: dict[str, tuple[int, ...]]
    version: str
    device: str


class Step(NamedTuple):
    """A batch's loss, how many of it were classified correctly, and the parameters after it."""

    loss: float
    correct: int
    params: Vector


class Redone(NamedTuple):
    """One step of the optimizer, from parameters and a state that were given.

    Args:
      losses: of its batches.
      choices: which of the four values of each max-pooling window was the largest, by batch and layer.
      grads: the sum of the batches' gradients.
      step: the parameters after the step.
      update: the parameters after a step with torch's gradients.
    """

    losses: Float64[np.ndarray, " batches"]
    choices: list[Choices]
    grads: Vector
    step: Vector
    update: Vector

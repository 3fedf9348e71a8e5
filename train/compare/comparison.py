"""One comparison, from its configuration to its page: torch's run is recorded, and ours follows it."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxopt_port import compare as port
from train import data
from train.checks import check_run, check_training, total_steps
from train.config import Config
from train.data import Data, Examples
from train.errors import UsageError, one_line
from train.loop import Moment, batches, steps_per_epoch
from train.model import convolve_by_rows
from train.start import epoch_order, start
from train.step import batch_loss
from train.torch_layout import mapping
from train.training import Training, lengthened

CLASSES = 10


def compare(config: Config, training: Training, times: float, path: Path) -> int:
    """Run both, print what is found, and write the page. `training` is what we do. Returns the exit status."""
    check_training(config, training)
    read = data.read(config)
    if read.classes != CLASSES:
        raise UsageError(f"--dataset {config.dataset}: has {read.classes} classes, and only {CLASSES} are compared")
    config, training = lengthened(config, training, total_steps(config, len(read.train.labels)))
    check_run(config, training, len(read.train.labels), Moment(start(config, training, CLASSES)))
    found = followed(config, training, times, read)
    print(found)
    found.report(path)
    print(f"the report is {path}")
    return int(not found.ok)


def followed(config: Config, training: Training, times: float, read: Data) -> port.Followed:
    """torch's run, and what comes of following it."""
    from train.compare.torch_run import Run  # imports torch

    convolve = convolve_by_rows if training.closures else jax.lax.conv_general_dilated
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "run.trace"
        try:
            run = Run(config, read.train, read.test)
            run.recorded(trace, flush=jax.default_backend() == "cpu")
        except (RuntimeError, ValueError, TypeError) as error:  # what torch's optimizer does not take
            raise UsageError(f"--optimizer {config.optimizer}: PyTorch's run ended: {one_line(error)}") from error
        return port.follow(
            trace,
            lambda params, images, labels: batch_loss(params, images, labels, convolve)[0],
            start(config, training, CLASSES).params,
            stepped(config, training, len(read.train.labels), run.metrics),
            mapping(CLASSES),
            batches=own_batches(config, read.train),
            times=times,
        )


def stepped(config: Config, training: Training, examples: int, metrics: list[float]) -> Any:
    """The optimizer, with its scheduler if it has one; that of a plateau gets torch's metrics."""
    if training.scheduler is None:
        return training.optimizer
    every = config.accumulate if training.every_step else steps_per_epoch(config, examples)
    return port.Scheduled(training.optimizer, training.scheduler, every, metrics)


def own_batches(config: Config, examples: Examples) -> Iterator[list[dict[str, np.ndarray]]]:
    """Ours, in our order, those of a step of the optimizer together."""

    def each() -> Iterator[dict[str, np.ndarray]]:
        for number in range(1, config.epochs + 1):
            order = epoch_order(config, number, len(examples.labels))
            for (batch,) in batches(order, config, 0, 0):
                yield {"images": examples.images[batch], "labels": examples.labels[batch]}

    run = itertools.islice(each(), config.steps)
    return map(list, zip(*[run] * config.accumulate, strict=False))

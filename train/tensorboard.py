"""`--tensorboard`: the run for TensorBoard, in an event file in its folder.

What it holds follows from the run's records, so a run that goes on writes all of it again, into another file, which
tells TensorBoard to forget the one before.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from train import output
from train.epoch import Epoch
from train.loop import Moment

# Made by protobuf when they are imported, and so unknown to a type checker.
_events: Any = event_pb2
_summaries: Any = summary_pb2

STRETCH = 50  # steps to a point; an epoch begins a new one


class TensorBoard:
    """The event file of a run. It cannot end the run: where it cannot be written it is given up.

    Args:
      folder: the run's.
      batch: examples of a step.
      epochs: those that the run has had.
      moment: where it starts, or goes on.
    """

    def __init__(self, folder: Path, batch: int, epochs: Sequence[Epoch], moment: Moment):
        self.failed, self._folder, self._batch = False, folder, batch
        self._before = self._done = 0  # steps before the epoch under way, and those of it that are written
        try:
            # The file without the thread that tensorboardX puts before it: there a full disk would be waited for.
            self._file = EventsWriter(str(folder / "events"))
            log = _events.SessionLog(status=_events.SessionLog.START)
            self._file.write_event(_events.Event(wall_time=time.time(), session_log=log))
        except OSError as error:
            self._give_up(error)
        for epoch in epochs:
            self.add(epoch)
        self._before = moment.step - len(moment.steps)

    def look(self, moment: Moment) -> None:
        """Write what is new."""
        if moment.ended is not None:
            self.add(moment.ended)
        elif len(moment.steps) >= self._done + STRETCH:
            columns = moment.steps.columns()
            assert columns is not None
            examples = np.full(len(columns.losses), self._batch)
            whole = len(columns.losses) // STRETCH * STRETCH
            self._steps(columns.losses[:whole], columns.correct, examples, columns.lr)

    def add(self, epoch: Epoch) -> None:
        """Write an epoch, but for what is written of it."""
        self._before = epoch.step - len(epoch.losses)
        self._steps(epoch.losses, epoch.correct, epoch.examples, epoch.lr)
        scalars = {"images_per_second": epoch.images_per_second}
        for name, test in (("test", epoch.test), ("test_average_of_weights", epoch.ema_test)):
            if test is not None:
                scalars |= {f"loss/{name}": test[0], f"accuracy/{name}": test[1]}
        self._write(epoch.step, scalars)
        self._before, self._done = epoch.step, 0

    def _steps(self, losses: np.ndarray, correct: np.ndarray, examples: np.ndarray, lr: np.ndarray) -> None:
        """The steps of an epoch, from the first on that is not written."""
        for at in range(self._done, len(losses), STRETCH):
            these = slice(at, min(at + STRETCH, len(losses)))
            scalars = {
                "loss/training": losses[these].mean(),
                "accuracy/training": correct[these].sum() / examples[these].sum(),
                **{f"learning_rate/group_{group}": rate for group, rate in enumerate(lr[these.stop - 1])},
            }
            self._write(self._before + these.stop, scalars)
        self._done = len(losses)

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        if self.failed:
            return
        values = [_summaries.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        try:
            summary = _summaries.Summary(value=values)
            self._file.write_event(_events.Event(wall_time=time.time(), step=step, summary=summary))
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failed = True
        output.complain(f"--tensorboard: {self._folder} cannot be written ({error}); a run that goes on tries again")

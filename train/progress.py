"""What is seen of a run while it goes on: a line an epoch, and on a terminal one below them that moves."""

import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from train.config import Config
from train.epoch import Epoch
from train.loop import Moment

REFRESH = 0.1  # seconds between two looks at the steps under way
BAR = 8  # columns; a narrower bar says nothing
INDENT = " " * 4  # below the epoch's number


def header(config: Config, width: int | None = None) -> str:
    """What is printed above the epochs' lines.

    Args:
      config: the run's.
      width: columns that there are; with fewer than the line needs it goes on below.
    """
    titles = [f"{'epoch':>5}", f"{'steps':>9}", f"{'running loss':>14}", f"{'accuracy':>9}", f"{'images/s':>9}"]
    titles += [f"{'test loss':>10}", f"{'test accuracy':>14}"] if config.evaluates else []
    return _folded(titles + ([f"{'EMA loss':>10}", f"{'EMA accuracy':>14}"] if config.ema is not None else []), width)


def line(epoch: Epoch, width: int | None = None) -> str:
    """What is printed of an epoch, below `header`."""
    cells = [
        f"{epoch.number:>5}",
        f"{epoch.step:>9,}",
        f"{epoch.running_loss:>14,.4f}",
        f"{epoch.accuracy:>9.2%}",
        f"{epoch.images_per_second:>9,.0f}",
    ]
    for loss, accuracy in (test for test in (epoch.test, epoch.ema_test) if test is not None):
        cells += [f"{loss:>10.4f}", f"{accuracy:>14.2%}"]
    return _folded(cells, width)


def _folded(cells: Iterable[str], width: int | None) -> str:
    first, *others = cells
    lines = [first]
    for cell in others:
        if width is not None and len(lines[-1]) + 1 + len(cell) > width:
            lines.append(INDENT)
        lines[-1] += " " + cell
    return "\n".join(lines)


class Bar:
    """The line that moves; there is none on what is no terminal, or with `--quiet`.

    Args:
      console: where.
      config: the run's.
      examples: of an epoch.
      steps: that the run has in all.
      moment: where it starts, or goes on.
    """

    def __init__(self, console: Console, config: Config, examples: int, steps: int, moment: Moment):
        self._batch, self._looked = min(config.batch_size, examples), 0.0
        self._progress = Progress(
            _Line(self._batch),
            console=console,
            transient=True,
            expand=True,
            disable=config.quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps, completed=moment.step)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def look(self, moment: Moment) -> None:
        """Take in where the run is."""
        self._progress.update(self._task, completed=moment.step)
        now = time.monotonic()
        if self._progress.disable or now - self._looked < REFRESH:
            return
        self._looked = now
        columns = moment.steps.columns()
        if columns is not None:
            accuracy = columns.correct.sum() / (len(columns.correct) * self._batch)
            self._progress.update(self._task, loss=columns.losses.mean(), accuracy=accuracy)


class _Line(ProgressColumn):
    """All of the line: what fits of it, and the bar in the rest."""

    def __init__(self, batch: int):
        super().__init__()
        self._batch = batch

    def render(self, task: Task) -> "_Fitted":
        if "loss" not in task.fields:
            return _Fitted(task, [("compiling the step", 0)])
        left = None if task.time_remaining is None else timedelta(seconds=round(task.time_remaining))
        speed = "" if task.speed is None else f"{task.speed * self._batch:,.0f} images/s"
        return _Fitted(
            task,
            [
                (f"{task.completed:,.0f}/{task.total:,.0f}", 4),
                (f"loss {task.fields['loss']:.4g}", 0),
                (f"accuracy {task.fields['accuracy']:.1%}", 2),
                (speed, 3),
                ("" if left is None else f"{left} left", 1),
            ],
        )


class _Fitted:
    """The pieces of a line that there is room for, the most important ones, which have the smallest numbers, first."""

    def __init__(self, task: Task, pieces: Sequence[tuple[str, int]]):
        self.task, self.pieces = task, pieces

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room, shown = options.max_width, set()
        for text, _ in sorted(self.pieces, key=lambda piece: piece[1]):
            if text and len(text) + 1 <= room:
                room -= len(text) + 1
                shown.add(text)
        text = Text(" ".join(text for text, _ in self.pieces if text in shown), no_wrap=True)
        if room < BAR:
            yield text
            return
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(ProgressBar(total=self.task.total, completed=self.task.completed), text)
        yield line

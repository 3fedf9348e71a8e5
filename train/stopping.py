"""SIGINT and SIGTERM: the first ends a run in order, in whatever phase it is, the second at once."""

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """What was asked for by signals.

    Before the training there is nothing to save: the process says so and ends at once. From `in_order` on a first
    signal is only remembered, for the run to look at between two steps.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._in_order = False

    def listen(self, handle: Callable[[int, Any], None] | None = None) -> None:
        """Handle the signals, but for those that the process was started to ignore."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handle or self.handle)

    def in_order(self) -> None:
        """From here on a first signal waits until the run looks."""
        self._in_order = True

    @property
    def status(self) -> int:
        """The exit status that shells give a process that the signal ended."""
        return 0 if self.asked is None else 128 + self.asked

    def handle(self, number: int, frame: Any = None) -> None:
        """What a signal does."""
        first, self.asked = self.asked is None, signal.Signals(number)
        if first and self._in_order:
            _say(f"{self.asked.name}: stopping after this step; once more stops at once")
            return
        _say(f"stopped by {self.asked.name}" + ("" if self._in_order else " before it took a step"))
        os._exit(self.status)


def _say(text: str) -> None:
    """Past Python's buffers, which a signal may have come in the middle of."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


stopping = Stopping()

"""What a run says, on outputs that may break: a pipe that nobody reads any more, a full disk, no output at all."""

import os
import sys
from typing import Any, TextIO


class Tolerant:
    """A text stream that goes nowhere once it cannot be written, and writes what it can of any text."""

    def __init__(self, stream: TextIO | None):
        self._stream: Any = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            if "\n" in text:
                self._stream.flush()
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """What is left in buffers must not fail at exit either: the file descriptor leads nowhere from now on."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            self._stream = open(os.devnull, "w")  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tolerate() -> None:
    """Make the program's outputs such streams."""
    sys.stdout, sys.stderr = Tolerant(sys.stdout), Tolerant(sys.stderr)  # pyright: ignore[reportAttributeAccessIssue]


def complain(message: str) -> None:
    """Say what went wrong and does not end the run."""
    print(message, file=sys.stderr)

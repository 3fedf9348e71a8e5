"""Folders that are made whole or not at all, by one process at a time."""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def alone(parent: Path, name: str, left: str | None = None) -> Iterator[Path]:
    """A folder to work in that nobody else has; others that want the same name wait.

    What a killed process left behind is removed first, and this folder at the end: move out what is whole.

    Args:
      parent: where the folder is made.
      name: of what is made.
      left: a pattern of what is left behind, by default of this name's.

    Raises:
      OSError: nothing can be written there.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process
        for folder in parent.glob(left or f".{name}-*"):
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent, ignore_cleanup_errors=True) as scratch:
            yield Path(scratch)

"""Several processes of one run, by `jax.distributed`: they stop at the same step, and none outlives another."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from train.config import AUTO, Config
from train.errors import UsageError, one_line
from train.stopping import SIGNALS, Stopping

LOST = 4  # the exit status where another process of the run is lost
HEARTBEAT = 10  # seconds without a sign of life after which a process counts as lost
TOGETHER = 10  # seconds in which the others have to end too


def watched(work: Callable[[], int], stopping: Stopping) -> int:
    """Work in a child process, and say it in a line where another process of the run is lost.

    JAX aborts a process then, from a thread of its own, whatever Python does. Signals reach the child by a pipe alone:
    a cluster sends them to parent and child, and a second one means to stop at once.

    Args:
      work: returns the exit status. Nothing may have started JAX before.
      stopping: takes the signals.
    """
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(there)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=_obey, args=(here, stopping), daemon=True).start()
        return _among_others(work)
    os.close(here)

    def pass_on(number: int, frame: Any) -> None:
        with contextlib.suppress(OSError):  # it has just ended
            os.write(there, bytes([number]))

    stopping.listen(pass_on)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGABRT:
        print(f"another process of this run is lost, or never came; this one ends with status {LOST}", file=sys.stderr)
        return LOST
    return status if status >= 0 else 128 - status


def _obey(pipe: int, stopping: Stopping) -> None:
    """Take signals from the parent, and end when it does."""
    while number := os.read(pipe, 1):
        stopping.handle(number[0])
    os._exit(128 + signal.SIGKILL)


def _among_others(work: Callable[[], int]) -> int:
    from jax.errors import JaxRuntimeError

    try:
        return work()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)  # JAX's own end waits for the others, and aborts where they do not come
    except JaxRuntimeError:  # a collective without one of its processes, or a fault of this one
        time.sleep(HEARTBEAT + TOGETHER / 2)  # JAX knows by then if it is the former, and aborts
        raise


def begin(config: Config) -> None:
    """Meet the other processes, if there are to be any."""
    if config.coordinator is None:
        return
    import jax

    print(f"--coordinator {config.coordinator}: meeting the other processes", file=sys.stderr)
    try:
        jax.distributed.initialize(
            None if config.coordinator == AUTO else config.coordinator,
            config.num_processes,
            config.process_id,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=TOGETHER,
        )
    except Exception as error:  # whatever a cluster's variables or a network make of it
        raise UsageError(f"--coordinator {config.coordinator}: {one_line(error)}") from error

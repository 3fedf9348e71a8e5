"""What pytest does for all tests: two processes for the whole suite, and a summary of the bits that were compared."""

from collections.abc import Iterator
from typing import Any

import jax
import pytest

collect_ignore = ["oracle.py", "train/torch_side.py", "compare/torch_side.py"]  # they need torch, and have no doctests
report = pytest.StashKey[list[str]]()


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Products in float32, where a GPU's default is TF32: layers then agree with torch's to 1e-6, and not to 1e-3."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite in two processes, a file at a time, where pytest-xdist is installed."""
    if hasattr(config, "workerinput"):  # one of those processes: without this each would start two more, and so on
        return
    if not config.invocation_params.args and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses, config.option.dist = 2, "loadfile"


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)  # of a process of pytest-xdist
    if output is not None:
        output["report"] = session.config.stash.get(report, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash.setdefault(report, []).extend(getattr(node, "workeroutput", {}).get("report", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says in every run, a green one too, how many configurations were compared and how many bits differ."""
    for line in config.stash.get(report, []):
        terminalreporter.write_line(line)

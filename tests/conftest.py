"""What pytest does for all tests: two processes for the whole suite, which skips are expected, the bits compared."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import pytest

# These need torch, and have no doctests.
collect_ignore = ["oracle.py", "cuda_oracle.py", "train/torch_side.py", "compare/torch_side.py"]
report = pytest.StashKey[list[str]]()

# Part of the reason that a skipped test gives, and whether it is one here. In CI a test skipped for another one fails.
MAY_SKIP = {
    "No module named 'torch'": sys.version_info >= (3, 12),  # as in pyproject.toml
    "without AVX2": True,  # CI's first lines show what the host has
    "NO BROWSER": True,  # CI says so where Chromium cannot be had
    "no prepared CIFAR-10 beside the repository": True,
}


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


def reason(skipped: Any) -> str:
    """What a skipped test says, under the name of the entry above where there is one."""
    said = skipped.longrepr[2] if isinstance(skipped.longrepr, tuple) else str(skipped.longrepr)
    return next((known for known, expected in MAY_SKIP.items() if expected and known in said), said)


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)  # of a process of pytest-xdist
    if output is not None:
        output["report"] = session.config.stash.get(report, [])
        return
    terminal: Any = session.config.pluginmanager.getplugin("terminalreporter")
    skips = terminal.stats.get("skipped", [])
    lines = session.config.stash.setdefault(report, [])
    for why, count in sorted(Counter(map(reason, skips)).items()):
        lines.append(f"skipped: {count} tests or files, {why}")
        if why not in MAY_SKIP and os.environ.get("CI"):
            lines.append("that skip is not expected here, so the run has failed: see MAY_SKIP in tests/conftest.py")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash.setdefault(report, []).extend(getattr(node, "workeroutput", {}).get("report", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says in every run, a green one too, how many configurations were compared and how many bits differ."""
    for line in config.stash.get(report, []):
        terminalreporter.write_line(line)

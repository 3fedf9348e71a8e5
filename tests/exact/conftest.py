"""Says in every run, a green one too, how many configurations were compared and how many bits differ."""

import pytest

collect_ignore = ["around.py", "cases.py", "harness.py"]  # they need torch, and have no doctests
report = pytest.StashKey[list[str]]()


def selected_names(request: pytest.FixtureRequest) -> set[str]:
    """The values of `name` in the parametrized tests that are selected: what an expensive fixture has to prepare."""
    specs = (getattr(item, "callspec", None) for item in request.session.items)
    return {spec.params["name"] for spec in specs if spec is not None and "name" in spec.params}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(report, []):
        terminalreporter.write_line(line)

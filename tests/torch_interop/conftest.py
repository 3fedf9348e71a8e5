"""Modules that need torch or more, and have no doctests to collect."""

import pytest

collect_ignore = ["convert.py", "files/same.py", "resume.py"]
collect_ignore_glob = ["data/make_*.py"]


@pytest.fixture(autouse=True)
def _layers_beside_torchs(full_precision: None) -> None:
    """Most modules here compare layers."""

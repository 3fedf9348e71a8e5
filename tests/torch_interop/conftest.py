"""Modules that need torch or more, and have no doctests to collect."""

from collections.abc import Iterator

import jax
import pytest

collect_ignore = ["convert.py", "files/same.py", "resume.py"]
collect_ignore_glob = ["data/make_*.py"]


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """Products in float32, where a GPU's default is TF32: layers then agree with torch's to 1e-6, and not to 1e-3."""
    with jax.default_matmul_precision("highest"):
        yield

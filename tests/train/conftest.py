import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from train import data
from train.cache import keep_compiled

SHARED = Path(__file__).parents[3] / "shared" / "tfds_data"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the digits in it, so that no test prints that it decodes them."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for split in ("train", "test"):
            data.load("digits", split)
    return folder


@pytest.fixture(scope="package", autouse=True)
def _compiled_once(cache: Path) -> Iterator[None]:
    """What one test compiles the others use, as the program's own processes do, and together with them."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(cache)}):
        keep_compiled()
        values = os.environ[names[0].upper()], float(os.environ[names[1].upper()])
    for name, value in zip(names, values, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests out of the user's cache; digits are prepared once for all of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture
def cifar10_dir() -> Path:
    if not SHARED.is_dir():
        pytest.skip("no prepared CIFAR-10 beside the repository")
    return SHARED

from pathlib import Path

import pytest

from train import data

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


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests out of the user's cache; digits are prepared once for all of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture
def cifar10_dir() -> Path:
    if not SHARED.is_dir():
        pytest.skip("no prepared CIFAR-10 beside the repository")
    return SHARED

"""Digits against scikit-learn's arrays, CIFAR-10 against TFDS, and what happens when data is damaged or not there."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets

from benchmarks.damage_checkpoints import damage
from train import data
from train.errors import UsageError


@pytest.mark.parametrize(("split", "rows"), [("train", slice(0, 1437)), ("test", slice(1437, 1797))])
def test_digits_are_scikit_learns(split: str, rows: slice) -> None:
    images, labels = data.load("digits", split)
    digits: Any = sklearn.datasets.load_digits()
    assert images.dtype == np.uint8
    assert images.shape[1:] == (32, 32, 3)
    np.testing.assert_array_equal(labels, digits.target[rows])
    small = np.rint(digits.images[rows] * 255 / 16)
    np.testing.assert_array_equal(images, np.kron(small, np.ones((4, 4)))[..., None].repeat(3, axis=-1))


def test_first_takes_the_first() -> None:
    examples = data.load("digits", "test")
    assert len(examples.first(None).labels) == len(examples.first(10_000).labels) == 360
    np.testing.assert_array_equal(examples.first(7).images, examples.images[:7])


def test_decoded_once_until_the_source_changes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = data.load("digits", "test", tmp_path)
    assert "decoding 360 pictures" in capfd.readouterr().err
    second = data.load("digits", "test", tmp_path)
    assert capfd.readouterr().err == ""
    np.testing.assert_array_equal(first.images, second.images)

    record = next((tmp_path / "digits" / "1.0.0").glob("digits-test*"))
    record.touch()
    data.load("digits", "test", tmp_path)
    assert "decoding 360 pictures" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [".digits.lock", "digits"]


def entries(cache: Path) -> set[Path]:
    return {path for path in cache.glob("jaxopt_port/decoded/*") if path.is_dir() and not path.name.startswith(".")}


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_cache_is_decoded_again(
    cache: Path, tmp_path: Path, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = entries(cache)
    whole = data.load("digits", "test", tmp_path)
    (entry,) = entries(cache) - before
    what = damage(entry, random.Random(seed))
    capfd.readouterr()
    for one, other in zip(data.load("digits", "test", tmp_path), whole, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=what)
    assert "are damaged" in capfd.readouterr().err


@pytest.mark.parametrize("seed", range(2))
def test_damaged_digits_are_prepared_again(tmp_path: Path, seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    whole = data.load("digits", "test", tmp_path)
    what = damage(tmp_path / "digits" / "1.0.0", random.Random(seed))
    for one, other in zip(data.load("digits", "test", tmp_path), whole, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=what)
    data.load("digits", "train", tmp_path)
    assert "prepared again" in capfd.readouterr().err or "dataset_info" in what


def test_what_killed_processes_left_is_removed(cache: Path, tmp_path: Path) -> None:
    left = [cache / "jaxopt_port" / "decoded" / ".abc123" / "whole", tmp_path / ".digits-abc" / "digits"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "images.npy").write_bytes(b"x" * 100)
    (tmp_path / "digits" / "1.0.0").mkdir(parents=True)  # half prepared
    (tmp_path / "digits" / "incomplete.9_1.0.0").mkdir()  # by TFDS
    (tmp_path / "digits" / "incomplete.9_1.0.0" / "dataset_info.json").write_text("{}")
    assert len(data.load("digits", "test", tmp_path).labels) == 360
    assert not any(folder.parent.exists() for folder in left)


def test_without_a_writable_cache_it_still_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(data.load("digits", "test", tmp_path / "data").labels) == 360
    assert "not cached" in capfd.readouterr().err
    with pytest.raises(UsageError, match="give a directory with --data-dir DIR"):
        data.load("digits", "test")


def test_the_cache_is_where_a_shell_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/c")
    data.load("digits", "test")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_unreadable_data_is_one_error(tmp_path: Path) -> None:
    data.load("digits", "test", tmp_path)
    with pytest.raises(UsageError, match=r"--split validation: digits 1\.0\.0 in .* has none of this name; it has "):
        data.load("digits", "validation", tmp_path)
    with pytest.raises(UsageError, match=rf"--data-dir {tmp_path}: no mnist/VERSION.*tfds build mnist"):
        data.load("mnist", "test", tmp_path)


def test_cifar10_is_what_tfds_reads(cifar10_dir: Path) -> None:
    import tensorflow_datasets as tfds

    images, labels = data.load("cifar10", "test", cifar10_dir)
    assert images.shape == (10_000, 32, 32, 3)
    source: Any = tfds.data_source("cifar10", data_dir=cifar10_dir, split="test")
    for row in (0, 1, 999, 1000, 9_999):
        np.testing.assert_array_equal(images[row], source[row]["image"])
        assert labels[row] == source[row]["label"]


def test_two_processes_prepare_at_once(tmp_path: Path) -> None:
    code = "import sys, pathlib; from train import data; data.load('digits', 'test', pathlib.Path(sys.argv[1]))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "".join(said).count("decoding") == 1
    assert len(data.load("digits", "train", tmp_path).labels) == 1437

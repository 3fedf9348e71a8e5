"""Digits against scikit-learn's arrays, CIFAR-10 against TFDS, and what happens when the data is not there."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets

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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits"]


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
def test_a_cache_cut_short_is_decoded_again(cache: Path, tmp_path: Path, name: str) -> None:
    before = set(cache.glob("jaxopt_port/decoded/*"))
    whole = data.load("digits", "test", tmp_path)
    (entry,) = set(cache.glob("jaxopt_port/decoded/*")) - before
    (entry / name).write_bytes((entry / name).read_bytes()[:-100])
    np.testing.assert_array_equal(data.load("digits", "test", tmp_path).labels, whole.labels)


def test_without_a_writable_cache_it_still_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(data.load("digits", "test", tmp_path / "data").labels) == 360
    assert "not cached" in capfd.readouterr().err
    with pytest.raises(UsageError, match="give a directory with --data-dir DIR"):
        data.load("digits", "test")


def test_missing_data_is_one_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object) -> None:
        raise AssertionError("looked on the network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    start = time.perf_counter()
    with pytest.raises(UsageError, match=rf"--data-dir {tmp_path}: no cifar10/VERSION.*tfds build cifar10"):
        data.load("cifar10", "test", tmp_path)
    assert time.perf_counter() - start < 1


def test_unreadable_data_is_one_error(tmp_path: Path) -> None:
    data.load("digits", "test", tmp_path)
    with pytest.raises(UsageError, match=r"the validation split of digits 1\.0\.0 cannot be read"):
        data.load("digits", "validation", tmp_path)
    record = next((tmp_path / "digits" / "1.0.0").glob("digits-test*"))
    record.write_bytes(b"not array_record")
    with pytest.raises(UsageError, match=r"the test split of digits 1\.0\.0 cannot be read"):
        data.load("digits", "test", tmp_path)


def test_cifar10_is_what_tfds_reads(cifar10_dir: Path) -> None:
    import tensorflow_datasets as tfds

    images, labels = data.load("cifar10", "test", cifar10_dir)
    assert images.shape == (10_000, 32, 32, 3)
    source: Any = tfds.data_source("cifar10", data_dir=cifar10_dir, split="test")
    for row in (0, 1, 999, 1000, 9_999):
        np.testing.assert_array_equal(images[row], source[row]["image"])
        assert labels[row] == source[row]["label"]


def test_two_processes_prepare_at_once(tmp_path: Path) -> None:
    code = "import sys, pathlib, train.digits as d; d.prepare(pathlib.Path(sys.argv[1]))"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(data.load("digits", "train", tmp_path).labels) == 1437
    shutil.rmtree(tmp_path)

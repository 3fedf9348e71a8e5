"""Datasets out of their archives, at hand or from a server on loopback, read by TFDS's own reader afterwards."""

import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from train import data
from train.data import archives, builders
from train.errors import UsageError

TRAIN, TEST = 30, 12


def pictures(number: int, seed: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (number, 32, 32, 3), np.uint8), random.integers(0, classes, number).astype(np.uint8)


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def binary(images: np.ndarray, *labels: np.ndarray) -> bytes:
    return np.concatenate([*(column[:, None] for column in labels), planes(images)], axis=1).tobytes()


def cifar10(path: Path, python: bool = False) -> Path:
    """A small archive of the official form, in five batches and one of the test split."""
    (images, labels), test = pictures(TRAIN, 0), pictures(TEST, 1)
    parts = [(images[at : at + 6], labels[at : at + 6]) for at in range(0, TRAIN, 6)]
    if python:
        batches = {f"data_batch_{i}": part for i, part in enumerate(parts, start=1)} | {"test_batch": test}
        content = {
            f"cifar-10-batches-py/{name}": pickle.dumps({b"data": planes(x), b"labels": y.tolist()}, protocol=2)
            for name, (x, y) in batches.items()
        }
        return tar(path, content)
    batches = {f"data_batch_{i}.bin": part for i, part in enumerate(parts, start=1)} | {"test_batch.bin": test}
    return tar(path, {f"cifar-10-batches-bin/{name}": binary(x, y) for name, (x, y) in batches.items()})


def assert_pictures(examples: data.Examples, images: np.ndarray, labels: np.ndarray) -> None:
    """The same pictures, in whatever order TFDS shuffled them to."""
    ours = sorted((image.tobytes(), int(label)) for image, label in zip(*examples, strict=True))
    assert ours == sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize("python", [False, True])
def test_an_archive_at_hand(tmp_path: Path, python: bool) -> None:
    import tensorflow_datasets as tfds

    archive = cifar10(tmp_path / "file.tar.gz", python)
    assert_pictures(data.load("cifar10", "train", tmp_path, archive), *pictures(TRAIN, 0))
    test = data.load("cifar10", "test", tmp_path)  # prepared already
    assert_pictures(test, *pictures(TEST, 1))
    source: Any = tfds.data_source("cifar10", data_dir=tmp_path, split="test")  # TFDS's own builder
    for row in range(TEST):
        np.testing.assert_array_equal(test.images[row], source[row]["image"])
        assert test.labels[row] == source[row]["label"]
        assert source[row]["id"].decode().startswith("test_000")


def test_cifar100(tmp_path: Path) -> None:
    files = {}
    for split, (number, seed) in {"train": (TRAIN, 0), "test": (TEST, 1)}.items():
        images, fine = pictures(number, seed, 100)
        files[f"cifar-100-binary/{split}.bin"] = binary(images, fine // 5, fine)
    archive = tar(tmp_path / "file.tar.gz", files)
    assert_pictures(data.load("cifar100", "test", tmp_path, archive), *pictures(TEST, 1, 100))


def test_svhn_has_tens_for_zeros(tmp_path: Path) -> None:
    images, labels = pictures(TEST, 1)
    content = {"X": np.moveaxis(images, 0, -1), "y": np.where(labels == 0, 10, labels)[:, None]}
    scipy.io.savemat(tmp_path / "test_32x32.mat", content)
    found = list(archives.svhn(tmp_path / "test_32x32.mat"))
    np.testing.assert_array_equal([image for image, _ in found], images)
    assert [label["label"] for _, label in found] == labels.tolist()


def test_what_is_no_archive_is_one_error(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "run").touch, ())

    whole = cifar10(tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "text").write_text("no archive")
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (tmp_path / "flipped").write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])  # a pixel
    tar(tmp_path / "list", {f"data_batch_{i}": pickle.dumps([1]) for i in range(1, 6)})
    tar(tmp_path / "empty", {})
    tar(tmp_path / "odd", {f"data_batch_{i}.bin": b"12" for i in range(1, 6)})
    tar(tmp_path / "evil", {f"data_batch_{i}": pickle.dumps(Evil()) for i in range(1, 6)})
    for name in ("text", "cut", "flipped", "list", "empty", "odd", "evil"):
        with pytest.raises(UsageError, match=rf"--archive {tmp_path / name}: ") as error:
            data.load("cifar10", "train", tmp_path, tmp_path / name)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("cifar10*"))  # nothing half prepared
    assert not list(tmp_path.glob(".cifar10-*"))


class Server:
    """Serves one file; the first so many times only half of it."""

    def __init__(self, content: bytes):
        self.content, self.broken, self.served = content, 0, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.served += 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.content)))
                self.end_headers()
                half = outer.broken > 0
                outer.broken -= half
                self.wfile.write(outer.content[: len(outer.content) // 2] if half else outer.content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/cifar-10-binary.tar.gz"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    content = cifar10(tmp_path / "served.tar.gz").read_bytes()
    server = Server(content)
    sha256 = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(builders.DOWNLOADS, "cifar10", {server.url: (len(content), sha256)})
    yield server
    server.server.shutdown()


def test_a_download(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "data"
    assert_pictures(data.load("cifar10", "train", root), *pictures(TRAIN, 0))
    assert_pictures(data.load("cifar10", "test", root), *pictures(TEST, 1))
    assert server.served == 1
    record = next((root / "cifar10" / "3.0.2").glob("cifar10-test*"))  # is made again out of the file that was fetched
    record.write_bytes(record.read_bytes()[:-10])
    assert_pictures(data.load("cifar10", "test", root), *pictures(TEST, 1))
    assert server.served == 1
    archive = max((root / "downloads").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    archive.write_bytes(b"damaged")
    record.write_bytes(b"")
    assert_pictures(data.load("cifar10", "test", root), *pictures(TEST, 1))
    assert server.served == 2


def test_a_download_that_breaks_off_is_done_again(server: Server, tmp_path: Path) -> None:
    server.broken = 1
    with pytest.raises(UsageError, match=r"--dataset cifar10: http://127.0.0.1.* cannot be had"):
        data.load("cifar10", "train", tmp_path / "data")
    assert_pictures(data.load("cifar10", "train", tmp_path / "data"), *pictures(TRAIN, 0))
    assert not list((tmp_path / "data" / "downloads").rglob("*.tmp.*"))


def test_another_file_is_refused(server: Server, tmp_path: Path) -> None:
    whole = server.content
    server.content = whole[:-1] + b"x"
    with pytest.raises(UsageError, match="checksum"):
        data.load("cifar10", "train", tmp_path / "data")
    assert not (tmp_path / "data" / "cifar10").exists()
    server.content = whole
    assert_pictures(data.load("cifar10", "train", tmp_path / "data"), *pictures(TRAIN, 0))

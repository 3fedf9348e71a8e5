"""What is read from and written to: paths and open files; devices, pipes and folders are refused at once."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxopt_port.torch_interop import PtFileError, load, load_safetensors, load_trainer, save, save_safetensors

OBJ = {"a": np.arange(3), "n": 1}


@pytest.mark.parametrize("write", [save, save_safetensors])
def test_open_files(write: Any, tmp_path: Path) -> None:
    read: Any = load if write is save else load_safetensors
    arrays = {"a": np.arange(3)}
    write(arrays, tmp_path / "a")
    memory = io.BytesIO()
    write(arrays, memory)
    assert memory.getvalue() == (tmp_path / "a").read_bytes()
    memory.seek(0)
    assert read(memory)["a"].tolist() == [0, 1, 2]
    with open(tmp_path / "a", "rb") as file:
        assert read(file)["a"].tolist() == [0, 1, 2]
    with open(tmp_path / "a", "rb", buffering=0) as file:
        assert read(file)["a"].tolist() == [0, 1, 2]
    memory = io.BytesIO(b"before" + memory.getvalue())
    memory.seek(6)
    assert read(memory)["a"].tolist() == [0, 1, 2]
    memory.seek(0, io.SEEK_END)
    with pytest.raises(PtFileError, match=r"the open BytesIO: it is empty, from where it stands: file\.seek\(0\)"):
        read(memory)
    with pytest.raises(ValueError, match="mmap=True needs a path"):
        read(memory, mmap=True)
    with open(tmp_path / "a", errors="ignore") as file, pytest.raises(PtFileError, match="opened as text"):
        read(file)


def test_torch_reads_what_is_written_to_an_open_file() -> None:
    torch = pytest.importorskip("torch")
    memory = io.BytesIO()
    save(OBJ, memory)
    memory.seek(0)
    assert torch.load(memory, weights_only=True)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("read", [load, load_safetensors])
def test_devices_and_pipes_are_refused_at_once(read: Any, tmp_path: Path) -> None:
    with pytest.raises(PtFileError, match="/dev/zero: it is a character device"):
        read("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PtFileError, match="pipe: it is a pipe"):  # opening it would wait for a writer
        read(tmp_path / "pipe")
    with open("/dev/zero", "rb") as file, pytest.raises(PtFileError, match="it is a character device"):
        read(file)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as file, os.fdopen(writing, "wb"), pytest.raises(PtFileError, match="a pipe"):
        read(file)


def test_a_trainers_folder_is_one_of_files(tmp_path: Path) -> None:
    for path in ("/dev/zero", tmp_path / "a.pt"):
        save({}, tmp_path / "a.pt")
        with pytest.raises(PtFileError, match=r"it is not a folder: load\(path\)"):
            load_trainer(path)
    save_safetensors({"a": np.ones(1)}, tmp_path / "model.safetensors")
    for name in ("trainer_state.json", "optimizer.pt"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(PtFileError, match=f"{name}: it is a pipe"):
            load_trainer(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("read", [load, load_safetensors])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "`git lfs pull` brings that"),
        (b"\n<!DOCTYPE html><html></html>", "a web page.*: download it again"),
    ],
)
def test_what_a_download_leaves_in_place_of_a_file(read: Any, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(PtFileError, match=message):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("write", [save, save_safetensors])
def test_nothing_but_a_file_is_written_to(write: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    for name, message in (("pipe", "it is a pipe"), ("folder", "it is a folder")):
        with pytest.raises(PtFileError, match=message):
            write({"a": np.ones(1)}, tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == before
    with open(tmp_path / "text", "w") as file, pytest.raises(PtFileError, match=r'text: open\(path, "wb"\)'):
        write({"a": np.ones(1)}, file)
    with pytest.raises(TypeError, match="a path or an open binary file is written to, not a int"):
        write({"a": np.ones(1)}, 3)
    (tmp_path / "real").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write({"a": np.ones(1)}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").stat().st_size


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([".metadata", "__0_0.distcp"], r"torch\.distributed\.checkpoint\.format_utils\.dcp_to_torch_save\("),
        (["trainer_state.json", "model.safetensors"], r"load_trainer\(folder\) reads it"),
        (["model.safetensors.index.json"], r"load_safetensors\(folder\) reads them"),
        (["mp_rank_00_model_states.pt"], r"zero_to_fp32\.py"),
        (["a.txt"], "it is a folder"),
    ],
)
def test_a_folder_is_refused_with_the_remedy(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(PtFileError, match=message):
        load(tmp_path)


def test_a_part_of_a_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    save({"a": np.ones(1)}, tmp_path / "a.pt")
    (tmp_path / "a.pt").rename(tmp_path / "__0_0.distcp")
    with pytest.raises(PtFileError, match="dcp_to_torch_save"):
        load(tmp_path / "__0_0.distcp")


def test_one_archive_and_nothing_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save({"a": np.ones(2)}, path)
    first = path.read_bytes()
    save({"b": np.zeros(300)}, path)
    second = path.read_bytes()
    for data in (first + second, second + first, first + first, b"junk" * 99 + first, b"PK\3\4" + b"x" * 96 + first):
        path.write_bytes(data)
        for mmap in (False, True):
            with pytest.raises(PtFileError, match=r"before the archive|begins with b'junk"):
                load(path, mmap=mmap)
    path.write_bytes(first + b"after")  # as torch takes it
    assert load(path)["a"].tolist() == [1, 1]


def test_two_roots_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\2N.")
        archive.writestr("b/data.pkl", b"\x80\2N.")
    with pytest.raises(PtFileError, match=r"no data\.pkl"):
        load(tmp_path / "a.pt")

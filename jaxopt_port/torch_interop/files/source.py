"""What a file is read from and written to: a path or an open binary file, and nothing that never ends."""

import contextlib
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxopt_port.torch_interop.files.pt_types import PtFileError

Source = str | os.PathLike[str] | IO[bytes]

_KINDS = {
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


@contextlib.contextmanager
def opened(source: Source) -> Iterator[IO[bytes]]:
    """The file, to be read from where it stands. An error names it.

    Raises:
      PtFileError: it is a device, a pipe or a folder, or an open file that cannot be read from any place of it.
      OSError: it cannot be opened.
    """
    name = source_name(source)
    try:
        if isinstance(source, str | os.PathLike):
            check_regular(Path(source))
            with open(source, "rb") as file:
                yield file
        else:
            _check_binary(source)
            yield source
    except PtFileError as error:
        raise PtFileError(f"{name}: {error}") from error


@contextlib.contextmanager
def written(target: Source) -> Iterator[IO[bytes]]:
    """A file to write; where the target is a path, it is there, whole, when all has gone well."""
    if not isinstance(target, str | os.PathLike):
        if isinstance(target, io.TextIOBase):
            raise PtFileError(f'{source_name(target)}: it is opened as text: open(path, "wb")')
        if not hasattr(target, "write"):
            raise TypeError(f"a path or an open binary file is written to, not a {type(target).__name__}")
        yield target
        return
    path = Path(target).resolve()  # what a link stands for is replaced, not the link
    try:
        check_regular(path)
    except PtFileError as error:
        raise PtFileError(f"{os.fspath(target)}: {error}") from error
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "wb") as file:
            yield file
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def read_json(path: Path) -> Any:
    """What a small file says.

    Raises:
      PtFileError: it is no file, or is not of JSON.
      OSError: it cannot be opened.
    """
    with opened(path) as file:
        try:
            return json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise PtFileError(f"it is not JSON: {type(error).__name__}") from error


def mistaken(head: bytes) -> str | None:
    """What a file is that stands where another should, by its first bytes; None of any other."""
    if head.startswith(b"version https://git-lfs"):
        return "the file is a pointer of Git LFS, not what it stands for: `git lfs pull` brings that"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "the file is a web page, which a download brought in place of the file: download it again"
    return None


def source_name(source: Source) -> str:
    """What to call it in a message."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"the open {type(source).__name__}"


def size_left(file: IO[bytes]) -> int:
    """How many bytes there are from where it stands."""
    at = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(at)
    return end - at


def check_regular(path: Path) -> None:
    """Raise PtFileError where something is there that is not a file of a known size."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if kind := _KINDS.get(stat.S_IFMT(mode)):
        raise PtFileError(f"it is {kind}, not a file")
    if path.suffix == ".distcp":
        raise PtFileError(f"it is a part of a folder of {DCP}")
    if stat.S_ISDIR(mode):
        raise PtFileError(_about_folder(path))


def _check_binary(file: IO[bytes]) -> None:
    if isinstance(file, io.TextIOBase):
        raise PtFileError('it is opened as text: open(path, "rb")')
    if not hasattr(file, "read") or not hasattr(file, "seek"):
        raise TypeError(f"a path or an open binary file is read, not a {type(file).__name__}")
    if hasattr(file, "seekable") and not file.seekable():
        raise PtFileError("it is a pipe or the like: load(io.BytesIO(file.read())) if it ends")
    with contextlib.suppress(OSError, AttributeError):  # a BytesIO has no number
        if kind := _KINDS.get(stat.S_IFMT(os.fstat(file.fileno()).st_mode)):
            raise PtFileError(f"it is {kind}, not a file")
    if not size_left(file):
        raise PtFileError("it is empty" + (", from where it stands: file.seek(0)" if file.tell() else ""))


def check_folder(folder: Path) -> None:
    """Raise PtFileError where it is no folder, or its files are parts of what is spread over processes."""
    if folder.exists() and not folder.is_dir():
        raise PtFileError(f"{folder}: it is not a folder: load(path) and load_safetensors(path) read a file")
    if spread := _spread(folder):
        raise PtFileError(f"{folder}: {spread}")
    for inside in sorted(path for path in folder.iterdir() if path.is_dir()):
        if spread := _spread(inside):
            raise PtFileError(f"{inside}: {spread}")


DCP = (
    "torch.distributed.checkpoint: "
    'torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, "one.pt") makes one file of it'
)


def _spread(folder: Path) -> str | None:
    """What to do about a folder of many processes' parts; None of any other."""
    names = {each.name for each in folder.iterdir()}
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return f"it is a folder of {DCP}"
    if any(name.endswith(("_optim_states.pt", "_model_states.pt")) for name in names):
        return (
            "it is a folder of DeepSpeed: zero_to_fp32.py, which DeepSpeed puts beside it, makes one file of the "
            "weights, and ds_to_universal.py takes the optimizer's state apart by parameter"
        )
    return None


def _about_folder(path: Path) -> str:
    names = {each.name for each in path.iterdir()}
    if spread := _spread(path):
        return spread
    if names & {"trainer_state.json", "optimizer.pt", "optimizer.bin"}:
        return "it is the folder of a trainer's checkpoint: load_trainer(folder) reads it"
    if any("safetensors" in name for name in names):
        return "it is a folder with safetensors files: load_safetensors(folder) reads them"
    return "it is a folder"

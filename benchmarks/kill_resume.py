"""Runs that are killed with SIGKILL at random moments and resumed each time: `python -m benchmarks.kill_resume --help`.

A run is killed again and again until it gets to its end. Its parameters, optimizer state and records then have to equal
those of a run that was not stopped, in every bit.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

COMMON = "--limit 90 --epochs 4 --batch-size 4 --checkpoint-every 5 --quiet"
RUNS = {
    "sgd with momentum": "--lr 0.002 --option momentum=0.9",
    "adamw, average of weights, cosine": "--optimizer adamw --ema 0.9 --scheduler cosine_annealing_lr "
    "--scheduler-option T_max=92 --scheduler-interval step --augment",
    "accumulate 3, clipped": "--lr 0.002 --accumulate 3 --clip-grad-norm 1 --option momentum=0.9",
    "plateau": "--scheduler reduce_lr_on_plateau --scheduler-option patience=0 --scheduler-option threshold=0.1",
    "muon and adamw": "--optimizer muon_adamw --option adamw_lr=3e-4",
    "lbfgs": "--optimizer lbfgs --lr 0.1 --option line_search_fn=strong_wolfe --option max_iter=2",
}


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "train", *argv]


def records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, without what a clock says."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def last_state(run: Path) -> tuple[str, list[np.ndarray]]:
    """The name of the last checkpoint, and all that is in it."""
    path = max(path for path in (run / "checkpoints").iterdir() if path.name.isdecimal())
    with ocp.StandardCheckpointer() as checkpointer:
        return path.name, [
            np.asarray(leaf) for leaf in jax.tree.leaves(checkpointer.restore(path.absolute() / "state"))
        ]


def differences(whole: Path, killed: Path) -> list[str]:
    """What of a run that was killed is not as in the whole one."""
    (name, state), (other_name, other) = last_state(whole), last_state(killed)
    same = name == other_name and len(state) == len(other)
    same = same and all(a.tobytes() == b.tobytes() for a, b in zip(state, other, strict=True))
    found = [] if same else ["the state"]
    found += [] if records(whole) == records(killed) else ["metrics.jsonl"]
    return found + ([] if (whole / "steps.csv").read_bytes() == (killed / "steps.csv").read_bytes() else ["steps.csv"])


class Moment(NamedTuple):
    """When a process is killed: so long after its start, or after its first checkpoint."""

    seconds: float
    trains: bool


def killed(flags: list[str], run: Path, moment: Moment | None) -> tuple[bool, str]:
    """Start a run, or go on with it, and kill it. Returns whether it came to its end, and where it goes on from."""
    begun = (run / "config.json").exists()
    argv = ["--resume", str(run), "--quiet"] if begun else [*flags, "--run-dir", str(run)]
    before = newest(run)
    process = subprocess.Popen(command(*argv), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while moment is not None and moment.trains and newest(run) == before and process.poll() is None:
        time.sleep(0.005)
    try:
        _, errors = process.communicate(timeout=None if moment is None else moment.seconds)
        return True, "ended" if process.returncode == 0 else f"failed: {errors[-300:]}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False, newest(run)


def newest(run: Path) -> str:
    """The last checkpoint that is on the disk."""
    return max((path.name for path in run.glob("checkpoints/*") if path.name.isdecimal()), default="start")


def check(name: str, kills: int, folder: Path, draw: random.Random) -> list[str]:
    """Kill so many times, in as many runs as that takes. Returns what went wrong."""
    flags, whole, bad, done, number = f"{COMMON} {RUNS[name]}".split(), folder / "whole", [], 0, 0
    start = time.perf_counter()
    subprocess.run(command(*flags, "--run-dir", str(whole)), check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    while done < kills:
        number += 1
        run, ended, told = folder / str(number), False, []
        while not ended:
            moment = (
                Moment(draw.uniform(0, seconds / 8), True)
                if draw.random() < 0.7
                else Moment(draw.uniform(0, seconds), False)
            )
            ended, what = killed(flags, run, moment if done < kills else None)
            done += not ended
            told.append(what)
        found = [what for what in told if what.startswith("failed")] or differences(whole, run)
        bad += found
        print(f"{name}: killed at {', '.join(told[:-1]) or 'no step'}, then {told[-1]}; ", end="")
        print(f"differs: {', '.join(found)}" if found else "equal in every bit", flush=True)
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    args = parser.parse_args()
    draw, bad = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as folder:
        for at, name in enumerate(args.runs):
            (Path(folder) / str(at)).mkdir()
            kills = args.kills // len(args.runs) + (at < args.kills % len(args.runs))
            bad += check(name, kills, Path(folder) / str(at), draw)
    print(f"{args.kills} kills, {len(args.runs)} kinds of run, {len(bad)} differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

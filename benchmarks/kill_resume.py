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
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

COMMON = "--limit 90 --epochs 4 --batch-size 4 --checkpoint-every 5 --quiet"
RUNS = {
    "sgd with momentum": "--option momentum=0.9",
    "adamw, average of weights, cosine": "--optimizer adamw --ema 0.9 --scheduler cosine_annealing_lr "
    "--scheduler-option T_max=92 --scheduler-interval step --augment",
    "accumulate 3, clipped": "--accumulate 3 --clip-grad-norm 1 --option momentum=0.9",
    "plateau": "--scheduler reduce_lr_on_plateau --scheduler-option patience=0 --scheduler-option threshold=0.1",
    "muon and adamw": "--optimizer muon_adamw --option adamw_lr=3e-4",
    "lbfgs": "--optimizer lbfgs --option line_search_fn=strong_wolfe --option max_iter=2",
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
        return path.name, [np.asarray(leaf) for leaf in jax.tree.leaves(checkpointer.restore(path.absolute() / "state"))]


def differences(whole: Path, killed: Path) -> list[str]:
    """What of a run that was killed is not as in the whole one."""
    (name, state), (other_name, other) = last_state(whole), last_state(killed)
    same = name == other_name and len(state) == len(other)
    same = same and all(a.tobytes() == b.tobytes() for a, b in zip(state, other, strict=True))
    found = [] if same else ["the state"]
    found += [] if records(whole) == records(killed) else ["metrics.jsonl"]
    return found + ([] if (whole / "steps.csv").read_bytes() == (killed / "steps.csv").read_bytes() else ["steps.csv"])


def run_killed(flags: list[str], run: Path, seconds: float, kills: int, draw: random.Random) -> list[str]:
    """Start a run, kill it so many times, and let it come to its end. Returns how each process ended."""
    ends = []
    for _ in range(kills):
        begun = (run / "config.json").exists()
        argv = ["--resume", str(run), "--quiet"] if begun else [*flags, "--run-dir", str(run)]
        process = subprocess.Popen(command(*argv), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, errors = process.communicate(timeout=draw.uniform(0.1, seconds))
            ends.append("ended" if process.returncode == 0 else f"failed: {errors.decode()[-300:]}")
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            at = max((path.name for path in run.glob("checkpoints/*") if path.name.isdecimal()), default="start")
            ends.append(f"killed, goes on from {at}")
    begun = (run / "config.json").exists()
    argv = ["--resume", str(run)] if begun else [*flags, "--run-dir", str(run)]
    done = subprocess.run(command(*argv), capture_output=True, text=True)
    return ends if done.returncode == 0 else [*ends, f"failed: {done.stderr[-300:]}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    args = parser.parse_args()
    draw, failures, count = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for at, name in enumerate(args.runs):
            flags = f"{COMMON} {RUNS[name]}".split()
            whole, killed = Path(folder) / f"{at}-whole", Path(folder) / f"{at}-killed"
            start = time.perf_counter()
            subprocess.run(command(*flags, "--run-dir", str(whole)), check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            kills = args.kills // len(args.runs) + (at < args.kills % len(args.runs))
            ends = run_killed(flags, killed, seconds, kills, draw)
            bad = [*differences(whole, killed), *(end for end in ends if end.startswith("failed"))]
            count += sum(end.startswith("killed") for end in ends)
            failures += bool(bad)
            print(f"{name}: {', '.join(ends)}; {'differs: ' + ', '.join(bad) if bad else 'equal in every bit'}", flush=True)
    print(f"{count} kills, {len(args.runs)} runs, {failures} not equal")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

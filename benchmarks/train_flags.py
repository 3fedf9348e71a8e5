"""Command lines drawn over all flags of `python -m train`: `python -m benchmarks.train_flags`.

Each has to train its two steps, stop with a loss that is not finite, or end in one line and status 2 before any work:
never in a traceback.
"""

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from train.__main__ import main as train
from train.training import OPTIMIZERS, SCHEDULERS

NUMBERS = (
    "0",
    "1",
    "2",
    "-1",
    "0.5",
    "1e-3",
    "1e30",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "99999999999999999999",
    "x",
    "",
    "None",
)
VALUES = (
    *NUMBERS,
    "True",
    "False",
    "(0.9,0.999)",
    "[0.9,0.99]",
    "0.9",
    "1,2",
    "strong_wolfe",
    "foo",
    "{}",
    "()",
    "'a'",
    "1j",
)
PATHS = ("/dev/null", "/proc/self/comm", "nowhere/x", ".", "/", "new", "ü/é", "~/x", "", "file")
KEYS = (
    "momentum",
    "betas",
    "eps",
    "weight_decay",
    "nesterov",
    "history_size",
    "line_search_fn",
    "max_iter",
    "foo",
    "lr",
    "",
)
SCHEDULER_KEYS = (
    "T_max",
    "step_size",
    "gamma",
    "milestones",
    "total_steps",
    "max_lr",
    "base_lr",
    "T_0",
    "patience",
    "mode",
    "x",
)

PROGRESS = ("decoding", "preparing", "downloading", "Dl ")  # of the data; "Dl" is TFDS's


def value(draw: random.Random, flag: str) -> list[str]:
    """Something to write after a flag, fitting it or not."""
    if flag in ("augment", "quiet", "shard-params", "shard-optimizer", "tensorboard"):
        return []
    if flag == "option":
        return [f"{draw.choice(KEYS)}={draw.choice(VALUES)}"]
    if flag == "scheduler-option":
        return [f"{draw.choice(SCHEDULER_KEYS)}={draw.choice(VALUES)}"]
    if flag in ("data-dir", "archive", "resume", "resume-torch", "export-torch", "run-dir"):
        return [draw.choice(PATHS)]
    words = {
        "optimizer": [*OPTIMIZERS, "sdg"],
        "scheduler": [*SCHEDULERS, "None", "foo"],
        "scheduler-interval": ["step", "epoch", "day"],
        "init": ["torch", "jax", "numpy"],
        "precision": ["float32", "bf16", "float16", ""],
        "coordinator": ["here", "host:0", ":1234", "host:1234", ""],  # none with which it starts to wait for others
        "split": ["train", "test", "validation", ""],
        "dataset": ["digits", "mnist", "../x", ""],
    }
    return [draw.choice(words.get(flag, NUMBERS))]


FLAGS = (
    *(
        "dataset",
        "data-dir",
        "archive",
        "split",
        "limit",
        "batch-size",
        "epochs",
        "augment",
        "tensorboard",
        "optimizer",
        "lr",
        "option",
    ),
    *("scheduler", "scheduler-option", "scheduler-interval", "clip-grad-norm", "accumulate", "ema", "init", "seed"),
    *("precision", "shard-params", "shard-optimizer", "coordinator", "num-processes", "process-id"),
    *("resume", "checkpoint-every", "checkpoint-minutes", "resume-torch", "start-epoch", "export-torch", "run-dir"),
)
# Those of the issue, and the kinds beside them.
KNOWN = (
    "--optimizer lbfgs --option line_search_fn=foo",
    "--optimizer lbfgs --accumulate 2",
    "--scheduler cosine_annealing_lr --scheduler-option T_max=0",
    "--batch-size 99999999999999999999",
    "--optimizer lbfgs --option history_size=99999999999",
    "--optimizer adam --option betas=0.9",
    "--optimizer adam --option betas=[0.9,0.99]",
    "--export-torch /dev/null",
    "--export-torch /proc/self/comm",
    "--recipe cifar10",
    "--bach-size 2",
    "cifar10 --optimizer adam --dataset digits",
)


def drawn(draw: random.Random) -> list[str]:
    """A command line of one to four flags."""
    line = []
    for flag in draw.sample(FLAGS, draw.randint(1, 4)):
        line += [f"--{flag}", *value(draw, flag)]
    if "--scheduler-option" in line and "--scheduler" not in line:
        line += ["--scheduler", draw.choice(list(SCHEDULERS))]
    return line


def tried(line: Sequence[str]) -> str:
    """What became of a command line."""
    errors = io.StringIO()
    argv = [*line, "--steps", "2", "--quiet"]
    if "--limit" not in line:
        argv += ["--limit", "8"]
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = train(argv)
    except SystemExit as error:  # tyro's
        status = error.code
        return f"status {status}" if status in (0, 2) else f"BAD: status {status}"
    except BaseException:
        return f"TRACEBACK: {traceback.format_exc()}"
    if status == 2 and (errors.getvalue().count("\n") != 1 or not errors.getvalue().startswith("error: ")):
        lines = [text for text in errors.getvalue().splitlines() if text.strip() and not text.startswith(PROGRESS)]
        if len(lines) != 1:
            return f"BAD: {errors.getvalue()}"
    return f"status {status}" + (f": {errors.getvalue().strip().splitlines()[-1]}" if status else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, bad, statuses = random.Random(args.seed), 0, {}
    lines = [line.split() for line in KNOWN][: args.lines]
    lines += [drawn(draw) for _ in range(args.lines - len(lines))]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        os.environ["HOME"] = folder
        for number, line in enumerate(lines):
            place = Path(folder) / str(number)
            place.mkdir()
            (place / "file").write_text("x")
            os.chdir(place)
            came = tried(line)
            bad += came.startswith(("TRACEBACK", "BAD"))
            statuses[came.split(":")[0]] = statuses.get(came.split(":")[0], 0) + 1
            print(f"{' '.join(line)}: {came}", flush=True)
        os.chdir("/")
    print(f"{len(lines)} command lines, {bad} with a traceback or more than a line: {statuses}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""The same run in PyTorch and here: `python -m train.compare --help`."""

import argparse
import dataclasses
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from train.command_line import parse
from train.config import Config, flag
from train.errors import UsageError

BOUND = 4.0
REPORT = Path("report.html")


def arguments(argv: Sequence[str]) -> tuple[Config, float, Path]:
    """The run, the bound and where the report goes."""
    parser = argparse.ArgumentParser(
        prog="python -m train.compare",
        usage="%(prog)s [--bound TIMES] [--report PATH] [the flags of python -m train]",
        description="Record a training in PyTorch, from the seed alone (--init torch), and follow it here; say where "
        "the two part and why, and write a page about it. The exit status is 1 where they part.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--bound",
        type=float,
        default=BOUND,
        metavar="TIMES",
        help="off is what is further from PyTorch's than rounding makes it so many times over (default: %(default)g)",
    )
    parser.add_argument("--report", type=Path, default=REPORT, help="the page (default: %(default)s)")
    own, rest = parser.parse_known_args(argv)
    config = dataclasses.replace(parse(rest), init="torch")
    if not own.bound >= 0:
        raise UsageError(f"--bound {own.bound}: must be at least 0")
    if own.report.is_dir() or not own.report.absolute().parent.is_dir():
        raise UsageError(f"--report {own.report}: is a directory, or in one that does not exist")
    if not os.access(own.report if own.report.exists() else own.report.absolute().parent, os.W_OK):
        raise UsageError(f"--report {own.report}: cannot be written; give another")
    for name, remedy in (
        ("augment", "torch would crop and flip otherwise; leave it out"),
        ("resume", "both runs start from the seed; leave it out"),
        ("run_dir", "no run folder is written; say where the page goes with --report PATH"),
        ("resume_torch", "both runs start from the seed; leave it out"),
        ("export_torch", "no checkpoint is written; leave it out"),
        ("shard_params", "both runs are on one device; leave it out"),
        ("shard_optimizer", "both runs are on one device; leave it out"),
        ("coordinator", "both runs are of one process; leave it out"),
    ):
        if getattr(config, name) not in (None, False):
            raise UsageError(f"{flag(name, getattr(config, name))}: {remedy}")
    if config.precision != "float32":
        raise UsageError(f"--precision {config.precision}: torch's run is of float32; leave it out")
    if config.optimizer in ("nonlinear_cg", "muon_adamw"):
        raise UsageError(f"--optimizer {config.optimizer}: torch has none to compare with; take another")
    if importlib.util.find_spec("torch") is None:
        raise UsageError("PyTorch is not installed, and is what to compare with: pip install torch")
    return config, own.bound, own.report


def main() -> int:
    try:
        config, bound, report = arguments(sys.argv[1:])
        from train.compare.comparison import compare  # imports JAX, which --help does not need
        from train.training import SOME_LENGTH, make_training, with_length

        return compare(config, make_training(with_length(config, SOME_LENGTH)), bound, report)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

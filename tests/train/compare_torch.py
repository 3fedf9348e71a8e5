r"""The same run here and in PyTorch: same weights, same order, both running losses.

    python -m tests.train.compare_torch --epochs 3
    python -m tests.train.compare_torch --dataset cifar10 --data-dir DIR --limit 2000 --epochs 3
    python -m tests.train.compare_torch --recipe cifar10 --data-dir DIR --limit 6400 --epochs 3
    python -m tests.train.compare_torch --batch-size 8 --epochs 3 --lr 0.05 --clip-grad-norm 1 --accumulate 2 \
        --scheduler cosine_annealing_lr --scheduler-option T_max=69 --scheduler-interval step

It takes the flags of `python -m train`. The yardstick is torch's distance from itself with one thread and with two.
With a batch of one these have the same bits; then it is torch's distance from itself on a CPU with fewer vector
instructions, which is torch as well: its convolutions (oneDNN) with SSE 4.1, and its own kernels without AVX.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from train import data
from train.config import parse
from train.loop import fit
from train.start import initial_params
from train.training import make_training

TORCH = {"OMP_NUM_THREADS": "1"}
OTHER_TORCHES = {
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "oneDNN SSE4.1": TORCH | {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "ATen no AVX": TORCH | {"ATEN_CPU_CAPABILITY": "default"},
}


def our_losses(argv: Sequence[str]) -> list[float]:
    """The running loss of each epoch."""
    config = parse(argv)
    examples = data.load(config.dataset, config.split, config.data_dir).first(config.limit)
    params = initial_params(config)
    return [epoch.running_loss for epoch in fit(config, make_training(config), params, examples)]


def torch_losses(argv: Sequence[str], environment: dict[str, str]) -> list[float]:
    """torch's, in a process of its own: it reads these variables when it is imported."""
    command = [sys.executable, "-m", "tests.train.torch_side", *argv]
    return json.loads(subprocess.run(command, env=os.environ | environment, capture_output=True, check=True).stdout)


def main() -> None:
    argv = sys.argv[1:]
    ours, torch = our_losses(argv), torch_losses(argv, TORCH)
    others = {name: torch_losses(argv, environment) for name, environment in OTHER_TORCHES.items()}
    names = ["epoch", "ours", "torch", "ours - torch", *(f"torch {name} - torch" for name in others), "ratio"]
    print("", *names, "", sep=" | ")
    print("|---" * len(names) + "|")
    for epoch, (mine, its) in enumerate(zip(ours, torch, strict=True)):
        threads, *instructions = (abs(losses[epoch] - its) for losses in others.values())
        floor = threads or max(instructions)
        apart = abs(mine - its)
        distances = [f"{distance:.2e}" for distance in (apart, threads, *instructions)]
        ratio = f"{apart / floor:.2f}" if floor else "no floor"
        print("", epoch + 1, f"{mine:.6f}", f"{its:.6f}", *distances, ratio, "", sep=" | ", flush=True)


if __name__ == "__main__":
    main()

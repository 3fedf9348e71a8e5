"""The accuracy of the cifar10 recipe, ours and torch's: `python -m benchmarks.recipe_accuracy --data-dir DIR`.

Both start from the weights of `torch.manual_seed(seed)` and take the same batches; torch's side is a plain loop with
torch.optim. Their epochs are taken in turns, so that both have the same machine.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from train import data
from train.checks import total_steps
from train.compare.torch_run import Run
from train.config import Config
from train.data import Data
from train.epoch import Epoch
from train.loop import Moment, fit
from train.recipes import cifar10
from train.start import start
from train.training import make_training, with_length

Pair = tuple[Epoch, Epoch]  # ours, torch's


def ours(config: Config, examples: Data) -> Iterator[Epoch]:
    training = make_training(config)
    moment = Moment(start(config, training, examples.classes))
    return (moment.ended for moment in fit(config, training, moment, examples) if moment.ended is not None)


def torchs(config: Config, examples: Data) -> Iterator[Epoch]:
    run = Run(config, examples.train, examples.test)
    for number, batches in run.epochs():
        for batch in batches:
            run.step(batch)
        yield run.end_epoch(number)


def accuracy(epoch: Epoch) -> float:
    assert epoch.test is not None
    return epoch.test[1]


def in_turns(config: Config, examples: Data) -> Iterator[Pair]:
    """The epochs of both, each printed."""
    for pair in zip(ours(config, examples), torchs(config, examples), strict=True):
        shown = (f"{accuracy(side):>8.2%} {side.loss:>8.4f} {side.seconds:>7.0f}" for side in pair)
        print(f"{config.seed:>4} {pair[0].number:>5} {' '.join(shown)}", flush=True)
        yield pair


def summary(last: Sequence[Pair]) -> Iterator[str]:
    """Of the last epoch of each seed, the mean and the standard deviation over the seeds."""
    for name, side in (("ours", 0), ("torch", 1)):
        values = [accuracy(pair[side]) for pair in last]
        spread = f" +- {statistics.stdev(values):.2%}" if len(values) > 1 else ""
        each = ", ".join(f"{value:.2%}" for value in values)
        yield f"{name}: test accuracy {statistics.mean(values):.2%}{spread} ({each})"
    apart = [accuracy(one) - accuracy(other) for one, other in last]
    yield f"ours - torch: {statistics.mean(apart):+.2%} ({', '.join(f'{value:+.2%}' for value in apart)})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="the TFDS directory; as for python -m train")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, help="train on the first so many examples")
    args = parser.parse_args()
    config = replace(
        cifar10(), init="torch", dataset=args.dataset, data_dir=args.data_dir, epochs=args.epochs, limit=args.limit
    )
    examples = data.read(config)
    config = with_length(config, total_steps(config, len(examples.train.labels)))
    print("; ".join(config.described), f"{len(examples.train.labels):,} pictures, {args.epochs} epochs", sep="; ")
    titles = (f"{side:>8} {'loss':>8} {'seconds':>7}" for side in ("ours", "torch"))
    print(f"{'seed':>4} {'epoch':>5} {' '.join(titles)}")
    begun, last = time.perf_counter(), []
    for seed in range(args.seeds):
        *_, pair = in_turns(replace(config, seed=seed), examples)
        last.append(pair)
        spent = time.perf_counter() - begun
        print(f"{spent / 60:.1f} minutes, {spent / (seed + 1) * (args.seeds - seed - 1) / 60:.1f} to go", flush=True)
    print(*summary(last), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One comparison, from its configuration to its page."""

from pathlib import Path

from train import data
from train.compare import report, verdict
from train.compare.blame import blame
from train.compare.lockstep import Lockstep, TorchError, alone
from train.config import Config
from train.errors import UsageError
from train.run import check
from train.training import Training


def compare(config: Config, training: Training, bound: float, path: Path) -> int:
    """Run both, print their epochs and where they part, and write the page. `training` is what we do.

    Returns the exit status: 1 where our loss did not stay finite.
    """
    examples = data.load(config.dataset, config.split, config.data_dir).first(config.limit)
    test = data.load(config.dataset, "test", config.data_dir) if config.evaluates else None
    check(config, training, len(examples.labels))
    lockstep, pairs = Lockstep(config, training, bound), []
    try:
        speeds = [
            (ours.images_per_second, torch.images_per_second)
            for ours, torch in zip(*alone(config, training, examples, test), strict=True)
        ]
        print(verdict.header(), flush=True)
        for pair, speed in zip(lockstep.epochs(examples, test), speeds, strict=False):
            pairs.append(pair)
            print(verdict.line(pair, speed), flush=True)
        found = blame(lockstep, examples)
    except TorchError as error:
        raise UsageError(f"--optimizer {config.optimizer}: {error}") from error
    for sentence in verdict.sentences(lockstep, found):
        print(sentence)
    path.write_text(report.page(lockstep, pairs, speeds, found))
    print(f"the report is {path}")
    return 0 if lockstep.stopped is None else 1

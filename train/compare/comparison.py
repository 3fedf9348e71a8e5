"""One comparison, from its configuration to its page."""

from pathlib import Path

from train import data
from train.checks import check_run, check_training, total_steps
from train.compare import report, verdict
from train.compare.blame import blame
from train.compare.lockstep import CLASSES, Lockstep, TorchError, alone
from train.config import Config
from train.errors import UsageError
from train.loop import Moment
from train.start import start
from train.training import Training, lengthened


def compare(config: Config, training: Training, bound: float, path: Path) -> int:
    """Run both, print their epochs and where they part, and write the page. `training` is what we do.

    Returns the exit status: 1 where our loss did not stay finite.
    """
    check_training(config, training)
    read = data.read(config)
    if read.classes != CLASSES:
        raise UsageError(f"--dataset {config.dataset}: has {read.classes} classes, and only {CLASSES} are compared")
    config, training = lengthened(config, training, total_steps(config, len(read.train.labels)))
    check_run(config, training, len(read.train.labels), Moment(start(config, training, CLASSES)))
    lockstep, pairs = Lockstep(config, training, bound), []
    try:
        speeds = [
            (ours.images_per_second, torch.images_per_second)
            for ours, torch in zip(*alone(config, training, read), strict=True)
        ]
        print(verdict.header(), flush=True)
        for pair, speed in zip(lockstep.epochs(read), speeds, strict=False):
            pairs.append(pair)
            print(verdict.line(pair, speed), flush=True)
        found = blame(lockstep, read.train)
    except TorchError as error:
        raise UsageError(f"--optimizer {config.optimizer}: {error}") from error
    for sentence in verdict.sentences(lockstep, found):
        print(sentence)
    path.write_text(report.page(lockstep, pairs, speeds, found))
    print(f"the report is {path}")
    return 0 if lockstep.stopped is None else 1

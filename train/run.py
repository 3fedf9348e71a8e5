"""One run, from its configuration to its folder."""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from rich.console import Console

from train import checks, data, following, output, processes, run_folder
from train.checkpoint import Checkpoints, is_due
from train.config import Config
from train.data import Data
from train.devices import devices_of
from train.epoch import Epoch
from train.errors import UsageError, one_line
from train.loop import Moment, fit, is_over, orders, under_way
from train.progress import Bar, header, line
from train.recipes import RECIPES
from train.run_folder import RunFolder
from train.start import start
from train.stopping import Stopping
from train.torch_checkpoint import TorchExport, load
from train.training import SOME_LENGTH, Training, lengthened, make_training, with_length

if TYPE_CHECKING:
    from train.tensorboard import TensorBoard

# Exit statuses, beside 2 for arguments that cannot be used, 4 where another process of the run is lost
# (train.processes), and 128 + its number for a signal: 130, 143.
DONE, NOT_FINITE, NOT_ALL_WRITTEN = 0, 1, 3


def run(config: Config, stopping: Stopping) -> int:
    """Train, record and draw.

    Args:
      config: the run.
      stopping: what signals ask for.

    Returns:
      The exit status: 0; 1 where the loss did not stay finite; 3 where something of the records, the checkpoints, the
      picture or --export-torch could not be written; 130 and 143 where SIGINT or SIGTERM stopped it.
    """
    processes.begin(config)
    status = _run(config, stopping)
    following.end()
    return status


def _run(config: Config, stopping: Stopping) -> int:
    training = make_training(with_length(config, SOME_LENGTH))._replace(devices=devices_of(config))
    checks.check_devices(config, training)
    checks.check_training(config, training)
    examples = data.read(config)
    following.check_same(config, examples.digest)
    config, training = lengthened(config, training, checks.total_steps(config, len(examples.train.labels)))
    export = TorchExport(config, training, examples.classes)
    writes = jax.process_index() == 0
    if training.devices is not None and writes:
        print(training.devices.described)
    for said in checks.without_effect(config, training, len(examples.train.labels)) if writes else ():
        output.complain(said)
    if config.resume is None:
        moment = _first(config, training, examples)
        checks.check_run(config, training, len(examples.train.labels), moment)
        stopping.in_order()
        if not writes:
            return following.follow(config, training, examples, stopping, moment)
        with run_folder.create(config, examples.digest) as folder, Checkpoints(config, folder) as checkpoints:
            return _train(config, training, examples, export, stopping, folder, checkpoints, moment, [])
    stopping.in_order()
    if not writes:
        step = following.from_first(following.NONE)
        if step == following.NONE:
            moment = _first(config, training, examples)
        else:
            like = jax.eval_shape(lambda: start(config, training, examples.classes))
            moment = _placed(training, following.at_checkpoint(config.resume, step, like))
        return following.follow(config, training, examples, stopping, moment)
    with run_folder.reopen(config.resume) as folder, Checkpoints(config, folder) as checkpoints:
        moment, epochs = _go_on(config, training, examples, folder, checkpoints)
        return _train(config, training, examples, export, stopping, folder, checkpoints, moment, epochs)


def _first(config: Config, training: Training, examples: Data) -> Moment:
    """Where a run starts."""
    if config.resume_torch is not None:
        return _placed(training, load(config, training, len(examples.train.labels), examples.classes))
    return _placed(training, Moment(start(config, training, examples.classes)))


def _placed(training: Training, moment: Moment) -> Moment:
    """With its state on all devices."""
    return moment if training.devices is None else replace(moment, state=training.devices.place(moment.state))


def _go_on(
    config: Config, training: Training, examples: Data, folder: RunFolder, checkpoints: Checkpoints
) -> tuple[Moment, list[Epoch]]:
    """Where a run goes on, and the epochs that it has had."""
    path, was, now = folder.path, folder.settings.needs, run_folder.needs(examples.digest)
    if was["data"] != now["data"]:
        raise UsageError(f"--resume {path}: the run began with other pictures than {config.dataset} has now")
    for difference in run_folder.differences(was, now):
        output.complain(f"--resume {path}: {difference}; its last bits may be others from here on")
    found = checkpoints.restore(jax.eval_shape(lambda: start(config, training, examples.classes)))
    if found is not None:
        moment, marks = found
        following.from_first(moment.step)
        print(f"goes on after step {moment.step:,}" + (", which was the last" if is_over(config, moment) else ""))
        return _placed(training, moment), folder.rewind(marks)
    if checkpoints.damaged:
        raise UsageError(f"--resume {path}: no checkpoint is whole; start another run")
    following.from_first(following.NONE)
    print("it has no checkpoint yet, and starts from the beginning")
    return _first(config, training, examples), folder.rewind(dict.fromkeys(run_folder.FILES, (0, "")))


def _train(
    config: Config,
    training: Training,
    examples: Data,
    export: TorchExport,
    stopping: Stopping,
    folder: RunFolder,
    checkpoints: Checkpoints,
    moment: Moment,
    epochs: list[Epoch],
) -> int:
    """From a moment to the end of the run, or to where it is stopped."""
    console = Console(highlight=False, soft_wrap=True)
    width = console.width if console.is_terminal else None
    console.print(header(config, width))
    for epoch in epochs:
        console.print(line(epoch, width))
    in_epoch = len(examples.train.labels)
    bar = Bar(console, config, in_epoch, checks.total_steps(config, in_epoch), moment)
    board = _board(config, folder, epochs, moment)
    agree, exported = following.Agreement(training.devices), True
    with bar:
        for moment in fit(config, training, moment, examples):  # noqa: B020
            bar.look(moment)
            epoch = moment.ended
            if epoch is not None:
                epochs.append(epoch)
                folder.add(epoch)
                console.print(line(epoch, width))
                if epoch.finite:
                    exported = _export(export, moment)
            if board is not None:
                board.look(moment)
            wishes = agree(stopping, checkpoints.overdue())
            if (epoch is None or epoch.finite) and (wishes.stop or wishes.save or is_due(config, moment)):
                checkpoints.save(moment)
            if wishes.stop:
                break
    if moment.ended is None:
        moment.steps.read()
        last = under_way(config, moment, examples, orders(config, moment, examples)[0])
        if last is not None:
            epochs.append(last)
        if last is not None and board is not None:
            board.add(last)
    newest = checkpoints.newest  # when it is written
    drawn = _draw(config, epochs, folder.path)
    status = _say_how_it_ended(config, training, epochs, stopping, folder, newest)
    console.print(f"the run is in {folder.path}{os.sep}")
    written = drawn and exported and folder.whole and not checkpoints.failed and (board is None or not board.failed)
    return status or (DONE if written else NOT_ALL_WRITTEN)


def _board(config: Config, folder: RunFolder, epochs: list[Epoch], moment: Moment) -> "TensorBoard | None":
    """Where `--tensorboard` asks for it."""
    if not config.tensorboard:
        return None
    from train.tensorboard import TensorBoard  # imports what need not be installed

    return TensorBoard(folder.path, config.batch_size, epochs, moment)


def _export(export: TorchExport, moment: Moment) -> bool:
    """Whether `--export-torch` was written."""
    try:
        export.save(moment)
    except OSError as error:
        output.complain(f"--export-torch {export.config.export_torch}: {error}; tried again after the next epoch")
        return False
    return True


def _draw(config: Config, epochs: list[Epoch], folder: Path) -> bool:
    """Whether the picture was drawn."""
    if not epochs:
        return True
    try:
        from train import plot  # imports matplotlib, which takes a second

        plot.save([plot.Run(folder.name, config, epochs)], folder / "loss.png")
    except Exception as error:  # whatever matplotlib, its fonts or the disk have
        output.complain(f"{folder / 'loss.png'}: not drawn ({one_line(error)})")
        return False
    return True


def _say_how_it_ended(
    config: Config,
    training: Training,
    epochs: list[Epoch],
    stopping: Stopping,
    folder: RunFolder,
    newest: Path | None,
) -> int:
    """Returns the exit status, as far as the training goes."""
    if epochs and not epochs[-1].finite:
        print(diverged(config, training, epochs[-1], newest), file=sys.stderr)
        return NOT_FINITE
    if stopping.asked:
        step = epochs[-1].step if epochs else 0
        print(
            f"stopped by {stopping.asked.name} after step {step:,}; to go on: "
            f"python -m train --resume {shlex.quote(str(folder.path))}",
            file=sys.stderr,
        )
    return stopping.status


def diverged(config: Config, training: Training, epoch: Epoch, newest: Path | None) -> str:
    """Where the loss stopped being finite, how the parameters were then, and what to do."""
    where = f"the loss is {epoch.losses[-1]} at step {epoch.step:,}, step {len(epoch.losses):,} of epoch {epoch.number}"
    norms = ", ".join(f"{name} {norm:.3g}" for name, norm in (epoch.norms or {}).items())
    checkpoint = "there is no checkpoint before it" if newest is None else f"the last good checkpoint is {newest}"
    where = f"{where}; the parameters' norms before it: {norms}; {checkpoint}"
    recipe = RECIPES[config.recipe]()
    arithmetic = ("optimizer", "lr", "option", "scheduler", "clip_grad_norm", "accumulate")
    same_arithmetic = all(getattr(config, name) == getattr(recipe, name) for name in arithmetic)
    if config.recipe == "tutorial" and same_arithmetic:
        return (
            f"stopped: {where}. PyTorch's run of this tutorial diverges too, since the network has no activations "
            f"and the learning rate is {config.lr}; a lower --lr, or the cifar10 recipe, stays finite"
        )
    other = "--option line_search_fn=strong_wolfe" if training.closures else "--clip-grad-norm"
    return f"stopped: {where}. A lower --lr, or {other}, may stay finite"

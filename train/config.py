"""What a run is: one frozen dataclass. A recipe is a function that returns one."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from train.errors import UsageError

PROGRAM = "python -m train"


@dataclasses.dataclass(frozen=True)
class Config:
    """Train the network of PyTorch's CIFAR-10 tutorial with torch.optim's optimizers, in JAX."""

    recipe: str = "tutorial"
    """The run that the other flags change: tutorial, cifar10 or lbfgs."""
    dataset: Literal["digits", "cifar10"] = "digits"
    """scikit-learn's bundled digits, or CIFAR-10 from --data-dir."""
    data_dir: Path | None = None
    """The TFDS directory of the dataset. Digits are prepared there, by default in the user's cache directory."""
    split: Literal["train", "test"] = "test"
    """The split to train on."""
    limit: int | None = None
    """Train on the first so many examples of the split."""
    batch_size: int = 1
    """Examples a step; the last step of an epoch takes what is left."""
    epochs: int = 20
    """Passes over the examples."""
    steps: int | None = None
    """Stop after so many steps."""
    optimizer: str = "sgd"
    """A torch.optim optimizer, in lower case. Another than the recipe's starts from torch's default options."""
    lr: float | None = None
    """The learning rate, by default the recipe's, or torch's for the optimizer."""
    option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any other option of the optimizer: --option momentum=0.9 --option betas=0.9,0.99"""
    scheduler: str | None = None
    """A torch.optim.lr_scheduler, in snake case, such as one_cycle_lr; None for none."""
    scheduler_option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Its options: --scheduler-option max_lr=0.1 --scheduler-option total_steps=7200"""
    scheduler_interval: Literal["step", "epoch"] = "epoch"
    """How often it moves: after every step of the optimizer, or after every epoch."""
    clip_grad_norm: float | None = None
    """Scale the gradients of a step down to this norm."""
    accumulate: int = 1
    """Add up the gradients of so many batches for a step of the optimizer, as backward() does."""
    ema: float | None = None
    """Evaluate an exponential moving average of the weights, with this decay, on the test split too."""
    init: Literal["torch", "jax"] = "jax"
    """Draw weights and the order of examples as a torch script with torch.manual_seed(SEED) does, or as JAX does."""
    seed: int = 0
    """Seeds the weights and the order of examples."""
    resume_torch: Path | None = None
    """Start from a PyTorch checkpoint: a file with the state dicts `model` and `optimizer`, and `scheduler` if any."""
    start_epoch: int = 1
    """The first epoch of a resumed run, where the checkpoint has run some: it decides the order of examples."""
    export_torch: Path | None = None
    """Write such a checkpoint after every epoch."""
    run_dir: Path | None = None
    """Where the run is recorded: a new or empty directory, by default runs/TIME-RECIPE."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show no progress bar."""

    # What a recipe decides and no flag changes.
    shuffle: Annotated[bool, tyro.conf.Suppress] = False
    evaluate: Annotated[bool, tyro.conf.Suppress] = False

    @property
    def described(self) -> list[str]:
        """What the run does, in words: its optimizer, its batches, its examples, and what is around the optimizer."""
        options = [*([] if self.lr is None else [f"lr={self.lr:g}"]), *self.option]
        return [
            f"{self.recipe} recipe: {self.optimizer}({', '.join(options)})",
            f"batch size {self.batch_size}",
            f"{self.dataset} {self.split}" + ("" if self.limit is None else f", first {self.limit:,}"),
            *([] if self.scheduler is None else [f"{self.scheduler}({', '.join(self.scheduler_option)})"]),
            *([] if self.clip_grad_norm is None else [f"gradient norm at most {self.clip_grad_norm:g}"]),
            *([] if self.accumulate == 1 else [f"a step every {self.accumulate} batches"]),
            *([] if self.ema is None else [f"weights averaged with decay {self.ema:g}"]),
        ]

    @property
    def evaluates(self) -> bool:
        """Whether the run evaluates on the test split after every epoch."""
        return self.evaluate or self.ema is not None


def tutorial() -> Config:
    """The tutorial: SGD, one example a step, in order, on the test split."""
    return Config(lr=0.01, init="torch")


def cifar10() -> Config:
    """What one would want instead: the train split, shuffled batches, momentum, a schedule, and the test split."""
    return Config(
        recipe="cifar10",
        dataset="cifar10",
        split="train",
        batch_size=64,
        epochs=10,
        lr=0.01,
        option=("momentum=0.9",),
        scheduler="cosine_annealing_lr",
        scheduler_option=("T_max=7820",),  # the steps of ten epochs
        scheduler_interval="step",
        shuffle=True,
        evaluate=True,
    )


def lbfgs() -> Config:
    """L-BFGS with a line search, on the tutorial's digits as one batch: a step an epoch, some 25 evaluations a step."""
    return Config(
        recipe="lbfgs",
        batch_size=360,
        epochs=4,
        optimizer="lbfgs",
        option=("line_search_fn=strong_wolfe",),
    )


RECIPES: dict[str, Callable[[], Config]] = {recipe.__name__: recipe for recipe in (tutorial, cifar10, lbfgs)}


def parse(argv: Sequence[str]) -> Config:
    """The configuration that a command line asks for, checked. `--recipe` picks what the other flags change."""
    first = argparse.ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="tutorial")
    first.add_argument("--optimizer")
    first.add_argument("--scheduler")
    given = first.parse_known_args(argv)[0]
    if given.recipe not in RECIPES:
        raise UsageError(f"--recipe {given.recipe}: unknown; the recipes are {', '.join(RECIPES)}")
    defaults = RECIPES[given.recipe]()
    if given.optimizer not in (None, defaults.optimizer):  # the recipe's lr and options are its own optimizer's
        defaults = dataclasses.replace(defaults, optimizer=given.optimizer, lr=None, option=())
    if given.scheduler not in (None, defaults.scheduler):
        defaults = dataclasses.replace(defaults, scheduler_option=())
    config = tyro.cli(Config, prog=PROGRAM, args=argv, default=defaults)
    check(config)
    return config


def check(config: Config) -> None:
    """Raise a UsageError for what cannot be run, before any work is done."""
    for name in ("limit", "batch_size", "epochs", "steps", "accumulate", "start_epoch"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"--seed {config.seed}: must be at least 0 and below 2**32")
    if config.clip_grad_norm is not None and not config.clip_grad_norm > 0:
        raise UsageError(f"--clip-grad-norm {config.clip_grad_norm}: must be above 0")
    if config.ema is not None and not 0 <= config.ema <= 1:
        raise UsageError(f"--ema {config.ema}: must be in [0, 1]")
    if config.dataset == "cifar10" and config.data_dir is None:
        raise UsageError("--dataset cifar10: say where it is with --data-dir DIR, a directory that TFDS prepared")
    if config.start_epoch > config.epochs:
        raise UsageError(f"--start-epoch {config.start_epoch}: the last epoch, --epochs {config.epochs}, is before it")
    if config.start_epoch > 1 and config.resume_torch is None:
        raise UsageError(f"--start-epoch {config.start_epoch}: needs a --resume-torch CHECKPOINT to start from")
    out = config.export_torch
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UsageError(f"--export-torch {out}: is a directory, or in one that does not exist")
    run_dir = config.run_dir
    if run_dir is not None and run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UsageError(f"--run-dir {run_dir}: exists and is not an empty directory; give another")
    from train.training import make_training  # imports JAX, which --help does not need

    make_training(config)

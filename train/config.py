"""What a run is: one frozen dataclass. A recipe is a function that returns one."""

import argparse
import ast
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from train.errors import UsageError

if TYPE_CHECKING:
    from jaxopt_port import Optimizer


PROGRAM = "python -m train"


@dataclasses.dataclass(frozen=True)
class Config:
    """Train the network of PyTorch's CIFAR-10 tutorial with torch.optim's optimizers, in JAX."""

    recipe: str = "tutorial"
    """The run that the other flags change: tutorial or cifar10."""
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
    seed: int = 0
    """Seeds the weights and the order of examples."""
    run_dir: Path | None = None
    """Where the run is recorded: a new or empty directory, by default runs/TIME-RECIPE."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show no progress bar."""

    # What a recipe decides and no flag changes.
    shuffle: Annotated[bool, tyro.conf.Suppress] = False
    evaluate: Annotated[bool, tyro.conf.Suppress] = False


def tutorial() -> Config:
    """The tutorial: SGD, one example a step, in order, on the test split."""
    return Config(lr=0.01)


def cifar10() -> Config:
    """What one would want instead: the train split, shuffled batches, momentum, and the test split to evaluate on."""
    return Config(
        recipe="cifar10",
        dataset="cifar10",
        split="train",
        batch_size=64,
        epochs=8,
        lr=0.02,
        option=("momentum=0.9",),
        shuffle=True,
        evaluate=True,
    )


RECIPES: dict[str, Callable[[], Config]] = {recipe.__name__: recipe for recipe in (tutorial, cifar10)}


def parse(argv: Sequence[str]) -> Config:
    """The configuration that a command line asks for, checked. `--recipe` picks what the other flags change."""
    first = argparse.ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="tutorial")
    first.add_argument("--optimizer")
    given = first.parse_known_args(argv)[0]
    if given.recipe not in RECIPES:
        raise UsageError(f"--recipe {given.recipe}: unknown; the recipes are {', '.join(RECIPES)}")
    defaults = RECIPES[given.recipe]()
    if given.optimizer not in (None, defaults.optimizer):  # the recipe's lr and options are its own optimizer's
        defaults = dataclasses.replace(defaults, optimizer=given.optimizer, lr=None, option=())
    config = tyro.cli(Config, prog=PROGRAM, args=argv, default=defaults)
    check(config)
    return config


def check(config: Config) -> None:
    """Raise a UsageError for what cannot be run, before any work is done."""
    for name in ("limit", "batch_size", "epochs", "steps"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"--seed {config.seed}: must be at least 0 and below 2**32")
    if config.dataset == "cifar10" and config.data_dir is None:
        raise UsageError("--dataset cifar10: say where it is with --data-dir DIR, a directory that TFDS prepared")
    run_dir = config.run_dir
    if run_dir is not None and run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UsageError(f"--run-dir {run_dir}: exists and is not an empty directory; give another")
    make_optimizer(config)


def make_optimizer(config: Config) -> "Optimizer":
    """The optimizer that `--optimizer`, `--lr` and `--option` name."""
    from jaxopt_port import optimizers  # imports JAX, which --help does not need

    if config.optimizer not in optimizers:
        raise UsageError(f"--optimizer {config.optimizer}: unknown; the optimizers are {', '.join(optimizers)}")
    factory = optimizers[config.optimizer]
    options = optimizer_options(config, factory)
    try:
        return factory(**options)
    except (TypeError, ValueError) as error:
        given = " ".join(f"{key}={value}" for key, value in options.items())
        raise UsageError(f"--optimizer {config.optimizer} with {given}: {error}") from error


def optimizer_options(config: Config, factory: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments that `--lr` and `--option` give the factory."""
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(factory).parameters.items()
        if name not in ("lr", "param_groups")
    }
    options: dict[str, Any] = {} if config.lr is None else {"lr": config.lr}
    for text in config.option:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--option {text}: write KEY=VALUE, such as {next(iter(known))}=VALUE")
        if key == "lr":
            raise UsageError(f"--option {text}: write --lr {value}")
        if key not in known:
            raise UsageError(f"--option {text}: {config.optimizer} has no such option; it has {', '.join(known)}")
        options[key] = _literal(value)
        if not _alike(options[key], known[key]):
            raise UsageError(f"--option {text}: the value must be a Python literal, such as {key}={known[key]}")
    return options


def _literal(text: str) -> Any:
    """The value of a Python literal, and of anything else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _alike(value: Any, default: Any) -> bool:
    """Whether an option with this default could have the value: a number for a number, two for two."""
    if isinstance(default, tuple):
        return (
            isinstance(value, tuple)
            and len(value) == len(default)
            and all(_alike(one, other) for one, other in zip(value, default, strict=True))
        )
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return True

"""The runs that have a name. A recipe is a function that returns a configuration."""

import dataclasses
from collections.abc import Callable

from train.config import Config


def tutorial() -> Config:
    """The tutorial: SGD, one example a step, in order, on the test split."""
    return Config(lr=0.01, init="torch")


def cifar10() -> Config:
    """What one would want instead: the train split, shuffled batches, momentum, a cosine schedule, the test split."""
    return Config(
        recipe="cifar10",
        dataset="cifar10",
        split="train",
        batch_size=64,
        epochs=10,
        lr=0.01,
        option=("momentum=0.9",),
        scheduler="cosine_annealing_lr",
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


def open_for_flags(recipe: Config) -> Config:
    """The recipe without what it says of its own optimizer and scheduler, which flags may change for others."""
    return dataclasses.replace(recipe, lr=None, option=(), scheduler_option=())


def filled_in(config: Config) -> Config:
    """With what the recipe says of its own optimizer and scheduler, where the flags left them.

    A PyTorch checkpoint brings its own learning rate and options.
    """
    recipe = RECIPES[config.recipe]()
    if config.optimizer == recipe.optimizer:
        from_file = config.resume_torch is not None
        lr = recipe.lr if config.lr is None and not from_file else config.lr
        config = dataclasses.replace(config, lr=lr, option=(*recipe.option, *config.option))
    if config.scheduler == recipe.scheduler and config.scheduler is not None:
        options = (*recipe.scheduler_option, *config.scheduler_option)
        config = dataclasses.replace(config, scheduler_option=options)
    return config

"""What the flags make: optimizer with clipping and accumulation around it, scheduler, average of weights."""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxopt_port import Optimizer, clip_grad_norm, every_k, lr_scheduler, optimizers
from jaxopt_port.closure.base import ClosureAlgorithm
from jaxopt_port.lr_scheduler import Scheduler
from jaxopt_port.optimizer import Algorithm
from jaxopt_port.swa_utils import AveragedModel, averaged_model, get_ema_multi_avg_fn
from train.config import Config
from train.errors import UsageError

# The others are made of functions or of schedulers, which a flag cannot give.
SCHEDULERS: Mapping[str, Callable[..., Scheduler]] = {
    name: factory
    for name, factory in lr_scheduler.schedulers.items()
    if not {"lr_lambda", "schedulers"} & set(inspect.signature(factory).parameters)
}
NO_PARAMS: Mapping[str, jax.Array] = {}


class Training(NamedTuple):
    """How a run changes its parameters.

    Args:
      optimizer: steps them.
      scheduler: moves the learning rate, if any.
      every_step: whether the scheduler moves after every step of the optimizer, or after every epoch.
      average: averages the parameters after every step of the optimizer, if any.
      closures: whether the optimizer evaluates the loss several times a step, in a loop.
    """

    optimizer: Optimizer
    scheduler: Scheduler | None = None
    every_step: bool = False
    average: AveragedModel | None = None
    closures: bool = False

    @property
    def needs_metric(self) -> bool:
        return self.scheduler is not None and self.scheduler.name == "ReduceLROnPlateau"


def make_training(config: Config) -> Training:
    """What `--optimizer`, `--scheduler` and the flags around them name."""
    optimizer, scheduler = make_optimizer(config), make_scheduler(config)
    if scheduler is not None:
        try:
            scheduler.init(optimizer.init(NO_PARAMS))
        except (TypeError, ValueError) as error:
            raise UsageError(f"--scheduler {config.scheduler}: {error}") from error
    average = None if config.ema is None else averaged_model(multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    closures = isinstance(getattr(optimizer.update, "__self__", None), ClosureAlgorithm)
    return Training(optimizer, scheduler, config.scheduler_interval == "step", average, closures)


def make_optimizer(config: Config) -> Optimizer:
    """The optimizer that `--optimizer`, `--lr` and `--option` name, with clipping and accumulation around it."""
    factory = _choose("--optimizer", config.optimizer, optimizers)
    options = optimizer_options(config)
    try:
        optimizer = factory(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--optimizer {config.optimizer} with {_written(options)}: {error}") from error
    if config.clip_grad_norm is not None:
        optimizer = _clipped(optimizer, config.clip_grad_norm)
    return optimizer if config.accumulate == 1 else every_k(optimizer, config.accumulate)


def make_scheduler(config: Config) -> Scheduler | None:
    """The scheduler that `--scheduler` and `--scheduler-option` name."""
    if config.scheduler is None:
        if config.scheduler_option:
            raise UsageError(f"--scheduler-option {config.scheduler_option[0]}: needs a --scheduler")
        return None
    factory = _choose("--scheduler", config.scheduler, SCHEDULERS)
    options = scheduler_options(config)
    try:
        return factory(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--scheduler {config.scheduler} with {_written(options)}: {error}") from error


def optimizer_options(config: Config) -> dict[str, Any]:
    """The keyword arguments that `--lr` and `--option` give the optimizer's factory."""
    for text in config.option:
        if text.startswith("lr="):
            raise UsageError(f"--option {text}: write --lr {text[3:]}")
    options = _options("--option", config.optimizer, config.option, optimizers[config.optimizer])
    return options if config.lr is None else {"lr": config.lr, **options}


def scheduler_options(config: Config) -> dict[str, Any]:
    """The keyword arguments that `--scheduler-option` gives the scheduler's factory."""
    assert config.scheduler is not None
    return _options("--scheduler-option", config.scheduler, config.scheduler_option, SCHEDULERS[config.scheduler])


def _choose(flag: str, name: str, factories: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name not in factories:
        raise UsageError(f"{flag} {name}: unknown; the {flag[2:]}s are {', '.join(factories)}")
    return factories[name]


def _options(flag: str, owner: str, texts: Sequence[str], factory: Callable[..., Any]) -> dict[str, Any]:
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(factory).parameters.items()
        if name not in ("lr", "param_groups")
    }
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{flag} {text}: write KEY=VALUE, such as {next(iter(known))}=VALUE")
        if key not in known:
            raise UsageError(f"{flag} {text}: {owner} has no such option; it has {', '.join(known)}")
        options[key] = _literal(value)
        if not _alike(options[key], known[key]):
            example = "0.1 or 10,20" if known[key] is inspect.Parameter.empty else known[key]
            raise UsageError(f"{flag} {text}: the value must be a Python literal, such as {key}={example}")
    return options


def _written(options: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items()) or "no options"


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
    return default is not inspect.Parameter.empty or not isinstance(value, str)


def _clipped(optimizer: Optimizer, max_norm: float) -> Optimizer:
    """`clip_grad_norm_(parameters, max_norm)` before every step."""
    clipping = _Clipping(optimizer, max_norm)
    return Optimizer(clipping.init, clipping.update)


class _Clipping(Algorithm):
    def __init__(self, optimizer: Optimizer, max_norm: float):
        self.optimizer, self.max_norm = optimizer, max_norm

    def init(self, params: Any) -> Any:
        return self.optimizer.init(params)

    def step(self, grads: Any, state: Any, params: Any) -> Any:
        return self.optimizer.step(clip_grad_norm(grads, self.max_norm)[0], state, params)

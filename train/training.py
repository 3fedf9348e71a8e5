"""What the flags make: optimizer with clipping and accumulation around it, scheduler, average of weights."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port import Optimizer, OptState, clip_grad_norm, every_k, lr_scheduler, optimizers
from jaxopt_port.closure.base import ClosureAlgorithm
from jaxopt_port.lr_scheduler import Scheduler
from jaxopt_port.number import to_float64
from jaxopt_port.optimizer import Algorithm
from jaxopt_port.scalars import float64
from jaxopt_port.swa_utils import AveragedModel, averaged_model, get_ema_multi_avg_fn
from train.config import Config, flag
from train.devices import Devices
from train.errors import UsageError, one_line
from train.muon_adamw import muon_adamw
from train.options import keywords, written

# A kernel's axes that are the last two of torch's: the window of a convolution, in and out of a dense layer.
FACTORED_AXES = (0, 1)

OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    **optimizers,
    "adafactor": partial(optimizers["adafactor"], factored_axes=FACTORED_AXES),
    "muon_adamw": muon_adamw,
}

# The others are made of functions or of schedulers, which a flag cannot give.
SCHEDULERS: Mapping[str, Callable[..., Scheduler]] = {
    name: factory
    for name, factory in lr_scheduler.schedulers.items()
    if not {"lr_lambda", "schedulers"} & set(inspect.signature(factory).parameters)
}

LENGTHS = ("T_max", "total_steps")  # options that say how long a schedule is
SOME_LENGTH = 100  # for what is made before the length of the run is known


class Training(NamedTuple):
    """How a run changes its parameters.

    Args:
      optimizer: steps them.
      scheduler: moves the learning rate, if any.
      every_step: whether the scheduler moves after every step of the optimizer, or after every epoch.
      average: averages the parameters after every step of the optimizer, if any.
      closures: whether the optimizer evaluates the loss several times a step, in a loop.
      augment: seeds random crops and flips of the pictures, if any.
      dtype: what the network computes in, where it is not that of the parameters.
      devices: where, if there are several.
    """

    optimizer: Optimizer
    scheduler: Scheduler | None = None
    every_step: bool = False
    average: AveragedModel | None = None
    closures: bool = False
    augment: int | None = None
    dtype: Any = None
    devices: Devices | None = None

    @property
    def needs_metric(self) -> bool:
        return self.scheduler is not None and self.scheduler.name == "ReduceLROnPlateau"

    def start_schedule(self, opt_state: Any) -> tuple[tuple[Any, ...], Any]:
        """The scheduler's first states, one for each OptState, and the optimizer's with the rates of epoch 0."""
        if self.scheduler is None:
            return (), opt_state
        scheds, states = zip(*map(self.scheduler.init, states_of(opt_state)), strict=True)
        return scheds, with_states(opt_state, states)

    def schedule(self, sched: tuple[Any, ...], opt_state: Any, metric: Any) -> tuple[tuple[Any, ...], Any]:
        """The scheduler's step. `metric` is what a plateau is one of."""
        if self.scheduler is None:
            return sched, opt_state
        metric = metric if self.needs_metric else None
        pairs = [
            self.scheduler.step(one, state, metric) for one, state in zip(sched, states_of(opt_state), strict=True)
        ]
        scheds, states = zip(*pairs, strict=True)
        return scheds, with_states(opt_state, states)

    def learning_rates(self, opt_state: Any) -> jax.Array:
        """The learning rate of each parameter group, or where there are two optimizers, of each of them."""
        states = states_of(opt_state)
        groups = states[0].param_groups if len(states) == 1 else [state.param_groups[0] for state in states]
        with float64():
            return jnp.stack([to_float64(group["lr"]) for group in groups])


def _is_state(x: Any) -> bool:
    return isinstance(x, OptState)


def states_of(opt_state: Any) -> list[OptState]:
    """The OptStates inside, one an optimizer."""
    return [x for x in jax.tree.leaves(opt_state, is_leaf=_is_state) if _is_state(x)]


def with_states(opt_state: Any, states: Any) -> Any:
    """The same with other OptStates inside."""
    new = iter(states)
    return jax.tree.map(lambda x: next(new) if _is_state(x) else x, opt_state, is_leaf=_is_state)


def with_length(config: Config, steps: int) -> Config:
    """With a schedule as long as the run, where the flags leave its length open.

    Args:
      config: the run's.
      steps: that it has in all.
    """
    factory = SCHEDULERS.get(config.scheduler or "")
    known = () if factory is None else inspect.signature(factory).parameters
    given = {text.partition("=")[0] for text in config.scheduler_option}
    lengths = [name for name in LENGTHS if name in known]
    if not lengths or given & {*lengths, "epochs", "steps_per_epoch"}:
        return config
    moves = steps // config.accumulate if config.scheduler_interval == "step" else config.epochs
    option = f"{lengths[0]}={max(moves, 1)}"
    return dataclasses.replace(config, scheduler_option=(*config.scheduler_option, option))


def lengthened(config: Config, training: Training, steps: int) -> tuple[Config, Training]:
    """`with_length`, for what was made before the length was known."""
    whole = with_length(config, steps)
    return (config, training) if whole is config else (whole, training._replace(scheduler=make_scheduler(whole)))


def make_training(config: Config) -> Training:
    """What `--optimizer`, `--scheduler` and the flags around them name.

    Raises:
      UsageError: there is no such thing, or it does not take what it is given.
    """
    optimizer = make_optimizer(config)
    closures = isinstance(getattr(optimizer.update, "__self__", None), ClosureAlgorithm)
    if config.accumulate > 1 and closures:
        raise UsageError(
            f"--accumulate {config.accumulate}: {config.optimizer} evaluates the loss of a batch several times a step; "
            f"write --batch-size {config.accumulate * config.batch_size}"
        )
    if config.clip_grad_norm is not None and closures:
        raise UsageError(
            f"--clip-grad-norm {config.clip_grad_norm:g}: {config.optimizer} makes its own gradients; leave it out"
        )
    for name in ("shard_params", "shard_optimizer"):
        if closures and getattr(config, name):
            raise UsageError(f"{flag(name)}: {config.optimizer} keeps vectors over all parameters; leave it out")
    if config.clip_grad_norm is not None:
        clipping = _Clipping(optimizer, config.clip_grad_norm)
        optimizer = Optimizer(clipping.init, clipping.update)
    average = None if config.ema is None else averaged_model(multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    return Training(
        optimizer=optimizer if config.accumulate == 1 else every_k(optimizer, config.accumulate),
        scheduler=make_scheduler(config),
        every_step=config.scheduler is not None and config.scheduler_interval == "step",
        average=average,
        closures=closures,
        augment=config.seed if config.augment else None,
        dtype=jnp.bfloat16 if config.precision == "bf16" else None,
    )


def make_optimizer(config: Config) -> Optimizer:
    """The optimizer that `--optimizer`, `--lr` and `--option` name, alone."""
    options = optimizer_options(config)
    try:
        return OPTIMIZERS[config.optimizer](**options)
    except Exception as error:  # whatever a factory does not take
        raise UsageError(f"--optimizer {config.optimizer} with {written(options)}: {one_line(error)}") from error


def make_scheduler(config: Config) -> Scheduler | None:
    """The scheduler that `--scheduler` and `--scheduler-option` name."""
    if config.scheduler is None:
        if config.scheduler_option:
            raise UsageError(f"--scheduler-option {config.scheduler_option[0]}: needs a --scheduler")
        return None
    options = scheduler_options(config)
    parameters = inspect.signature(SCHEDULERS[config.scheduler]).parameters.values()
    missing = [one.name for one in parameters if one.default is one.empty and one.name not in options]
    if missing:
        raise UsageError(
            f"--scheduler {config.scheduler} with {written(options)}: it needs {' and '.join(missing)}; write "
            f"--scheduler-option {missing[0]}=VALUE"
        )
    try:
        return SCHEDULERS[config.scheduler](**options)
    except Exception as error:
        raise UsageError(f"--scheduler {config.scheduler} with {written(options)}: {one_line(error)}") from error


def optimizer_options(config: Config) -> dict[str, Any]:
    """The keyword arguments that `--lr` and `--option` give the optimizer's factory."""
    factory = _choose("--optimizer", config.optimizer, OPTIMIZERS)
    for text in config.option:
        if text.startswith("lr="):
            raise UsageError(f"--option {text}: write --lr {text[3:]}")
    options = keywords("--option", config.optimizer, config.option, factory)
    return options if config.lr is None else {"lr": config.lr, **options}


def scheduler_options(config: Config) -> dict[str, Any]:
    """The keyword arguments that `--scheduler-option` gives the scheduler's factory."""
    assert config.scheduler is not None
    factory = _choose("--scheduler", config.scheduler, SCHEDULERS)
    return keywords("--scheduler-option", config.scheduler, config.scheduler_option, factory)


def _choose(flag: str, name: str, factories: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name not in factories:
        none = ", and None for none" if flag == "--scheduler" else ""
        raise UsageError(f"{flag} {name}: unknown; the {flag[2:]}s are {', '.join(factories)}{none}")
    return factories[name]


class _Clipping(Algorithm):
    """`clip_grad_norm_(parameters, max_norm)` before every step."""

    def __init__(self, optimizer: Optimizer, max_norm: float):
        self.optimizer, self.max_norm = optimizer, max_norm

    def init(self, params: Any) -> Any:
        return self.optimizer.init(params)

    def step(self, grads: Any, state: Any, params: Any) -> Any:
        return self.optimizer.step(clip_grad_norm(grads, self.max_norm)[0], state, params)

"""torch's `scheduler.state_dict()`, both ways."""

import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_port.lr_scheduler.double import python_numbers
from jaxopt_port.lr_scheduler.function import Table
from jaxopt_port.lr_scheduler.scheduler import Sched, Scheduler
from jaxopt_port.number import is_number, to_number
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.torch_interop.files.as_array import as_array
from jaxopt_port.torch_interop.states.state_dict import exported_groups
from jaxopt_port.torch_interop.states.torch_groups import ADDED_BY_SCHEDULERS, default_options

FUNCTIONS = ("lr_lambdas", "_scale_fn_custom")
# What is in our state and not in torch's.
OURS = ("scheduler", "param_groups")
# What torch's schedulers keep that says nothing: the first two between steps, the last until torch 2.6.
FLAGS = ("_is_initial", "_get_lr_called_within_step", "use_beta1", "verbose")
# By which attribute a state dict shows its class, if it has none of those before it.
SHOWS = {
    "_milestones": "SequentialLR",
    "_schedulers": "ChainedScheduler",
    "step_size": "StepLR",
    "milestones": "MultiStepLR",
    "start_factor": "LinearLR",
    "power": "PolynomialLR",
    "T_max": "CosineAnnealingLR",
    "T_0": "CosineAnnealingWarmRestarts",
    "step_ratio": "CyclicLR",
    "total_steps": "OneCycleLR",
    "anneal_epochs": "SWALR",
    "patience": "ReduceLROnPlateau",
    "lr_lambdas": "LambdaLR or MultiplicativeLR",
    "factor": "ConstantLR",
    "gamma": "ExponentialLR",
}


def load_scheduler(
    scheduler: Scheduler, state_dict: Mapping[str, Any], state: Any, optimizer_state_dict: Mapping[str, Any]
) -> Sched:
    """`scheduler.load_state_dict(state_dict)`: a scheduler's state, to go on from where torch's was.

    Args:
      scheduler: made with torch's arguments.
      state_dict: torch's, of a scheduler of the same class. (A LambdaLR's and a MultiplicativeLR's look the same.)
      state: the optimizer's state, from `load_optimizer`, or a pytree with it inside. It is left as it is.
      optimizer_state_dict: torch's of the optimizer: there torch keeps `initial_lr` and what else schedulers add. Its
        rates are the last ones of an old scheduler that kept none.

    Returns:
      The scheduler's state: `sched, state = scheduler.step(sched, state)` goes on.

    Raises:
      ValueError: the state dict is of another class, or of other arguments than `scheduler`'s, or not a scheduler's.

    Example:
      >>> import jaxopt_port as optim
      >>> theirs = {"step_size": 2, "gamma": 0.5, "last_epoch": 1, "_step_count": 2}
      >>> theirs = {**theirs, "base_lrs": [1.0], "_last_lr": [1.0]}
      >>> state = optim.sgd(lr=1.0).init({})
      >>> scheduler = optim.lr_scheduler.step_lr(step_size=2, gamma=0.5)
      >>> sched = load_scheduler(scheduler, theirs, state, {"param_groups": [{"lr": 1.0, "initial_lr": 1.0}]})
      >>> sched, state = scheduler.step(sched, state)
      >>> scheduler.get_last_lr(sched)
      [0.5]

    Source: torch/optim/lr_scheduler.py, LRScheduler.load_state_dict.
    """
    if "param_groups" not in optimizer_state_dict:
        raise ValueError(
            f"optimizer_state_dict is a dict of {list(optimizer_state_dict)}, without param_groups: pass "
            "optimizer.state_dict(), such as checkpoint['optimizer']"
        )
    groups = optimizer_state_dict["param_groups"]
    added = [
        {key: to_number(_number(key, group[key])) for key in ADDED_BY_SCHEDULERS if key in group} for group in groups
    ]
    count = len(scheduler.init(state)[0]["param_groups"])
    if count < len(groups):
        raise ValueError(
            f"the optimizer's state dict has {len(groups)} parameter groups, the state {count}: pass the state that "
            "load_optimizer made of it"
        )
    added += [{} for _ in range(count - len(groups))]  # of parameters that torch's optimizer does not have
    sched, _ = scheduler.init(state, after={"param_groups": added})
    own = {key: value for key, value in sched.items() if key not in OURS}
    loaded = _loaded(scheduler, own, state_dict, [group["lr"] for group in groups])
    shared = [{**one, **torchs} for one, torchs in zip(sched["param_groups"], added, strict=True)]
    return {**loaded, "scheduler": sched["scheduler"], "param_groups": shared}


def scheduler_state_dict(scheduler: Scheduler, sched: Sched, optimizer: Optimizer, params: Any) -> dict[str, Any]:
    """`scheduler.state_dict()`: for torch's `load_state_dict`.

    What torch's schedulers keep in the optimizer's groups is in the optimizer's: `optimizer_state_dict(sched=sched)`.

    Args:
      scheduler: the scheduler.
      sched: its state.
      optimizer: the optimizer.
      params: the parameters; groups without any are left out, as are frozen ones.

    Returns:
      A dict of Python's numbers.

    Raises:
      TypeError: the state is another scheduler's.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> params = {"w": jnp.ones(1)}
      >>> optimizer, scheduler = optim.sgd(lr=1.0), optim.lr_scheduler.exponential_lr(gamma=0.5)
      >>> sched, state = scheduler.init(optimizer.init(params))
      >>> scheduler_state_dict(scheduler, sched, optimizer, params)["_last_lr"]
      [1.0]

    Source: torch/optim/lr_scheduler.py, LRScheduler.state_dict.
    """
    numbers = exported_groups(optimizer, params)
    has_betas = "betas" in default_options(optimizer)
    scheduler.check_state(sched)
    own = {key: python_numbers(value) for key, value in sched.items() if key not in OURS}
    return _exported(scheduler, own, numbers, has_betas)


def _exported(scheduler: Scheduler, s: Sched, groups: Sequence[int], has_betas: bool) -> dict[str, Any]:
    parts = scheduler.options.get("_schedulers", ())
    options = {key: value for key, value in scheduler.options.items() if key != "_schedulers"}
    found = {key: _saved(value) if key == "_scale_fn_custom" else value for key, value in options.items()}
    if "lr_lambdas" in options:
        functions = options["lr_lambdas"]
        if not isinstance(functions, list | tuple):
            functions = [functions] * len(groups)
        elif len(functions) != len(groups):
            functions = [functions[i] for i in groups]
        found["lr_lambdas"] = list(map(_saved, functions))
    for key, value in s.items():
        if key == "_schedulers":
            found[key] = [_exported(part, one, groups, has_betas) for part, one in zip(parts, value, strict=True)]
        else:
            found[key] = [value[i] for i in groups] if isinstance(value, list) else value
    if "T_i" in found:
        found["T_i"] = int(found["T_i"])  # torch counts in whole epochs
    if options.get("cycle_momentum"):
        found["use_beta1"] = has_betas
    if "_step_count" in s:
        found["_is_initial"] = False
    return found if parts or "_step_count" not in s else {**found, "_get_lr_called_within_step": False}


def _saved(function: Any) -> Any:
    """What torch writes of a function: nothing, and of a callable object its attributes."""
    if isinstance(function, Table):
        return _saved(function.function)
    return None if function is None or isinstance(function, types.FunctionType) else dict(vars(function))


def _loaded(scheduler: Scheduler, s: Sched, state_dict: Mapping[str, Any], rates: Sequence[Any]) -> Sched:
    """A first state with torch's put in; `rates` are those of the optimizer's groups."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"the state dict of a {scheduler.name} is {state_dict!r}: pass scheduler.state_dict(), such as "
            "checkpoint['scheduler']"
        )
    groups = len(rates)
    if "_last_lr" in s:  # ReduceLROnPlateau may have none before its first step, nor any scheduler of torch 1.3
        state_dict = {"_last_lr": rates, **state_dict}
    unknown = [key for key in state_dict if key not in (*scheduler.options, *s, *FLAGS)]
    shows = [key for key, name in SHOWS.items() if scheduler.name in name.split(" or ")]
    missing = [key for key in dict.fromkeys([*shows, *s]) if key not in state_dict]
    if unknown or missing:
        what = f"has {', '.join(unknown)}" if unknown else f"has no {', '.join(missing)}"
        whose = next((SHOWS[key] for key in SHOWS if key in state_dict), "")
        theirs = f", but of a {whose}" if whose and scheduler.name not in whose.split(" or ") else ""
        raise ValueError(f"the state dict is not of a {scheduler.name}{theirs}: it {what}")
    for key, ours in scheduler.options.items():
        if key in state_dict and key not in (*FUNCTIONS, "_schedulers") and _plain(state_dict[key]) != _plain(ours):
            raise ValueError(
                f"the state dict is of a {scheduler.name} with {key}={state_dict[key]}, this one has {ours}: make it "
                "with torch's arguments"
            )
        if key in FUNCTIONS and key in state_dict:
            _check_functions(key, ours, state_dict[key])
    loaded = {}
    for key, old in s.items():
        new = state_dict[key]
        if key == "_schedulers":
            if len(new) != len(old):
                raise ValueError(
                    f"the state dict is of a {scheduler.name} of {len(new)} schedulers, not of {len(old)}: make it "
                    "with torch's arguments"
                )
            parts = zip(scheduler.options[key], old, new, strict=True)
            loaded[key] = [_loaded(part, one, theirs, rates) for part, one, theirs in parts]
        elif not isinstance(old, list):
            loaded[key] = _array(key, new, old)
        elif not np.ndim(new) or len(new) != groups:
            has = f"has {len(new)} values" if np.ndim(new) else f"is {new!r}"
            raise ValueError(
                f"{key} of the state dict {has}, the optimizer {groups} parameter groups: pass the state dicts of one "
                "run"
            )
        else:
            loaded[key] = [_array(key, x, was) for x, was in zip(new, old, strict=False)] + old[groups:]
    return loaded


def _check_functions(key: str, ours: Any, saved: Any) -> None:
    """That callable objects have the attributes that torch saved of its own, and would give to ours."""
    several = isinstance(ours, list | tuple)
    for i, theirs in enumerate(saved if isinstance(saved, list | tuple) else [saved]):
        mine = _saved(ours[i] if several and i < len(ours) else None if several else ours)
        if theirs and mine and theirs != mine:
            raise ValueError(
                f"{key} of the state dict is of a function with the attributes {theirs}, this one has {mine}: make it "
                "with torch's arguments"
            )


def _plain(value: Any) -> Any:
    """An option in the form that it has after JSON, but for milestones, whose keys JSON makes strings."""
    if isinstance(value, Mapping):
        return {int(epoch): count for epoch, count in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _array(key: str, x: Any, like: Any) -> Any:
    value = _number(key, x)
    if is_number(like):
        return to_number(value)
    if not math.isfinite(value) or value != int(value):
        raise ValueError(
            f"{key} of the state dict is {x!r}, not an integer: step torch's scheduler to a whole epoch, then save it"
        )
    if abs(value) > jnp.iinfo(like.dtype).max:
        raise ValueError(f"{key} of the state dict is {x!r}: it is kept as {like.dtype}, which holds no such number")
    return jnp.array(int(value), like.dtype)


def _number(key: str, x: Any) -> float:
    value = as_array(x)
    if (
        value.size != 1
        or not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool)
        or np.iscomplexobj(value)
    ):
        raise ValueError(
            f"{key} of the state dict is {x!r}, not a number: pass scheduler.state_dict(), such as "
            "checkpoint['scheduler'], and the optimizer's"
        )
    return value.item()

"""torch's `scheduler.state_dict()`, both ways."""

import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.lr_scheduler.scheduler import Sched, Scheduler
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.scalars import float64
from jaxopt_port.torch_interop.files.as_array import as_array
from jaxopt_port.torch_interop.state_dict import exported_groups
from jaxopt_port.torch_interop.torch_groups import default_options

FUNCTIONS = ("lr_lambdas", "_scale_fn_custom")
# What torch's schedulers add to the optimizer's groups.
ADDED = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
# What torch's schedulers keep that says nothing: the first two between steps, the last until torch 2.6.
FLAGS = ("_is_initial", "_get_lr_called_within_step", "use_beta1", "verbose")


def load_scheduler(
    scheduler: Scheduler, state_dict: Mapping[str, Any], state: Any, optimizer_state_dict: Mapping[str, Any]
) -> Sched:
    """`scheduler.load_state_dict(state_dict)`: a scheduler's state, to go on from where torch's was.

    Args:
      scheduler: made with torch's arguments.
      state_dict: torch's, of a scheduler of the same class.
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
    added = [{key: as_array(group[key]).item() for key in ADDED if key in group} for group in groups]
    with float64():
        arrays = jax.tree.map(lambda x: jnp.array(x, jnp.float64), added)
    count = len(scheduler.init(state)[0]["param_groups"])
    if count < len(groups):
        raise ValueError(f"the optimizer's state dict has {len(groups)} parameter groups, the state {count}")
    arrays += [{} for _ in range(count - len(groups))]  # of parameters that torch's optimizer does not have
    sched, _ = scheduler.init(state, after={"param_groups": arrays})
    shared = sched.pop("param_groups")
    loaded = _loaded(scheduler, sched, state_dict, [group["lr"] for group in groups])
    return {**loaded, "param_groups": [{**one, **own} for one, own in zip(shared, arrays, strict=True)]}


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
    own = {key: value for key, value in sched.items() if key != "param_groups"}
    return _exported(scheduler, own, numbers, has_betas)


def _exported(scheduler: Scheduler, s: Sched, groups: Sequence[int], has_betas: bool) -> dict[str, Any]:
    parts = scheduler.options.get("_schedulers", ())
    options = {key: value for key, value in scheduler.options.items() if key != "_schedulers"}
    found = {key: _saved(value) if key == "_scale_fn_custom" else value for key, value in options.items()}
    if "lr_lambdas" in options:
        functions = options["lr_lambdas"]
        found["lr_lambdas"] = [
            _saved(functions[i] if isinstance(functions, list | tuple) else functions) for i in groups
        ]
    for key, value in s.items():
        if key == "_schedulers":
            found[key] = [_exported(part, one, groups, has_betas) for part, one in zip(parts, value, strict=True)]
        else:
            found[key] = [_number(value[i]) for i in groups] if isinstance(value, list) else _number(value)
    if "T_i" in found:
        found["T_i"] = int(found["T_i"])  # torch counts in whole epochs
    if options.get("cycle_momentum"):
        found["use_beta1"] = has_betas
    if "_step_count" in s:
        found["_is_initial"] = False
    return found if parts or "_step_count" not in s else {**found, "_get_lr_called_within_step": False}


def _saved(function: Any) -> Any:
    """What torch writes of a function: nothing, and of a callable object its attributes."""
    return None if function is None or isinstance(function, types.FunctionType) else dict(vars(function))


def _number(x: Any) -> Any:
    return np.asarray(x).item()


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
    missing = [key for key in s if key not in state_dict]
    if unknown or missing:
        what = f"has {', '.join(unknown)}" if unknown else f"has no {', '.join(missing)}"
        raise ValueError(f"the state dict is not of a {scheduler.name}: it {what}")
    for key, ours in scheduler.options.items():
        if key in state_dict and key not in (*FUNCTIONS, "_schedulers") and _plain(state_dict[key]) != _plain(ours):
            raise ValueError(
                f"the state dict is of a {scheduler.name} with {key}={state_dict[key]}, this one has {ours}: make it "
                "with torch's arguments"
            )
    loaded = {}
    for key, old in s.items():
        new = state_dict[key]
        if key == "_schedulers":
            parts = zip(scheduler.options[key], old, new, strict=True)
            loaded[key] = [_loaded(part, one, theirs, rates) for part, one, theirs in parts]
        elif not isinstance(old, list):
            loaded[key] = _array(new, old)
        elif len(new) != groups:
            raise ValueError(f"{key} of the state dict has {len(new)} values, the optimizer {groups} parameter groups")
        else:
            loaded[key] = [_array(x, was) for x, was in zip(new, old, strict=False)] + old[groups:]
    return loaded


def _plain(value: Any) -> Any:
    """An option in the form that it has after JSON, but for milestones, whose keys JSON makes strings."""
    if isinstance(value, Mapping):
        return {int(epoch): count for epoch, count in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _array(x: Any, like: jax.Array) -> jax.Array:
    with float64():
        return jnp.array(as_array(x).item(), like.dtype)

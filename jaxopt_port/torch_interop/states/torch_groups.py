"""The options of torch's parameter groups: of which optimizer they are, and as our factories take them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optax.contrib import MuonDimensionNumbers

from jaxopt_port import optimizers
from jaxopt_port.optimizer import Optimizer, algorithm_of, check_optimizer
from jaxopt_port.torch_interop.files.as_array import as_array
from jaxopt_port.torch_interop.states.parameter_order import Parameter

# What torch's optimizers have in a group beside the mathematics, by the name of our rule.
FOREACH = {"foreach": None, "capturable": False, "differentiable": False}
HINTS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("adadelta", "adamax", "asgd", "nadam", "radam", "rmsprop", "rprop"), FOREACH),
    "adafactor": {"foreach": None},
    "adagrad": {"foreach": None, "differentiable": False, "fused": None},
    "adam": {**FOREACH, "fused": None},
    "adamw": {**FOREACH, "fused": None},
    "sgd": {"foreach": None, "differentiable": False, "fused": None},
}
MATRICES = "weight_dimension_numbers"  # Muon's argument for what are rows and columns
FACTORED = "factored_axes"  # Adafactor's for what it factors
OURS = ("param_groups", MATRICES, FACTORED)  # what a factory takes and torch has not
# What torch's schedulers add to the groups.
ADDED_BY_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
# What an old state dict may lack: torch's __setstate__ adds it, with the value that is our default. A group with
# `foreach` is of torch 1.12 or later, which wrote those of the first line always: RAdam's group differs from Adam's
# in its lack of `amsgrad` alone.
ADDED_EARLY = ("amsgrad", "nesterov", "centered", "initial_accumulator_value")
ADDED_LATE = ("maximize", "decoupled_weight_decay")


def algorithm(optimizer: Optimizer) -> Any:
    """What stands behind an optimizer of torch's.

    Raises:
      ValueError: another's, or a wrapper around one.
    """
    check_optimizer(optimizer, "the state dict of a torch optimizer")
    try:
        found = algorithm_of(optimizer)
    except TypeError:
        found = None
    if not (hasattr(found, "rule") or hasattr(found, "name")):
        raise ValueError(
            "the optimizer is a wrapper, which torch does not have (optax.chain, every_k, ...): pass the optimizer "
            "inside, as optim.adamw(...) returned it; the state may be the whole one"
        )
    return found


def rule_name(optimizer: Optimizer) -> str:
    """The name of the optimizer's rule.

    Raises:
      ValueError: one that torch does not have, as nonlinear conjugate gradients and a user's own; a wrapper.
    """
    found = algorithm(optimizer)
    is_torchs, name = (
        (found.rule.torch, found.rule.name) if hasattr(found, "rule") else (found.name == "lbfgs", found.name)
    )
    if not is_torchs:
        raise ValueError(f"torch has no {name}, and no state dict of it: save the state as JAX's trees are saved")
    return name


def default_options(optimizer: Optimizer) -> Mapping[str, Any]:
    """The options of the default group."""
    found = algorithm(optimizer)
    return found.options[0] if hasattr(found, "rule") else found.live


def options_of(factory: Callable[..., Optimizer], group: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The factory's options out of one of torch's groups.

    Args:
      factory: makes the optimizer.
      group: torch's.
      number: of the group.

    Raises:
      ValueError: the group is another optimizer's.
    """
    wrong, more = _apart(factory, group)
    fits = [other.__name__ for other in FACTORIES if _apart(other, group) == ("", "")] if wrong or more else []
    if wrong or fits:  # what is more, and no other optimizer's group either, is a key of the user's own
        raise ValueError(
            f"parameter group {number} of the state dict has {wrong or more}: it is not of the optimizer "
            f"{getattr(factory, '__name__', rule_name(factory()))}. It has "
            f"{', '.join(each for each in group if each != 'params')}"
            + (f": load it with {' or '.join(f'optim.{name}' for name in fits)}" if fits else "")
        )
    options = {each: plain_option(group[each]) for each in _arguments(factory) if each in group}
    return options if rule_name(factory()) != "rmsprop" else {"momentum": 0.0, **options}


def exported_options(optimizer: Optimizer, group: int) -> dict[str, Any]:
    """The options of a group that torch has too."""
    return {name: value for name, value in algorithm(optimizer).options[group].items() if name not in OURS}


def matrix_options(factory: Callable[..., Optimizer], groups: Sequence[Sequence[Parameter]]) -> list[dict[str, Any]]:
    """What tells Muon and Adafactor in each group which axes of ours are torch's rows and columns, on which their steps
    depend.

    Raises:
      ValueError: a matrix of Muon's that is several arrays here, or a group whose matrices lie in several ways.
    """
    for name, found in ((MATRICES, _dimension_numbers), (FACTORED, _factored_axes)):
        if name in inspect.signature(factory).parameters:
            return [{name: found(inside)} for inside in groups]
    return [{} for _ in groups]


def _factored_axes(inside: Sequence[Parameter]) -> tuple[int, int] | None:
    """Those of torch's last two axes in flax; None where they are the last two there, or where no two axes are."""
    lie: dict[tuple[int, int], str] = {}
    default = True
    for parameter in inside:
        axes = parameter.entries[0].layout.last_two
        if len(parameter.entries) == 1 and axes is not None:
            lie.setdefault((min(axes), max(axes)), parameter.name)
            default = default and sorted(axes) == [len(parameter.shape) - 2, len(parameter.shape) - 1]
    if default:
        return None
    if len(lie) > 1:
        raise ValueError(
            f"parameters of one group lie in several ways in flax, as {' and '.join(lie.values())} do, and Adafactor "
            "has one way for a group: give each a group of its own in torch"
        )
    return next(iter(lie))


def _dimension_numbers(inside: Sequence[Parameter]) -> MuonDimensionNumbers | None:
    apart = [parameter.name for parameter in inside if len(parameter.entries) > 1]
    if apart:
        raise ValueError(
            f"Muon makes {apart[0]!r} orthogonal as one matrix, and it is several arrays here: keep it as one, or "
            "start muon with the weights alone"
        )
    lie = {parameter.entries[0].layout.torch_axes: parameter.name for parameter in inside}
    if len(lie) > 1:
        raise ValueError(
            f"parameters of one group lie in several ways in flax, as {' and '.join(lie.values())} do, and Muon has "
            "one way for a group: give each a group of its own in torch"
        )
    axes = next(iter(lie), (0, 1))
    rows, columns = (tuple(i for i, axis in enumerate(axes) if axis == which) for which in (0, 1))
    return None if axes == (0, 1) else MuonDimensionNumbers(reduction_axis=columns, output_axis=rows)


def keys_of_users(factory: Callable[..., Optimizer], state_dict: Mapping[str, Any]) -> list[str]:
    """What the groups have that neither the optimizer nor torch's schedulers put there, as timm's `lr_scale`."""
    hints = {hint for hints in HINTS.values() for hint in hints}
    known = {*_arguments(factory), *default_options(factory()), *hints, *ADDED_BY_SCHEDULERS, "params", "param_names"}
    return [
        key for key in dict.fromkeys(key for group in state_dict["param_groups"] for key in group) if key not in known
    ]


def plain_option(value: Any) -> Any:
    """An option as Python has it: a number for a tensor, a tuple for a list."""
    if isinstance(value, list | tuple):
        return tuple(map(plain_option, value))
    return value if value is None or isinstance(value, str | bool | int | float) else as_array(value).item()


def _apart(factory: Callable[..., Optimizer], group: Mapping[str, Any]) -> tuple[str, str]:
    """What of a group cannot be the factory's optimizer's, and which options of other optimizers it has beside."""
    arguments, optimizer = _arguments(factory), factory()
    fixed = {name: value for name, value in default_options(optimizer).items() if name not in arguments}
    optional = ADDED_LATE if "foreach" in group else (*ADDED_EARLY, *ADDED_LATE)
    if rule_name(optimizer) == "rmsprop":
        optional = (*optional, "momentum")
    missing = [name for name in arguments if name not in group and name not in optional]
    more = [name for name in group if name in OPTIONS and name not in arguments and name not in fixed]
    differs = [f"{name}={group[name]}" for name, value in fixed.items() if group.get(name, value) != value]
    return f"no {', '.join(missing)}" if missing else ", ".join(differs), ", ".join(more)


def _arguments(factory: Callable[..., Optimizer]) -> list[str]:
    return [name for name in inspect.signature(factory).parameters if name not in OURS]


FACTORIES = [factory for name, factory in optimizers.items() if name != "nonlinear_cg"]
OPTIONS = {name for factory in FACTORIES for name in _arguments(factory)}

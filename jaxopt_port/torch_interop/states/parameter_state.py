"""The state of one parameter, as torch's optimizers have it and as ours do."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.optimizer import OptState
from jaxopt_port.scalars import float64
from jaxopt_port.slots import as_leaves, with_leaves
from jaxopt_port.torch_interop.files.as_array import as_array
from jaxopt_port.torch_interop.layouts.layout import torch_array
from jaxopt_port.torch_interop.states.parameter_order import Parameter

State = Mapping[str, Any]

WITHOUT_STEP = ("muon", "sgd")
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "variance", "row_var", "col_var")
NOT_NEGATIVE = (*SQUARES, "exp_inf", "step_size", "step", "eta", "mu", "mu_product", "func_evals", "n_iter")
FACTORS = {"row_var": "col_var", "col_var": "row_var"}  # Adafactor's: what each is of the transposed matrix


def fill(
    name: str, state: OptState, members: Sequence[int], states: Mapping[int, tuple[Parameter, int, State]], params: Any
) -> OptState:
    """A first state with torch's put in.

    Args:
      name: of the optimizer.
      state: what `init` returned.
      members: the group of every leaf.
      states: for each leaf its parameter, which of its parts it is, and the parameter's state in torch.
      params: the parameters.

    Raises:
      ValueError: a state that is another optimizer's, or of another shape than its parameter.
    """
    slots = as_leaves(state.slots, params)
    steps = [dict(group) for group in state.steps]
    for leaf, (parameter, part, one) in states.items():
        if one:
            _check(name, slots[leaf]._fields, steps[members[leaf]], parameter, one)
            slots[leaf] = _filled(slots[leaf], parameter, part, one)
    for group, scalars in enumerate(steps):
        inside = [leaf for leaf, member in enumerate(members) if member == group]
        for key, first in scalars.items():
            values = [_scalar(key, states[leaf][2] if leaf in states else {}, first) for leaf in inside]
            if values:
                same = all(value == values[0] for value in values)
                scalars[key] = _array(np.asarray(values[0] if same else values), first)
    return OptState(tuple(steps), with_leaves(state.slots, slots, params), state.param_groups)


def _filled(slot: Any, parameter: Parameter, part: int, state: State) -> Any:
    """The slot of one leaf."""

    def put(name: str, old: Any) -> Any:
        found = state.get(name)
        if old is None or (found is None and name == "momentum_buffer"):
            return old
        if name in FACTORS:
            return _array(_factor_to_flax(name, parameter, slot, state), old)
        return _array(_to_flax(name, parameter, part, state), old)

    return slot._replace(**{name: put(name, old) for name, old in zip(slot._fields, slot, strict=True)})


def _to_flax(name: str, parameter: Parameter, part: int, state: State) -> np.ndarray:
    entry, array = parameter.entries[part], _found(name, parameter, state)
    return entry.layout.to_flax(np.split(array, entry.source.parts)[part] if len(parameter.entries) > 1 else array)


def _found(name: str, parameter: Parameter, state: State) -> np.ndarray:
    if state.get(name) is None:
        raise ValueError(
            f"the state of parameter {parameter.name!r} has no {name!r}, which the options of its group ask for: the "
            "state dict is not whole"
        )
    return as_array(state[name])


def _factor_to_flax(name: str, parameter: Parameter, slot: Any, state: State) -> np.ndarray:
    """Adafactor's row or column: torch's is the mean along an axis, which is somewhere else here."""
    factor = _found(_factors(parameter, slot)[name], parameter, state)
    whole = parameter.entries[0].layout.to_flax(np.broadcast_to(factor, parameter.shape))
    return whole[tuple(slice(size) for size in getattr(slot, name).shape)]


def _factors(parameter: Parameter, slot: Any) -> dict[str, str]:
    """Which factor of torch's each of Adafactor's is: the same, or where the axes have changed places the other.

    Raises:
      ValueError: it is neither.
    """
    layout = parameter.entries[0].layout
    axes = None if len(parameter.entries) > 1 else layout.last_two
    if axes is not None:
        row, column = ((*layout.flax[:axis], 1, *layout.flax[axis + 1 :]) for axis in axes)
        if (slot.row_var.shape, slot.col_var.shape) == (column, row):
            return {"row_var": "row_var", "col_var": "col_var"}
        if (slot.row_var.shape, slot.col_var.shape) == (row, column):
            return FACTORS
    here = "are others" if axes is None else f"are {min(axes)} and {max(axes)}"
    remedy = "its state cannot be carried over" if axes is None else f"write adafactor(factored_axes={axes})"
    raise ValueError(
        f"Adafactor factors the last two axes, and those of {parameter.name!r} {list(parameter.shape)} {here} in flax "
        f"({layout.name}): {remedy}"
    )


def _array(x: np.ndarray, like: jax.Array) -> jax.Array:
    """A copy as an array of the dtype of `like`; of its own where that is a 16-bit one, which some keep moments in."""
    if np.iscomplexobj(x) and not jnp.iscomplexobj(like):
        raise ValueError(f"a state is {x.dtype}, its parameter {like.dtype}: give params in torch's dtype")
    short = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < np.float32().itemsize
    with float64():  # NumPy copies at once: JAX's own copy may come after torch's next step in place
        return jnp.asarray(np.array(x, x.dtype if short else like.dtype))


def _scalar(name: str, state: State, first: jax.Array) -> Any:
    if name == "has_buffer":
        return state.get("momentum_buffer") is not None
    if name == "step" and state and state.get(name) is None:
        return 1.0  # torch does not count the steps of this optimizer: it has taken some
    found = state.get(name)
    return as_array(first if found is None else found).astype(first.dtype).item()


def _check(name: str, fields: Sequence[str], steps: Iterable[str], parameter: Parameter, state: State) -> None:
    scalars = [key for key in steps if key != "has_buffer" and not (key == "step" and name in WITHOUT_STEP)]
    unknown = [key for key in state if key not in (*fields, *scalars)]
    missing = [key for key in scalars if state.get(key) is None]
    if unknown or missing:
        what = f"has {', '.join(unknown)}" if unknown else f"has no {', '.join(missing)}"
        raise ValueError(
            f"the state of parameter {parameter.name!r} {what}: it is not one of {name}, which keeps "
            f"{', '.join((*scalars, *fields))}"
        )
    for key in (*scalars, *fields):
        right = () if key in scalars else _shape(key, parameter)
        one_number = key in scalars and np.shape(state[key]) == (1,)  # torch 1.12's, with capturable
        if state.get(key) is not None and np.shape(state[key]) != right and not one_number:
            raise ValueError(
                f"{key!r} in the state of parameter {parameter.name!r} is {list(np.shape(state[key]))} and should be "
                f"{list(right)}, as the parameter is {list(parameter.shape)}: params or the mapping is not what the "
                "state dict was made with, or torch's parameters are in another order: say it with param_names"
            )
        if state.get(key) is not None:
            check_numbers(key, as_array(state[key]), f"the state of parameter {parameter.name!r}")


def check_numbers(key: str, x: np.ndarray, where: str) -> None:
    """Refuse what no optimizer leaves behind, as files do that are damaged or were written by hand.

    Raises:
      ValueError: NaN, negative squares, counts that are none, moments in integers.
    """
    integers = not np.issubdtype(x.dtype, np.inexact) and x.dtype.isbuiltin == 1
    reals = np.stack([np.real(x), np.imag(x)]) if np.iscomplexobj(x) else x
    if integers and x.ndim:
        raise ValueError(f"{key!r} in {where} is {x.dtype} and should be floating-point numbers")
    if not integers and np.isnan(reals).any():
        raise ValueError(f"{key!r} in {where} has NaN: the run had failed, load a checkpoint from before")
    if key in NOT_NEGATIVE and (reals < 0).any():
        raise ValueError(f"{key!r} in {where} has {reals.min()}, which is never negative: the file is damaged")
    if key == "step" and x % 1 != 0:
        raise ValueError(f"{key!r} in {where} is {x}, which is no count of steps: the file is damaged")


def _shape(key: str, parameter: Parameter) -> tuple[int, ...]:
    """The shape in torch of an array of the state."""
    return {"row_var": (*parameter.shape[:-1], 1), "col_var": (*parameter.shape[:-2], 1, *parameter.shape[-1:])}.get(
        key, parameter.shape
    )


def saver(
    name: str, state: OptState, members: Sequence[int], params: Any
) -> Callable[[Parameter], dict[str, np.ndarray | int]]:
    """A function that gives torch's state of a parameter, empty where torch has none.

    Args:
      name: of the optimizer.
      state: of the optimizer.
      members: the group of every leaf.
      params: the parameters.
    """
    all_slots = as_leaves(state.slots, params)
    steps = jax.tree.map(np.asarray, state.steps)
    seen: dict[int, int] = {}  # how many leaves of each group came before
    at = [seen.update({group: seen.get(group, -1) + 1}) or seen[group] for group in members]

    def save(parameter: Parameter) -> dict[str, np.ndarray | int]:
        slots = [all_slots[leaf] for leaf in parameter.leaves]
        scalars = {}
        for key, values in steps[members[parameter.leaves[0]]].items():
            mine = values[[at[leaf] for leaf in parameter.leaves]] if values.ndim else values.reshape(1)
            if (mine != mine[0]).any():
                raise ValueError(f"{parameter.name!r} is one parameter in torch, but its parts differ in their {key!r}")
            scalars[key] = np.array(mine[0])
        step = scalars.pop("step")
        # torch's Adagrad makes its state in the constructor
        if not (scalars.pop("has_buffer", step > 0) or name == "adagrad"):
            return {}
        number = {"step": int(step) if name == "sparse_adam" else step} if name not in WITHOUT_STEP else {}
        kept = [key for key in slots[0]._fields if getattr(slots[0], key) is not None]
        return {**number, **scalars, **{key: _to_torch(key, parameter, slots) for key in kept}}

    return save


def _to_torch(name: str, parameter: Parameter, slots: Sequence[Any]) -> np.ndarray:
    if name not in FACTORS:
        return torch_array(parameter.name, parameter.entries, [np.asarray(getattr(slot, name)) for slot in slots])
    layout, factor = parameter.entries[0].layout, np.asarray(getattr(slots[0], _factors(parameter, slots[0])[name]))
    whole = layout.to_torch(np.broadcast_to(factor, layout.flax))
    return whole[tuple(slice(size) for size in _shape(name, parameter))].copy()

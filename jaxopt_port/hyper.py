"""Reading and changing hyper-parameters in a state, and bringing a state back from a file."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.optimizer import OptState
from jaxopt_port.scalars import Scalar, float64, is_known, to_float64

T = TypeVar("T")


def _is_state(x: Any) -> bool:
    return isinstance(x, OptState)


def find_state(state: Any) -> OptState:
    """The one OptState inside a chain's state, a TrainState or any other pytree.

    Raises:
      ValueError: there is none, or more than one.
    """
    found = [x for x in jax.tree.leaves(state, is_leaf=_is_state) if _is_state(x)]
    if len(found) != 1:
        raise ValueError(
            f"expected one OptState in the state, found {len(found)}: pass the one that is meant, "
            "such as state.inner_states[label].inner_state of optax.partition"
        )
    return found[0]


def replace_state(state: T, new: OptState) -> T:
    """`state` with the one OptState inside it replaced."""
    find_state(state)
    return jax.tree.map(lambda x: new if _is_state(x) else x, state, is_leaf=_is_state)


def get_hyper(state: Any) -> list[dict[str, Any]]:
    """The live hyper-parameters of every group, as Python floats.

    Args:
      state: an OptState, or a pytree with one inside.

    Returns:
      A dict for each group, group 0 first.

    Example:
      >>> import jaxopt_port as optim
      >>> get_hyper(optim.rmsprop(lr=0.1).init({}))
      [{'alpha': 0.99, 'eps': 1e-08, 'lr': 0.1, 'weight_decay': 0.0}]
    """
    return [{name: _as_floats(x) for name, x in sorted(group.items())} for group in find_state(state).param_groups]


def _as_floats(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_as_floats, value))
    return None if value is None else float(jax.tree.leaves(value)[0])  # out of the box that nnx.Optimizer puts it in


def set_hyper(state: T, group: int | None = None, **values: Scalar | tuple[Scalar, ...]) -> T:
    """Change live hyper-parameters: `param_group["lr"] = ...`. Nothing is compiled again.

    Args:
      state: an OptState, or a pytree with one inside (a chain's state, a TrainState).
      group: the number of the group, 0 the default group; None changes every group.
      **values: the new values, Python numbers or (traced) arrays.

    Returns:
      The new state; `state` itself is left as it is.

    Raises:
      ValueError: a name that is not a live hyper-parameter of the group, a pair for a number, or no such group.

    Example:
      >>> import jaxopt_port as optim
      >>> state = optim.sgd(lr=0.1).init({})
      >>> get_hyper(set_hyper(state, lr=0.01))[0]["lr"]
      0.01
    """
    found = find_state(state)
    if group is not None and not 0 <= group < len(found.param_groups):
        raise ValueError(f"group {group} does not exist: the state has groups 0 to {len(found.param_groups) - 1}")
    chosen = range(len(found.param_groups)) if group is None else [group]
    new = [dict(each) for each in found.param_groups]
    for index in chosen:
        for name, value in values.items():
            new[index][name] = _like(new[index], index, name, value)
    return replace_state(state, found._replace(param_groups=tuple(new)))


def _like(group: dict[str, Any], index: int, name: str, value: Any) -> Any:
    if name not in group:
        raise ValueError(
            f"{name!r} is not a live hyper-parameter of group {index}: live are {', '.join(group)}. "
            "Flags, and options that decide which state exists, are fixed when the optimizer is made; "
            "one that was 0 then (SGD's momentum) is made live by starting from any other value."
        )
    old = group[name]
    if _form(old) != _form(value):
        raise ValueError(f"{name!r} of group {index} must be {_form(old)}, not {value!r}")
    sizes = [np.size(x) for x in jax.tree.leaves(value)]
    if any(size != 1 for size in sizes):
        raise ValueError(f"{name!r} of group {index} must be {_form(old)}, not an array of {max(sizes)}")
    return jax.tree.map(_in_place_of, old, jax.tree.structure(old).unflatten(jax.tree.leaves(value)))


def _in_place_of(old: Any, value: Any) -> Any:
    """A value as float64, on the devices of the old: on others jit would compile again."""
    new = to_float64(value)
    return jax.device_put(new, old.sharding) if is_known(new) and isinstance(old, jax.Array) and is_known(old) else new


def _form(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_form, value))})"
    return "None" if value is None else "a number"


def restore(state: T) -> T:
    """A state that came back as NumPy arrays, as JAX arrays with every float64 kept.

    `jnp.asarray` and jit turn NumPy's float64 into float32 unless `jax_enable_x64` is set, and a learning rate of 0.1
    into 0.10000000149. Use this after `flax.serialization.from_bytes`, `pickle`, `jax.device_get` or an Orbax restore
    as NumPy.

    Args:
      state: any pytree of arrays (an OptState, a TrainState, ...).

    Returns:
      The same pytree with a JAX array, of the same dtype, for every NumPy array.

    Raises:
      TypeError: a hyper-parameter is already float32, so that its float64 value is lost.

    Example:
      >>> import jax, jaxopt_port as optim
      >>> state = jax.device_get(optim.sgd(lr=0.1).init({}))
      >>> restore(state).param_groups[0]["lr"].dtype
      dtype('float64')
    """
    for found in filter(_is_state, jax.tree.leaves(state, is_leaf=_is_state)):
        for group in found.param_groups:
            for name, value in group.items():
                if any(getattr(x, "dtype", np.float64) != np.float64 for x in jax.tree.leaves(value)):
                    raise TypeError(
                        f"hyper-parameter {name!r} came back as float32: its value is no longer exact. "
                        "Restore as NumPy arrays, or under jax.enable_x64(True)."
                    )
    with float64():
        return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x, state)

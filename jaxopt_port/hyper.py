"""Reading and changing hyper-parameters in a state."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_port.number import Number, is_number, to_number, to_numpy
from jaxopt_port.optimizer import OptState
from jaxopt_port.scalars import NUMBER, Scalar, is_known

T = TypeVar("T")


def _is_state(x: Any) -> bool:
    return isinstance(x, OptState)


def states_in(state: Any) -> list[OptState]:
    """All OptStates in a pytree."""
    return [x for x in jax.tree.leaves(state, is_leaf=_is_state) if _is_state(x)]


def find_state(state: Any) -> OptState:
    """The one OptState inside a chain's state, a TrainState or any other pytree.

    Args:
      state: the pytree.

    Returns:
      The OptState.

    Raises:
      TypeError: it is the optimizer and not its state.
      ValueError: there is none, or more than one.

    Example:
      >>> import jaxopt_port as optim, optax
      >>> chain = optax.chain(optax.clip_by_global_norm(1.0), optim.adam(lr=0.1))
      >>> find_state(chain.init({"w": jnp.ones(2)})).slots.exp_avg
      {'w': Array([0., 0.], dtype=float32)}
    """
    if isinstance(state, optax.GradientTransformation):
        raise TypeError("this is the optimizer: pass its state, which optimizer.init(params) returns")
    found = states_in(state)
    if not found:
        raise ValueError(
            f"expected one OptState in the state, found 0 in a {type(state).__name__}: pass what "
            "optimizer.init(params) returned, or a tree that holds it"
        )
    if len(found) > 1:
        raise ValueError(
            f"expected one OptState in the state, found {len(found)}: pass the part that holds the one meant, and put "
            "the new part back. For optax.partition: part = set_hyper(state.inner_states[label], lr=...), then "
            "state._replace(inner_states={**state.inner_states, label: part})"
        )
    return found[0]


def replace_state(state: T, new: OptState) -> T:
    """`state` with the one OptState inside it replaced.

    Args:
      state: an OptState, or a pytree with one inside.
      new: what takes its place.

    Returns:
      A pytree like `state`.

    Raises:
      TypeError: `state` is the optimizer and not its state.
      ValueError: there is no OptState in it, or more than one.

    Example:
      >>> import jaxopt_port as optim
      >>> state = ("ema", optim.sgd(lr=0.1).init({}))
      >>> new = set_hyper(find_state(state), lr=0.01)
      >>> get_hyper(replace_state(state, new))[0]["lr"]
      0.01
    """
    find_state(state)
    return jax.tree.map(lambda x: new if _is_state(x) else x, state, is_leaf=_is_state)


def get_hyper(state: Any) -> list[dict[str, Any]]:
    """The live hyper-parameters of every group, as Python floats.

    Args:
      state: an OptState, or a pytree with one inside.

    Returns:
      A dict for each group: group 0, the default group, then the ParamGroups in order. Of the states that `vmap`
      makes, lists of floats.

    Raises:
      TypeError: the optimizer in place of its state.
      ValueError: no state, or more than one.

    Example:
      >>> import jaxopt_port as optim
      >>> get_hyper(optim.rmsprop(lr=0.1).init({}))
      [{'alpha': 0.99, 'eps': 1e-08, 'lr': 0.1, 'weight_decay': 0.0}]
    """
    return [{name: _as_floats(x) for name, x in sorted(group.items())} for group in find_state(state).param_groups]


def _as_floats(value: Any) -> Any:
    if is_number(value):
        return to_numpy(value).tolist()
    return None if value is None else tuple(map(_as_floats, value))


def set_hyper(state: T, group: int | None = None, **values: Scalar | tuple[Scalar, ...]) -> T:
    """Change live hyper-parameters: `param_group["lr"] = ...`. Nothing is compiled again.

    Args:
      state: an OptState, or a pytree with one inside (a chain's state, a TrainState). Of several, as in
        `optax.partition`, pass the part with the one that is meant, and put what comes back in its place.
      group: the number of the group: 0 is the default group, then come the ParamGroups in order. None changes all.
      **values: the new values, Python numbers or (traced) arrays. All the states that `vmap` makes get the same.

    Returns:
      The new state; `state` itself is left as it is.

    Raises:
      TypeError: the optimizer in place of its state.
      ValueError: a name that is not a live hyper-parameter of the group, a pair for a number, or no such group; no
        state, or more than one.

    Example:
      >>> import jaxopt_port as optim, optax
      >>> state = optim.sgd(lr=0.1).init({})
      >>> get_hyper(set_hyper(state, lr=0.01))[0]["lr"]
      0.01
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> optimizer = optax.partition({"a": optim.muon(), "b": optim.adamw()}, {"kernel": "a", "bias": "b"})
      >>> state = optimizer.init(params)
      >>> part = set_hyper(state.inner_states["a"], lr=0.02)
      >>> state = state._replace(inner_states={**state.inner_states, "a": part})
    """
    found = find_state(state)
    if group is not None and (not isinstance(group, int | np.integer) or not 0 <= group < len(found.param_groups)):
        raise ValueError(
            f"group {group!r} does not exist: the state has groups 0 to {len(found.param_groups) - 1}, by their "
            "numbers, as in set_hyper(state, group=0, lr=0.1)"
        )
    chosen = range(len(found.param_groups)) if group is None else [group]
    new = {i: {name: _like(found.param_groups[i], i, name, value) for name, value in values.items()} for i in chosen}
    return replace_state(
        state,
        found._replace(param_groups=tuple({**each, **new.get(i, {})} for i, each in enumerate(found.param_groups))),
    )


def _like(group: Mapping[str, Any], index: int, name: str, value: Any) -> Any:
    """A value as a `Number`, or a tuple of them, in place of the old."""
    if name not in group:
        raise ValueError(
            f"{name!r} is not a live hyper-parameter of group {index}: live are {', '.join(group)}. "
            "Flags, and options that decide which state exists, are fixed when the optimizer is made; "
            "one that was 0 then (SGD's momentum) is made live by starting from any other value."
        )
    new = jax.tree.leaves(value)
    numbers = all(isinstance(x, NUMBER) and not np.iscomplexobj(x) for x in new)
    if _wanted(group[name]) != _wanted(value) or not numbers:
        raise ValueError(f"{name!r} of group {index} must be {_wanted(group[name])}, not {value!r}")
    sizes = list(map(np.size, new))
    if set(sizes) != {1}:
        raise ValueError(f"{name!r} of group {index} must be {_wanted(group[name])}, not an array of {max(sizes)}")
    if isinstance(value, list):
        value = tuple(value)
    return jax.tree.map(in_place_of, group[name], value, is_leaf=is_number)


def in_place_of(old: Number, value: Any) -> Number:
    """A number as a `Number` with the shape, the box and the devices of the one that it replaces.

    On other devices jit would compile again. An array that is not committed to its devices jit takes wherever it
    computes; so is a new one in its place.
    """
    (was,), treedef = jax.tree.flatten(old)
    parts = to_number(value).parts
    if jnp.shape(was)[:-1] != parts.shape[:-1]:
        parts = jnp.broadcast_to(parts.reshape(-1), jnp.shape(was))
    if isinstance(was, jax.Array) and is_known(was) and is_known(parts) and (was.committed or parts.committed):
        parts = jax.device_put(np.asarray(parts), was.sharding) if was.committed else np.asarray(parts)
    return treedef.unflatten([jnp.asarray(parts)])


def _wanted(value: Any) -> str:
    """What a value in place of this one has to be, in words."""
    if isinstance(value, tuple | list) and not is_number(value):
        return f"({', '.join(map(_wanted, value))})"
    return repr(value) if value is None or isinstance(value, str) else "a number"

"""Reading and changing hyper-parameters in a state, and bringing a state back from a file."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_port.optimizer import OptState
from jaxopt_port.scalars import NUMBER, Scalar, float64, is_known, to_float64

T = TypeVar("T")


def _is_state(x: Any) -> bool:
    return isinstance(x, OptState)


def find_state(state: Any) -> OptState:
    """The one OptState inside a chain's state, a TrainState or any other pytree.

    Raises:
      TypeError: it is the optimizer and not its state.
      ValueError: there is none, or more than one.
    """
    if isinstance(state, optax.GradientTransformation):
        raise TypeError("this is the optimizer: pass its state, which optimizer.init(params) returns")
    found = [x for x in jax.tree.leaves(state, is_leaf=_is_state) if _is_state(x)]
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
    """`state` with the one OptState inside it replaced."""
    find_state(state)
    return jax.tree.map(lambda x: new if _is_state(x) else x, state, is_leaf=_is_state)


def get_hyper(state: Any) -> list[dict[str, Any]]:
    """The live hyper-parameters of every group, as Python floats.

    Args:
      state: an OptState, or a pytree with one inside.

    Returns:
      A dict for each group: group 0, the default group, then the ParamGroups in order. Of the states that `vmap`
      makes, lists of floats.

    Example:
      >>> import jaxopt_port as optim
      >>> get_hyper(optim.rmsprop(lr=0.1).init({}))
      [{'alpha': 0.99, 'eps': 1e-08, 'lr': 0.1, 'weight_decay': 0.0}]
    """
    return [{name: _as_floats(x) for name, x in sorted(group.items())} for group in find_state(state).param_groups]


def _as_floats(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_as_floats, value))
    return None if value is None else np.asarray(jax.tree.leaves(value)[0]).tolist()  # out of nnx.Optimizer's box


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
    if group is not None and not 0 <= group < len(found.param_groups):
        raise ValueError(f"group {group} does not exist: the state has groups 0 to {len(found.param_groups) - 1}")
    chosen = range(len(found.param_groups)) if group is None else [group]
    new = {i: {name: _like(found.param_groups[i], i, name, value) for name, value in values.items()} for i in chosen}
    old = {i: {name: found.param_groups[i][name] for name in values} for i in chosen}
    new = jax.tree.structure(old).unflatten(in_place_of(jax.tree.leaves(old), jax.tree.leaves(new)))
    return replace_state(
        state,
        found._replace(param_groups=tuple({**each, **new.get(i, {})} for i, each in enumerate(found.param_groups))),
    )


def _like(group: Mapping[str, Any], index: int, name: str, value: Any) -> list[Any]:
    """A value as float64 numbers, one for each array of the old."""
    if name not in group:
        raise ValueError(
            f"{name!r} is not a live hyper-parameter of group {index}: live are {', '.join(group)}. "
            "Flags, and options that decide which state exists, are fixed when the optimizer is made; "
            "one that was 0 then (SGD's momentum) is made live by starting from any other value."
        )
    old, new = jax.tree.leaves(group[name]), jax.tree.leaves(value)
    numbers = all(isinstance(x, NUMBER) and not np.iscomplexobj(x) for x in new)
    if _form(group[name]) != _form(value) or not numbers:
        raise ValueError(f"{name!r} of group {index} must be {_form(group[name])}, not {value!r}")
    sizes = list(map(np.size, new))
    if set(sizes) != {1}:
        raise ValueError(f"{name!r} of group {index} must be {_form(group[name])}, not an array of {max(sizes)}")
    return [_number(x, jnp.shape(was)) for x, was in zip(new, old, strict=True)]


def _number(value: Any, shape: tuple[int, ...]) -> Any:
    if not isinstance(value, jax.Array):
        return np.full(shape, np.reshape(value, ()), np.float64)
    with float64():  # NumPy would wait for it
        return jnp.broadcast_to(to_float64(value), shape)


def in_place_of(old: Sequence[Any], new: Sequence[Any]) -> list[jax.Array]:
    """Numbers as arrays, on the devices of those they replace: on others jit would compile again.

    An array that is not committed to its devices jit takes wherever it computes; so is a new one in its place.
    """

    def place(x: jax.Array, was: Any) -> jax.Array:
        if not isinstance(was, jax.Array) or not is_known(was) or not is_known(x):
            return x
        return jax.device_put(x, was.sharding) if was.committed or x.committed else x

    numbers = [np.asarray(x) if isinstance(x, jax.Array) and is_known(x) and x.committed else x for x in new]
    with float64():
        return [place(x, was) for x, was in zip(_on_device(numbers), old, strict=True)]


@jax.jit
def _on_device(numbers: list[Any]) -> list[jax.Array]:
    """One call for all of them: eight take 50 us, where eight `jnp.asarray` take 460."""
    return numbers


def _form(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_form, value))})"
    return repr(value) if value is None or isinstance(value, str) else "a number"


def restore(state: T) -> T:
    """A state that came back as NumPy arrays, as JAX arrays with every float64 kept.

    Unless `jax_enable_x64` is set, whatever makes a JAX array of NumPy's float64 makes a float32 of it, and of a
    learning rate of 0.1 a 0.10000000149. That cannot be undone, so a state has to leave a file as NumPy arrays:

    - `pickle.dumps(jax.device_get(state))`, then `restore(pickle.loads(data))`;
    - Orbax's `checkpointer.save(path, state)`, then
      `restore(checkpointer.restore(path, jax.tree.map(np.asarray, state)))`, with the state of `init` as the target;
    - `flax.serialization.to_bytes(state)`, then `restore(from_bytes(state, data))`;

    or be read `with jax.enable_x64(True)`, whatever it was saved with.

    Args:
      state: any pytree of arrays (an OptState, a TrainState, a scheduler's state, ...).

    Returns:
      The same pytree with a JAX array, of the same dtype, for every NumPy array.

    Raises:
      TypeError: a hyper-parameter is already float32, so that its float64 value is lost.

    Example:
      >>> import jax, pickle, jaxopt_port as optim
      >>> data = pickle.dumps(jax.device_get(optim.sgd(lr=0.1).init({})))
      >>> restore(pickle.loads(data)).param_groups[0]["lr"].dtype
      dtype('float64')
    """
    for found in jax.tree.leaves(state, is_leaf=lambda x: _is_state(x) or _was_state(x)):
        groups = found.param_groups if _is_state(found) else found["param_groups"] if _was_state(found) else ()
        groups = groups.values() if isinstance(groups, Mapping) else groups
        for name, value in (item for group in groups for item in group.items()):
            if any(getattr(x, "dtype", np.float64) != np.float64 for x in jax.tree.leaves(value)):
                raise TypeError(
                    f"hyper-parameter {name!r} came back as float32: its value is no longer exact. Read the file again "
                    "as NumPy arrays, or under jax.enable_x64(True); restore's docstring has how, for pickle and Orbax"
                )
    with float64():
        return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x, state)


def _was_state(x: Any) -> bool:
    """Whether it is an OptState as a dict, as flax's `to_state_dict` makes it and Orbax without a target."""
    return isinstance(x, Mapping) and set(x) == set(OptState._fields)

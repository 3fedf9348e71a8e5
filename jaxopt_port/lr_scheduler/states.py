"""Between the states of JAX, arrays and `Number`s, and the numbers that a scheduler computes with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.hyper import in_place_of
from jaxopt_port.lr_scheduler.double import Double, Float
from jaxopt_port.number import is_number, to_number
from jaxopt_port.optimizer import OptState
from jaxopt_port.scalars import is_known

Sched = dict[str, Any]
Groups = list[dict[str, Any]]

SCHEDULED = ("lr", "momentum", "betas")
FROZEN = "is_frozen"  # whether a group is frozen


def scheduled(optimizer: OptState) -> Groups:
    """What schedulers read and set."""
    return [
        {name: list(value) if name == "betas" else value for name, value in group.items() if name in SCHEDULED}
        for group in optimizer.param_groups
    ]


def with_scheduled(optimizer: OptState, live: Groups) -> OptState:
    """The optimizer's state with these rates and momenta."""
    new = ({name: tuple(value) if name == "betas" else value for name, value in values.items()} for values in live)
    param_groups = tuple({**group, **values} for group, values in zip(optimizer.param_groups, new, strict=True))
    return optimizer._replace(param_groups=param_groups)


def join(optimizer: OptState, live: Groups, added: Groups) -> Groups:
    """The groups as torch has them; one that add_param_group has made since has nothing added yet.

    A group that is frozen is marked: the optimizer's state keeps no scalars for it.
    """
    frozen = [not scalars and any(optimizer.steps) for scalars in optimizer.steps]
    more = [{}] * (len(live) - len(added))
    return [{**one, **two, FROZEN: three} for one, two, three in zip(live, [*added, *more], frozen, strict=True)]


def split(groups: Groups) -> tuple[Groups, Groups]:
    """What belongs into the optimizer's state, and what torch's schedulers add to the groups."""
    live = [{name: value for name, value in group.items() if name in SCHEDULED} for group in groups]
    return live, [{k: v for k, v in group.items() if k not in (*SCHEDULED, FROZEN)} for group in groups]


def encoded(new: Any, before: Any = None, old: Any = None) -> Any:
    """The tree `new` of numbers as arrays and `Number`s: those of `old` where a number is still that of `before`."""
    paths = jax.tree_util.tree_flatten_with_path(old, is_leaf=is_number)[0]
    known = {path: (x, number) for (path, x), number in zip(paths, jax.tree.leaves(before), strict=True)}

    def one(path: Any, x: Float) -> Any:
        was, number = known.get(path, (None, None))  # add_param_group may have made another group
        return was if x is number else _encode(x, was)

    return jax.tree.map_with_path(one, new)


def _encode(x: Float, old: Any) -> Any:
    """A number in the form of the old one, on its devices; the first time integers as int32."""
    value = x.value if isinstance(x, Double) else x
    if is_number(old):
        return in_place_of(old, value)
    if old is None and not isinstance(x, int):
        return to_number(value)
    new = value.astype(jnp.int32) if isinstance(value, jax.Array) else jnp.asarray(value, jnp.int32)
    if isinstance(old, jax.Array) and is_known(old) and is_known(new) and old.committed:
        return jax.device_put(new, old.sharding)
    return new


def check(**states: Any) -> None:
    """That every array is one number, and every float in the form that it was made in."""
    for owner, state in states.items():
        for path, x in jax.tree_util.tree_flatten_with_path(state, is_leaf=is_number)[0]:
            (array,) = jax.tree.leaves(x)  # nnx.Optimizer puts a box around the array of a Number
            name = f"{jax.tree_util.keystr(path)} of the {owner}'s state"
            dtype, shape = getattr(array, "dtype", type(array).__name__), list(np.shape(array))
            if dtype != (jnp.float32 if is_number(x) else jnp.int32):
                what = f"a Number of {dtype}" if is_number(x) else f"{dtype}{shape}, not a Number"
                raise TypeError(f"{name} is {what}: restore a state with what init returned as the target, uncast")
            if shape != ([4] if is_number(x) else []):
                raise ValueError(
                    f"{name} is of shape {shape[:-1] if is_number(x) else shape}, not one number. For states that vmap "
                    "made, call the scheduler inside jax.vmap"
                )

"""What is refused before anything is computed: trees, shapes, dtypes and numbers that do not belong together."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_port.number import is_number, to_numpy
from jaxopt_port.param_groups import leaf_paths
from jaxopt_port.scalars import is_known

Tree = Any


def flatten_like(treedef: Any, tree: Tree, what: str, like: str = "the parameters") -> list[Any]:
    """The leaves of a tree that has to be like the parameters'; what stands where one of theirs does is a leaf."""
    try:
        return treedef.flatten_up_to(tree)
    except (ValueError, TypeError) as error:
        why = error
    try:
        treedef.flatten_up_to(jax.tree.map(_Shown, tree))
    except (ValueError, TypeError) as error:
        why = error  # with shapes in place of numbers
    raise ValueError(
        f"the tree of {what} is not that of {like}: {str(why).partition(chr(10))[0]} Give a tree like {like}, as "
        "jax.grad(loss_fn)(params) returns it"
    )


class _Shown:
    """How an array is shown in an error."""

    def __init__(self, x: Any):
        self.x = x

    def __repr__(self) -> str:
        return f"{jnp.result_type(self.x)}{list(jnp.shape(self.x))}" if hasattr(self.x, "shape") else repr(self.x)


def check_grad(params: Tree, index: int, p: Any, g: Any) -> None:
    """That a gradient has the shape and dtype of its parameter."""
    if hasattr(g, "detach"):
        raise TypeError(
            f"the gradient of {leaf_paths(params)[index]!r} is a tensor of torch's: give that of jax.grad, or "
            "jnp.asarray(p.grad.numpy())"
        )
    if g.shape != p.shape or g.dtype != p.dtype:
        path = leaf_paths(params)[index]
        message = f"the gradient of {path!r} is {g.dtype}{list(g.shape)}, its parameter {p.dtype}{list(p.shape)}"
        if g.shape != p.shape:
            raise ValueError(message)
        raise TypeError(f"{message}: write jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)")


def check_rule(rule: Any, options: Mapping[str, Any]) -> None:
    """That a rule and the options of an optimizer belong together."""
    if not hasattr(rule.slots, "_fields"):
        raise TypeError(f"the slots of the rule {rule.name} must be a NamedTuple's class, not {rule.slots!r}")
    missing = [name for name in rule.live if name not in options]
    if missing:
        raise TypeError(
            f"the rule {rule.name} has live options that its optimizer does not: {', '.join(missing)}. The optimizer "
            f"has {', '.join(options)}"
        )


def check_static(options: Mapping[str, Any], live: Sequence[str]) -> None:
    """That options which are fixed when the optimizer is made have values."""
    for name, value in options.items():
        if name not in live and not is_known(value):
            raise TypeError(
                f"{name} is fixed when the optimizer is made, and has no value here, under jit or vmap: give a Python "
                f"value (optax.inject_hyperparams takes static_args=({name!r},))"
            )


def check_live(live: Mapping[str, Any], group: int) -> None:
    """That the hyper-parameters of a group are as they were made."""
    for name, value in live.items():
        for number in jax.tree.leaves(value, is_leaf=is_number):
            parts = jax.tree.leaves(number)
            dtype = getattr(parts[0], "dtype", None) if is_number(number) else None
            if dtype != jnp.float32 or jnp.shape(parts[0])[-1:] != (4,):
                raise TypeError(
                    f"hyper-parameter {name!r} of parameter group {group} is {number!r}, where init puts a Number, "
                    "float32[4]: change a value with jaxopt_port.set_hyper(state, ...), and cast state.slots alone"
                )


def check_fresh(arrays: Mapping[str, Any], live: Mapping[str, Any], group: int) -> None:
    """That an optimizer which did not make the state has no array for a hyper-parameter, or the one in the state.

    `optax.inject_hyperparams` makes the optimizer anew at every step, with the rate of that step, and a function that
    takes a rate may do the same: the step would use the number in the state and not the array.
    """
    for name, value in arrays.items():
        if name not in live:
            continue
        known = is_known(value) and is_known(jax.tree.leaves(live[name])[0])
        if not known or not (to_numpy(live[name]) == float(value)).all():
            raise TypeError(
                f"{name} was given as an array to an optimizer that has not made this state: a step uses the {name} in "
                f"the state (group {group}), not the optimizer's. Make the optimizer once with a Python number, and "
                f"change it with jaxopt_port.set_hyper(state, {name}=...) or a scheduler of jaxopt_port.lr_scheduler, "
                "in place of optax.inject_hyperparams"
            )

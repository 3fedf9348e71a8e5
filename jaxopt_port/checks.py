"""What a step refuses before it computes anything: trees, shapes and dtypes that do not belong together."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_port.param_groups import leaf_paths

Tree = Any


def flatten_like(treedef: Any, tree: Tree, what: str) -> list[Any]:
    """The leaves of a tree that has to be like the parameters'; what stands where one of theirs does is a leaf."""
    try:
        return treedef.flatten_up_to(tree)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the tree of {what} is not that of the parameters: {error}") from None


def check_grads(params: Tree, leaves: list[Any], grads: list[Any], check_grad: Callable[[Any], None]) -> None:
    """That every gradient has the shape and dtype of its parameter, and is one that the rule takes."""
    for index, (p, g) in enumerate(zip(leaves, grads, strict=True)):
        if g is None or not hasattr(p, "dtype") or g.dtype == jax.dtypes.float0:
            continue
        if g.shape != p.shape or g.dtype != p.dtype:
            kind = ValueError if g.shape != p.shape else TypeError
            raise kind(
                f"the gradient of {leaf_paths(params)[index]!r} is {g.dtype}{list(g.shape)}, "
                f"its parameter {p.dtype}{list(p.shape)}"
            )
        check_grad(g)


def check_float64(live: Mapping[str, Any], group: int) -> None:
    """That the hyper-parameters of a group are float64, as they were made."""
    for name, value in live.items():
        for x in jax.tree.leaves(value):
            if getattr(x, "dtype", None) != jnp.float64:
                raise TypeError(
                    f"hyper-parameter {name!r} of parameter group {group} is {getattr(x, 'dtype', type(x).__name__)}, "
                    "not float64. A state that comes back from a file or from device_get goes through "
                    "jaxopt_port.restore(state), whose docstring says how to write and read it; change a value with "
                    "jaxopt_port.set_hyper(state, ...); use an abstract state (of jax.eval_shape) under "
                    "jax.enable_x64(True)."
                )


def check_slot(params: Tree, index: int, slot: str, expected: str) -> None:
    """That a parameter's state has the arrays that `init` makes, both in the words of `form`."""
    if slot != expected:
        raise ValueError(
            f"the state of parameter {leaf_paths(params)[index]!r} is {slot}, and should be {expected}: it was made "
            "for another optimizer, another parameter, or with other options (amsgrad, centered, momentum, ...)"
        )


def form(slot: Any) -> str:
    """A slot's arrays, in words."""
    names = getattr(slot, "_fields", None)
    if names is None:
        return type(slot).__name__
    arrays = {name: x for name, x in zip(names, slot, strict=True) if x is not None}
    return f"{type(slot).__name__}({', '.join(f'{name}{list(jnp.shape(x))}' for name, x in arrays.items())})"

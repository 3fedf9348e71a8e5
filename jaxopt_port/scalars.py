"""Hyper-parameters as float64 scalars, and their validation in torch's words.

torch's hyper-parameters are Python floats: it computes with them in double precision and rounds once, where a number
meets a tensor. So they are float64 here too, whatever the parameters' dtype and whether or not `jax_enable_x64` is set:
`float64()` is a local switch, and what is computed under it stays float64 through jit, scan, vmap and grad.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Scalar = float | jax.Array | np.ndarray | np.floating
NUMBER = int | float | np.ndarray | np.generic | jax.Array


def float64() -> AbstractContextManager[Any]:
    """The context in which torch's Python-float arithmetic is done: 64-bit types, locally."""
    return jax.enable_x64(True)


def x64_for(*dtypes: Any) -> AbstractContextManager[Any]:
    """The context in which arrays of these dtypes keep their 64 bits, with `jax_enable_x64` off, too."""
    return float64() if any(dtype in (jnp.float64, jnp.complex128) for dtype in dtypes) else nullcontext()


def is_known(value: Scalar) -> bool:
    """Whether the value of a hyper-parameter can be looked at now: False under a trace."""
    return not isinstance(value, Tracer)


def is_on(value: Scalar) -> bool:
    """Whether an option that is off at 0 is on; one that cannot be looked at is."""
    return not is_known(value) or bool(value != 0)


def python_max(first: Scalar, second: Scalar) -> jax.Array:
    """Python's `max(first, second)`, elementwise: the first where the second is NaN."""
    return jnp.where(second > first, second, first)


def python_min(first: Scalar, second: Scalar) -> jax.Array:
    """Python's `min(first, second)`, elementwise: the first where the second is NaN."""
    return jnp.where(second < first, second, first)


def check_numbers(options: Mapping[str, Any], live: Sequence[str]) -> None:
    """Raise for a live option that is neither a number nor some numbers. A None may stand among some."""
    for name in live:
        value = options[name]
        for x in value if isinstance(value, tuple) else [value]:
            if name != "lr" and (x is not None or not isinstance(value, tuple)):  # check_one_element says more of an lr
                check_number(name, x)


def check_number(name: str, value: Any) -> None:
    """Raise for an option that is not one number."""
    if not isinstance(value, NUMBER) or np.size(value) != 1 or np.iscomplexobj(value):
        raise TypeError(f"{name} must be a number, or some where the default is some, not {value!r}")


def check_form(name: str, value: Any, like: Any) -> None:
    """Raise for an option that is some numbers where another value of it is one."""
    if name != "lr" and isinstance(like, NUMBER) and isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a number, not {value!r}")


def check_pair(name: str, value: Any) -> None:
    """Raise for an option that has to be two numbers."""
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"Invalid {name}: {value}, two numbers are needed")


def check_one_element(lr: Scalar) -> None:
    """Raise what torch raises for a learning rate that is not one number."""
    if not isinstance(lr, NUMBER):
        raise TypeError(
            f"lr must be a number, not a {type(lr).__name__}: the parameters go to init, as in "
            "optimizer.init(params), a new learning rate to set_hyper(state, lr=...), a schedule is in lr_scheduler"
        )
    if np.size(lr) != 1:
        raise ValueError("Tensor lr must be 1-element")


def check_lr(lr: Scalar) -> None:
    """Raise what torch raises for a learning rate that is not one number of at least 0."""
    check_one_element(lr)
    check_at_least_0("learning rate", lr)


def check_at_least_0(what: str, value: Scalar) -> None:
    """Raise torch's `Invalid {what}: {value}` unless value >= 0 (NaN is refused too)."""
    check_number(what, value)
    if is_known(value) and not value >= 0.0:
        raise ValueError(f"Invalid {what}: {value}")


def check_above_0(what: str, value: Scalar) -> None:
    """Raise torch's `Invalid {what}: {value}` unless value > 0."""
    if is_known(value) and not value > 0.0:
        raise ValueError(f"Invalid {what}: {value}")


def check_should_be(what: str, value: Scalar, at_least: float) -> None:
    """The same in the words of torch's newer optimizers: `{what} should be >= {at_least} but is: {value}`."""
    if is_known(value) and not value >= at_least:
        raise ValueError(f"{what} should be >= {at_least:g} but is: {value}")


def check_moments(options: Mapping[str, Any]) -> None:
    """Raise what torch's Adam and those like it raise for `lr`, `eps`, `betas` and `weight_decay`, in that order."""
    check_lr(options["lr"])
    check_at_least_0("epsilon value", options["eps"])
    check_betas(options["betas"])
    check_at_least_0("weight_decay value", options["weight_decay"])


def check_betas(betas: Sequence[Scalar]) -> None:
    """Raise what torch raises for betas outside [0, 1), and at once where they are not two."""
    check_pair("betas", betas)
    for index, beta in enumerate(betas):
        if is_known(beta) and not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")

"""torch.optim.swa_utils as pure functions: averages of weights, SWALR, and BatchNorm statistics for them.

Example:
  >>> import jax.numpy as jnp
  >>> params = {"w": jnp.array([1.0])}
  >>> swa = averaged_model()                        # AveragedModel(model)
  >>> averaged = swa.init(params)
  >>> for w in (2.0, 4.0, 9.0):
  ...     averaged = swa.update(averaged, {"w": jnp.array([w])})     # swa_model.update_parameters(model)
  >>> averaged.params["w"]
  Array([5.], dtype=float32)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.batch_norm import update_bn as update_bn
from jaxopt_port.dtypes import times, widened
from jaxopt_port.lr_scheduler import swalr as swalr
from jaxopt_port.optimizer import described
from jaxopt_port.rule import as_complex, as_real
from jaxopt_port.rules.tensor_ops import lerp, over, rounded
from jaxopt_port.scalars import float64

Tree = Any
AvgFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
MultiAvgFn = Callable[[Sequence[jax.Array], Sequence[jax.Array], jax.Array], Sequence[jax.Array]]

__all__ = [
    "AveragedModel",
    "AveragedState",
    "averaged_model",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "swalr",
    "update_bn",
]

swa_lr = swalr  # its name in version 0.1


class AveragedState(NamedTuple):
    """The state of an `AveragedModel`, a pytree.

    Args:
      n_averaged: how many updates, 0-d int32.
      params: the average.
      buffers: the buffers' average, or with `use_buffers=False` the last ones.
    """

    n_averaged: jax.Array
    params: Tree
    buffers: Tree


def get_ema_multi_avg_fn(decay: float = 0.999) -> MultiAvgFn:
    r"""The exponential moving average as torch takes it of all arrays at once, by `lerp`.

    .. math:: a_{t+1} = a_t + (1 - d) (w - a_t)

    Args:
      decay: :math:`d`.

    Returns:
      A `multi_avg_fn` for `averaged_model`.

    Raises:
      ValueError: a decay outside [0, 1], in torch's words.

    Example:
      >>> get_ema_multi_avg_fn(0.75)([jnp.array([1.0])], [jnp.array([5.0])], jnp.array(1))
      [Array([2.], dtype=float32)]

    Source: torch/optim/swa_utils.py.
    """
    return partial(_each, partial(_ema_by_lerp, _checked(decay)))


def get_swa_multi_avg_fn() -> MultiAvgFn:
    r"""The mean of all weights as torch takes it of all arrays at once, by `lerp`.

    .. math:: a_{n+1} = a_n + \frac{1}{n + 1} (w - a_n)

    The factor is rounded to float32, as in torch, for float64 parameters too.

    Returns:
      A `multi_avg_fn` for `averaged_model`.

    Raises:
      RuntimeError: at an update, integers, as in torch.

    Example:
      >>> get_swa_multi_avg_fn()([jnp.array([1.0])], [jnp.array([5.0])], jnp.array(3))
      [Array([2.], dtype=float32)]

    Source: torch/optim/swa_utils.py.
    """
    return partial(_each, _swa_by_lerp)


def get_ema_avg_fn(decay: float = 0.999) -> AvgFn:
    r"""The exponential moving average of one array.

    .. math:: a_{t+1} = d a_t + (1 - d) w

    Args:
      decay: :math:`d`.

    Returns:
      An `avg_fn` for `averaged_model`.

    Raises:
      ValueError: a decay outside [0, 1], in torch's words.

    Example:
      >>> get_ema_avg_fn(0.75)(jnp.array([1.0]), jnp.array([5.0]), jnp.array(1))
      Array([2.], dtype=float32)

    Source: torch/optim/swa_utils.py.
    """
    return partial(_ema, _checked(decay))


def get_swa_avg_fn() -> AvgFn:
    r"""The mean of all weights, of one array.

    .. math:: a_{n+1} = a_n + \frac{w - a_n}{n + 1}

    Returns:
      An `avg_fn` for `averaged_model`.

    Example:
      >>> get_swa_avg_fn()(jnp.array([1.0]), jnp.array([5.0]), jnp.array(3))
      Array([2.], dtype=float32)

    Source: torch/optim/swa_utils.py.
    """
    return _swa


@dataclass(frozen=True)
class AveragedModel:
    """What `averaged_model` returns: `init(params) -> state` and `update(state, params) -> state`."""

    multi_avg_fn: MultiAvgFn
    use_buffers: bool = False

    def __post_init__(self) -> None:
        if not callable(self.multi_avg_fn):
            raise TypeError(
                "AveragedModel is what averaged_model(avg_fn=...) returns, and takes no model: the parameters go to "
                f"its init(params), not {described(self.multi_avg_fn)} here"
            )

    def init(self, params: Tree, buffers: Tree = None) -> AveragedState:
        """torch's constructor: a copy of the parameters, safe where they are donated.

        Args:
          params: the parameters.
          buffers: what else the model holds, as Flax's `batch_stats`.

        Returns:
          The first state, an `AveragedState`.
        """
        with float64():
            copied = jax.tree.map(jnp.copy, (params, buffers))
        return AveragedState(jnp.zeros((), jnp.int32), *copied)

    def update(self, state: AveragedState, params: Tree, buffers: Tree = None) -> AveragedState:
        """`swa_model.update_parameters(model)`: the first time a copy, then an average.

        Args:
          state: what `init` or the last update returned.
          params: the parameters now.
          buffers: the buffers now; without them those of the state stay.

        Returns:
          The new state.

        Raises:
          ValueError: a tree that is not that of the state.
        """
        buffers = state.buffers if buffers is None else buffers
        old, new = (state.params, state.buffers), (params, buffers)
        if not self.use_buffers:
            old, new = old[:1], new[:1]
        with float64():
            averaged, treedef = jax.tree.flatten(old)
            current = jax.tree.leaves(jax.tree.map(lambda _, w: w, old, new))
            means = self.multi_avg_fn(averaged, current, state.n_averaged)
            first = state.n_averaged == 0
            kept = [jnp.where(first, w, m.astype(a.dtype)) for a, w, m in zip(averaged, current, means, strict=True)]
            copied = () if self.use_buffers else (jax.tree.map(jnp.copy, buffers),)
            n_averaged = state.n_averaged + jnp.ones_like(state.n_averaged)
            return AveragedState(n_averaged, *treedef.unflatten(kept), *copied)


def averaged_model(
    *, avg_fn: AvgFn | None = None, multi_avg_fn: MultiAvgFn | None = None, use_buffers: bool = False
) -> AveragedModel:
    """An average of the weights along a run: torch.optim.swa_utils.AveragedModel.

    Without a function it is their mean, for stochastic weight averaging: `get_swa_avg_fn()`, as in torch on CPU (on
    GPU torch takes `get_swa_multi_avg_fn()`). For an exponential moving average give
    `multi_avg_fn=get_ema_multi_avg_fn(0.999)`.

    Args:
      avg_fn: `(averaged, current, n_averaged) -> averaged`, for one array.
      multi_avg_fn: the same for lists of all arrays.
      use_buffers: average the buffers too. Without they are those of the last update.

    Returns:
      An `AveragedModel`.

    Raises:
      ValueError: both functions, in torch's words.

    Example:
      >>> ema = averaged_model(multi_avg_fn=get_ema_multi_avg_fn(0.75))
      >>> averaged = ema.update(ema.init({"w": jnp.zeros(1)}), {"w": jnp.ones(1)})
      >>> ema.update(averaged, {"w": jnp.array([5.0])}).params["w"]
      Array([2.], dtype=float32)

    Source: torch/optim/swa_utils.py; Izmailov et al., Averaging weights leads to wider optima and better
    generalization, 2018.
    """
    if avg_fn is not None and multi_avg_fn is not None:
        raise ValueError("Only one of avg_fn and multi_avg_fn should be provided")
    return AveragedModel(multi_avg_fn or partial(_each, avg_fn or get_swa_avg_fn()), use_buffers)


def __getattr__(name: str) -> Any:
    hint = ": it is swalr, without the optimizer, whose state goes to init(state)" if name == "SWALR" else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


# What follows is at the top of the module, and bound by `partial`, so that an `AveragedModel` can be pickled.


def _checked(decay: float) -> float:
    if decay < 0.0 or decay > 1.0:
        raise ValueError(f"Invalid decay value {decay} provided. Please provide a value in [0,1] range.")
    return decay


def _each(
    avg_fn: AvgFn, averaged: Sequence[jax.Array], current: Sequence[jax.Array], n: jax.Array
) -> Sequence[jax.Array]:
    return [avg_fn(a, w, n) for a, w in zip(averaged, current, strict=True)]


def _ema(decay: float, averaged: jax.Array, current: jax.Array, n_averaged: jax.Array) -> jax.Array:
    old, new = (x.astype(_floating(x.dtype)) for x in as_real((averaged, current)))
    return as_complex(averaged, rounded(times(old, decay)) + rounded(times(new, 1 - decay)))


def _ema_by_lerp(decay: float, averaged: jax.Array, current: jax.Array, n_averaged: jax.Array) -> jax.Array:
    if not jnp.issubdtype(averaged.dtype, jnp.inexact):
        return _ema(decay, averaged, current, n_averaged)
    return _lerp(averaged, current, 1 - decay)


def _swa(averaged: jax.Array, current: jax.Array, n_averaged: jax.Array) -> jax.Array:
    old, new = as_real((averaged, current))
    dtype = _floating(old.dtype)
    way, number = (new - old).astype(dtype), (n_averaged + 1).astype(dtype)
    if jnp.iscomplexobj(averaged):  # torch divides complex numbers by way of the reciprocal
        return as_complex(averaged, old + rounded(way * (1 / number)))
    return old.astype(dtype) + over(way, number)


def _swa_by_lerp(averaged: jax.Array, current: jax.Array, n_averaged: jax.Array) -> jax.Array:
    if not jnp.issubdtype(averaged.dtype, jnp.inexact):
        raise RuntimeError("Integer division with addcdiv is no longer supported: use avg_fn=get_swa_avg_fn()")
    return _lerp(averaged, current, 1 / (n_averaged + 1).astype(jnp.float32))


def _lerp(start: jax.Array, end: jax.Array, weight: float | jax.Array) -> jax.Array:
    """torch.lerp with a number: 16-bit arrays are computed in float32 and rounded once."""
    dtype = widened(start.dtype)
    return lerp(start.astype(dtype), end.astype(dtype), jnp.asarray(weight, dtype)).astype(start.dtype)


def _floating(dtype: Any) -> Any:
    """The real dtype of an average: float32 for integers, as in torch."""
    return jnp.finfo(dtype).dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.float32

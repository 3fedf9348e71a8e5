"""The rates of a scheduler without an optimizer of ours: as a list, as an optax.Schedule."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_port.lr_scheduler.scheduler import Sched, Scheduler
from jaxopt_port.number import to_float64, to_number
from jaxopt_port.optimizer import OptState
from jaxopt_port.scalars import float64


def rates(scheduler: Scheduler, lr: float, steps: int) -> list[float]:
    """The rates of the first `steps` epochs.

    Args:
      scheduler: any but `reduce_lr_on_plateau`.
      lr: the initial rate.
      steps: how many.

    Returns:
      A list of them, that of group 0.

    Example:
      >>> from jaxopt_port.lr_scheduler import step_lr
      >>> rates(step_lr(step_size=2, gamma=0.5), lr=1.0, steps=5)
      [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    sched, state = _init(scheduler, lr)
    found = scheduler.get_last_lr(sched)
    while len(found) < steps:
        sched, state = scheduler.step(sched, state)
        found += scheduler.get_last_lr(sched)
    return found


def as_schedule(scheduler: Scheduler, lr: float, steps: int | None = None) -> optax.Schedule:
    """The rates of a scheduler for one of optax's optimizers.

    Args:
      scheduler: any but `reduce_lr_on_plateau`.
      lr: the initial rate.
      steps: give the rates of `step`, from a table of so many; after them the last one stays. Without it the rates are
        those of `step_to`: the closed form, which differs in the last bits of a float64. A scheduler whose rates
        depend on those before (sequential, chained, multiplicative, SWALR) has none and needs `steps`.

    Returns:
      `count -> rate`, jittable; a float32, or a float64 under `jax_enable_x64`.

    Raises:
      ValueError: the scheduler needs `steps`, or a metric.

    Example:
      >>> import optax
      >>> from jaxopt_port.lr_scheduler import step_lr
      >>> schedule = as_schedule(step_lr(step_size=10), lr=0.5)
      >>> optimizer = optax.sgd(schedule)
      >>> schedule(10)
      Array(0.05, dtype=float32)
    """
    if scheduler.name == "ReduceLROnPlateau":
        raise ValueError(
            "ReduceLROnPlateau depends on a metric and is no schedule of the step: call its step(sched, state, metric) "
            "in the training loop"
        )
    if steps is None and not scheduler.by_epoch:
        raise ValueError(
            f"the rates of {scheduler.name} depend on those before: give as_schedule the steps to tabulate"
        )
    table = None if steps is None else np.array(rates(scheduler, lr, steps))
    sched, state = _init(scheduler, lr)

    def schedule(count: Any) -> jax.Array:
        dtype = jax.dtypes.canonicalize_dtype(float)
        with float64():
            if table is None:
                rate = to_float64(scheduler.step_to(sched, state, count)[0]["_last_lr"][0])
            else:
                rate = jnp.asarray(table).at[jnp.asarray(count)].get(mode="clip")
            return jnp.asarray(rate).astype(dtype)

    return schedule


def _init(scheduler: Scheduler, lr: float) -> tuple[Sched, OptState]:
    group = {"lr": to_number(lr), "momentum": to_number(0.0)}  # momentum for the schedulers that cycle it
    return scheduler.init(OptState(steps=({},), slots=None, param_groups=(group,)))

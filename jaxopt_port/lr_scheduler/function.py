"""Schedulers that ask a Python function: lambda, multiplicative; and its table for jit."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_port.lr_scheduler.number import Double, Number, ask
from jaxopt_port.lr_scheduler.scheduler import GROUP_ORDER, Groups, Sched, Scheduler, factory, scheduler, unchanged

Function = Callable[[Any], Any]


def tabulate(function: Function, steps: int) -> Function:
    """`function` of an epoch as a table, for a function that cannot be traced.

    Under jit the epoch has no value, so that a function with an `if` or of `math` cannot be called: it is looked up.
    Called from Python the function is asked itself.

    Args:
      function: `epoch -> factor`.
      steps: the last epoch of the table. Under jit the rate after it is NaN.

    Returns:
      A function of the epoch, for `lambda_lr`, `multiplicative_lr` or the `scale_fn` of `cyclic_lr`.

    Example:
      >>> import jax, jaxopt_port as optim
      >>> scheduler = lambda_lr(tabulate(lambda epoch: 1.0 if epoch < 2 else 0.1, steps=10))
      >>> sched, state = scheduler.init(optim.sgd(lr=0.5).init({}))
      >>> step = jax.jit(scheduler.step)
      >>> for epoch in range(2):
      ...     sched, state = step(sched, state)
      ...     print(scheduler.get_last_lr(sched))
      [0.5]
      [0.05]
    """
    values = np.array([float(function(epoch)) for epoch in range(steps + 1)])

    def look_up(epoch: Number) -> Number:
        if not isinstance(epoch, Double):
            return function(epoch)
        at = epoch.value.astype(jnp.int32)
        return Double(jnp.asarray(values).at[at].get(mode="fill", fill_value=jnp.nan), epoch.one)

    return look_up


def _functions(lr_lambda: Function | Sequence[Function], groups: Groups) -> list[Function]:
    if not isinstance(lr_lambda, list | tuple):
        return [lr_lambda] * len(groups)  # type: ignore[list-item]
    if len(lr_lambda) != len(groups):
        raise ValueError(f"Expected {len(groups)} lr_lambdas, but got {len(lr_lambda)}{GROUP_ORDER}")
    return list(lr_lambda)


@factory
def lambda_lr(lr_lambda: Function | Sequence[Function], last_epoch: int = -1) -> Scheduler:
    r"""Multiplies the base rate by a function of the epoch: torch's LambdaLR.

    .. math:: \eta_t = \eta f(t)

    Args:
      lr_lambda: the function, or a list with one for each group. From Python it gets an int. Under jit it gets a
        traced number, which does for arithmetic (`lambda epoch: 0.95**epoch`); for all else there is `tabulate`. One
        that returns float32 arrays, as optax's schedules do, costs the rate its last bits.
      last_epoch: the epoch to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Raises:
      ValueError: at `init`, another number of functions than of groups.

    Example:
      >>> from jaxopt_port.lr_scheduler import rates
      >>> rates(lambda_lr(lambda epoch: 0.5**epoch), lr=1.0, steps=4)
      [1.0, 0.5, 0.25, 0.125]

    Source: torch/optim/lr_scheduler.py, LambdaLR.
    """

    def setup(groups: Groups) -> Sched:
        _functions(lr_lambda, groups)
        return {}

    def get_lr(s: Sched, groups: Groups) -> list[Number]:
        functions = _functions(lr_lambda, groups)
        return [base_lr * ask(f, s["last_epoch"]) for f, base_lr in zip(functions, s["base_lrs"], strict=True)]

    options = {"lr_lambdas": lr_lambda}
    return scheduler("LambdaLR", get_lr, options=options, last_epoch=last_epoch, setup=setup, by_epoch=True)


@factory
def multiplicative_lr(lr_lambda: Function | Sequence[Function], last_epoch: int = -1) -> Scheduler:
    r"""Multiplies the rate by a function of the epoch: torch's MultiplicativeLR.

    .. math:: \eta_t = \eta_{t-1} f(t)

    Args:
      lr_lambda: the function, or a list with one for each group; as in `lambda_lr`.
      last_epoch: the epoch to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Raises:
      TypeError: at `init`, what is not a function.
      ValueError: at `init`, another number of functions than of groups.

    Example:
      >>> from jaxopt_port.lr_scheduler import rates
      >>> rates(multiplicative_lr(lambda epoch: 1 / epoch), lr=1.0, steps=3)
      [1.0, 1.0, 0.5]

    Source: torch/optim/lr_scheduler.py, MultiplicativeLR.
    """

    def setup(groups: Groups) -> Sched:
        for function in _functions(lr_lambda, groups):
            if not callable(function):
                raise TypeError(f"lr_lambda should be a function, but got {type(function).__name__}")
        return {}

    def get_lr(s: Sched, groups: Groups) -> list[Number]:
        functions = _functions(lr_lambda, groups)
        return [group["lr"] * ask(f, s["last_epoch"]) for f, group in zip(functions, groups, strict=True)]

    return scheduler(
        "MultiplicativeLR",
        get_lr,
        options={"lr_lambdas": lr_lambda},
        last_epoch=last_epoch,
        setup=setup,
        first=unchanged,
    )

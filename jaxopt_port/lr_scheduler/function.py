"""Schedulers that ask a Python function: lambda, multiplicative; and its table for jit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from jaxopt_port.lr_scheduler.double import Double, Float, value_at
from jaxopt_port.lr_scheduler.scheduler import Groups, LRScheduler, Sched, Scheduler, factory, lrs, spread

Function = Callable[[Any], Any]


@dataclass(frozen=True, eq=False, repr=False)
class LambdaLR(LRScheduler):
    """torch's LambdaLR, see `lambda_lr`."""

    lr_lambda: Function | Sequence[Function]
    last_epoch: int

    @property
    def options(self) -> Mapping[str, Any]:
        return {"lr_lambdas": self.lr_lambda}

    def functions(self, groups: Groups) -> list[Function]:
        """The function of each group."""
        return spread(groups, self.lr_lambda, "Expected {1} lr_lambdas, but got {0}")

    def attributes(self, groups: Groups) -> Sched:
        self.functions(groups)
        return {}

    def factors(self, s: Sched, groups: Groups) -> list[Float]:
        """What the functions make of the epoch, for each of the groups that the scheduler was made for."""
        functions = self.functions(groups[: len(s["base_lrs"])])
        return [value_at("lr_lambda", function, s["last_epoch"]) for function in functions]

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        return [base_lr * factor for factor, base_lr in zip(self.factors(s, groups), s["base_lrs"], strict=True)]


class MultiplicativeLR(LambdaLR):
    """torch's MultiplicativeLR, see `multiplicative_lr`."""

    by_epoch = False

    def attributes(self, groups: Groups) -> Sched:
        for function in self.functions(groups):
            if not callable(function):
                raise TypeError(f"lr_lambda should be a function, but got {type(function).__name__}")
        return {}

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        return [group["lr"] * factor for factor, group in zip(self.factors(s, groups), groups, strict=True)]

    def first_lr(self, s: Sched, groups: Groups) -> list[Float]:
        return lrs(groups)


@dataclass(frozen=True)
class Table:
    """A function of an epoch, and under jit its values: see `tabulate`."""

    function: Function
    values: tuple[float, ...] = field(repr=False)

    def __call__(self, epoch: Float) -> Float:
        if not isinstance(epoch, Double):
            return self.function(epoch)
        at = epoch.value.astype(jnp.int32)
        return Double(jnp.array(self.values).at[at].get(mode="fill", fill_value=jnp.nan), epoch.one)


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
    return Table(function, tuple(float(function(epoch)) for epoch in range(steps + 1)))


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
    return LambdaLR(lr_lambda, last_epoch)


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
    return MultiplicativeLR(lr_lambda, last_epoch)

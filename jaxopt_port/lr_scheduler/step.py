"""Schedulers that multiply the rate by one factor, at some epochs or at all: step, multi-step, exponential."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real

from jaxopt_port.lr_scheduler.double import Float, count, either
from jaxopt_port.lr_scheduler.scheduler import Groups, LRScheduler, Sched, Scheduler, factory, lrs


@dataclass(frozen=True, eq=False, repr=False)
class StepLR(LRScheduler):
    """torch's StepLR, see `step_lr`."""

    step_size: int
    gamma: float
    last_epoch: int

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        stays = (s["last_epoch"] == 0) | (s["last_epoch"] % self.step_size != 0)
        return either(stays, lambda: lrs(groups), lambda: [group["lr"] * self.gamma for group in groups])

    def closed_form_lr(self, s: Sched, groups: Groups) -> list[Float]:
        return [base_lr * self.gamma ** (s["last_epoch"] // self.step_size) for base_lr in s["base_lrs"]]


@dataclass(frozen=True, eq=False, repr=False)
class MultiStepLR(LRScheduler):
    """torch's MultiStepLR, see `multi_step_lr`."""

    milestones: Counter[int]
    gamma: float
    last_epoch: int

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        times = count(s["last_epoch"] == milestone for milestone in sorted(self.milestones.elements()))
        return either(times == 0, lambda: lrs(groups), lambda: [group["lr"] * self.gamma**times for group in groups])

    def closed_form_lr(self, s: Sched, groups: Groups) -> list[Float]:
        times = count(s["last_epoch"] >= milestone for milestone in sorted(self.milestones.elements()))
        return [base_lr * self.gamma**times for base_lr in s["base_lrs"]]


@dataclass(frozen=True, eq=False, repr=False)
class ExponentialLR(LRScheduler):
    """torch's ExponentialLR, see `exponential_lr`."""

    gamma: float
    last_epoch: int

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        return [group["lr"] * self.gamma for group in groups]

    def closed_form_lr(self, s: Sched, groups: Groups) -> list[Float]:
        return [base_lr * self.gamma ** s["last_epoch"] for base_lr in s["base_lrs"]]

    def first_lr(self, s: Sched, groups: Groups) -> list[Float]:
        return lrs(groups)


@factory
def step_lr(step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> Scheduler:
    r"""Decays the rate every `step_size` epochs: torch's StepLR.

    .. math:: \eta_t = \gamma \eta_{t-1} \text{ where } t \bmod \text{step\_size} = 0; \quad
      \text{closed: } \eta_t = \eta_0 \gamma^{\lfloor t / \text{step\_size} \rfloor}

    Args:
      step_size: epochs between two decays.
      gamma: the factor.
      last_epoch: the epoch to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Raises:
      ValueError: `step_size` is not a positive number.

    Example:
      >>> import jaxopt_port as optim
      >>> state = optim.sgd(lr=0.5).init({})
      >>> scheduler = step_lr(step_size=2)
      >>> sched, state = scheduler.init(state)           # StepLR(optimizer, step_size=2)
      >>> for epoch in range(4):
      ...     sched, state = scheduler.step(sched, state)
      ...     print(scheduler.get_last_lr(sched))
      [0.5]
      [0.05]
      [0.05]
      [0.005000000000000001]

    Source: torch/optim/lr_scheduler.py, StepLR.
    """
    if not isinstance(step_size, Real) or step_size <= 0:
        raise ValueError(f"Expected positive integer step_size, but got {step_size!r}")
    return StepLR(step_size, gamma, last_epoch)


@factory
def multi_step_lr(milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1) -> Scheduler:
    r"""Decays the rate at given epochs: torch's MultiStepLR.

    .. math:: \eta_t = \gamma^{\#\{m = t\}} \eta_{t-1}; \quad
      \text{closed: } \eta_t = \eta_0 \gamma^{\#\{m \le t\}}

    Args:
      milestones: the epochs; one that is given twice decays twice.
      gamma: the factor.
      last_epoch: the epoch to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Example:
      >>> from jaxopt_port.lr_scheduler import rates
      >>> rates(multi_step_lr([1, 3], gamma=0.5), lr=1.0, steps=4)
      [1.0, 0.5, 0.5, 0.25]

    Source: torch/optim/lr_scheduler.py, MultiStepLR.
    """
    return MultiStepLR(Counter(milestones), gamma, last_epoch)


@factory
def exponential_lr(gamma: float, last_epoch: int = -1) -> Scheduler:
    r"""Decays the rate every epoch: torch's ExponentialLR.

    .. math:: \eta_t = \gamma \eta_{t-1}; \quad \text{closed: } \eta_t = \eta_0 \gamma^t

    Args:
      gamma: the factor.
      last_epoch: the epoch to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Example:
      >>> from jaxopt_port.lr_scheduler import rates
      >>> rates(exponential_lr(gamma=0.5), lr=1.0, steps=4)
      [1.0, 0.5, 0.25, 0.125]

    Source: torch/optim/lr_scheduler.py, ExponentialLR.
    """
    return ExponentialLR(gamma, last_epoch)

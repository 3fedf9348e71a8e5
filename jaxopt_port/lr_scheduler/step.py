"""Schedulers that multiply the rate by one factor, at some epochs or at all: step, multi-step, exponential."""

from collections import Counter
from collections.abc import Iterable
from numbers import Real

from jaxopt_port.lr_scheduler.number import Number, count, either
from jaxopt_port.lr_scheduler.scheduler import Groups, Sched, Scheduler, factory, lrs, scheduler, unchanged


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

    def get_lr(s: Sched, groups: Groups) -> list[Number]:
        stays = (s["last_epoch"] == 0) | (s["last_epoch"] % step_size != 0)
        return either(stays, lambda: lrs(groups), lambda: [group["lr"] * gamma for group in groups])

    def closed_form(s: Sched, groups: Groups) -> list[Number]:
        return [base_lr * gamma ** (s["last_epoch"] // step_size) for base_lr in s["base_lrs"]]

    options = {"step_size": step_size, "gamma": gamma}
    return scheduler("StepLR", get_lr, closed_form, options=options, last_epoch=last_epoch)


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
    counter = Counter(milestones)
    elements = sorted(counter.elements())

    def get_lr(s: Sched, groups: Groups) -> list[Number]:
        times = count(s["last_epoch"] == milestone for milestone in elements)
        return either(times == 0, lambda: lrs(groups), lambda: [group["lr"] * gamma**times for group in groups])

    def closed_form(s: Sched, groups: Groups) -> list[Number]:
        times = count(s["last_epoch"] >= milestone for milestone in elements)
        return [base_lr * gamma**times for base_lr in s["base_lrs"]]

    options = {"milestones": counter, "gamma": gamma}
    return scheduler("MultiStepLR", get_lr, closed_form, options=options, last_epoch=last_epoch)


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

    def get_lr(s: Sched, groups: Groups) -> list[Number]:
        return [group["lr"] * gamma for group in groups]

    def closed_form(s: Sched, groups: Groups) -> list[Number]:
        return [base_lr * gamma ** s["last_epoch"] for base_lr in s["base_lrs"]]

    options = {"gamma": gamma}
    return scheduler("ExponentialLR", get_lr, closed_form, options=options, last_epoch=last_epoch, first=unchanged)

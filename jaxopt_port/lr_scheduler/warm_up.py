"""Schedulers that go from one factor of the base rate to another: constant, linear, polynomial."""

from dataclasses import dataclass

from jaxopt_port.lr_scheduler.double import Float, either, python_min
from jaxopt_port.lr_scheduler.scheduler import Groups, LRScheduler, Sched, Scheduler, factory, lrs


@dataclass(frozen=True, eq=False, repr=False)
class ConstantLR(LRScheduler):
    """torch's ConstantLR, see `constant_lr`."""

    factor: float
    total_iters: int
    last_epoch: int

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        def later() -> list[Float]:
            stays = s["last_epoch"] != self.total_iters
            return either(stays, lambda: lrs(groups), lambda: [group["lr"] * (1.0 / self.factor) for group in groups])

        return either(s["last_epoch"] == 0, lambda: [group["lr"] * self.factor for group in groups], later)

    def closed_form_lr(self, s: Sched, groups: Groups) -> list[Float]:
        over = either(s["last_epoch"] >= self.total_iters, lambda: 1, lambda: 0)
        return [base_lr * (self.factor + over * (1 - self.factor)) for base_lr in s["base_lrs"]]


@dataclass(frozen=True, eq=False, repr=False)
class LinearLR(LRScheduler):
    """torch's LinearLR, see `linear_lr`."""

    start_factor: float
    end_factor: float
    total_iters: int
    last_epoch: int

    @property
    def gain(self) -> float:
        return self.end_factor - self.start_factor

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        t = s["last_epoch"]

        def on_the_way() -> list[Float]:
            factor = 1.0 + self.gain / (self.total_iters * self.start_factor + (t - 1) * self.gain)
            return [group["lr"] * factor for group in groups]

        return either((t == 0) | (t > self.total_iters), lambda: self.first_lr(s, groups), on_the_way)

    def closed_form_lr(self, s: Sched, groups: Groups) -> list[Float]:
        factor = self.start_factor + self.gain * python_min(self.total_iters, s["last_epoch"]) / self.total_iters
        return [base_lr * factor for base_lr in s["base_lrs"]]

    def first_lr(self, s: Sched, groups: Groups) -> list[Float]:
        at_0 = s["last_epoch"] == 0
        return either(at_0, lambda: [group["lr"] * self.start_factor for group in groups], lambda: lrs(groups))


@dataclass(frozen=True, eq=False, repr=False)
class PolynomialLR(LRScheduler):
    """torch's PolynomialLR, see `polynomial_lr`."""

    total_iters: int
    power: float
    last_epoch: int

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        t = s["last_epoch"]

        def decayed() -> list[Float]:
            factor = ((1.0 - t / self.total_iters) / (1.0 - (t - 1) / self.total_iters)) ** self.power
            return [group["lr"] * factor for group in groups]

        return either(t > self.total_iters, lambda: lrs(groups), decayed)

    def closed_form_lr(self, s: Sched, groups: Groups) -> list[Float]:
        factor = (1.0 - python_min(self.total_iters, s["last_epoch"]) / self.total_iters) ** self.power
        return [base_lr * factor for base_lr in s["base_lrs"]]

    def first_lr(self, s: Sched, groups: Groups) -> list[Float]:
        return lrs(groups)


@factory
def constant_lr(factor: float = 1.0 / 3, total_iters: int = 5, last_epoch: int = -1) -> Scheduler:
    r"""Multiplies the rate by `factor` until `total_iters`: torch's ConstantLR.

    .. math:: \eta_0 = \eta f, \quad \eta_T = \eta_{T-1} (1 / f); \quad
      \text{closed: } \eta_t = \eta (f + [t \ge T] (1 - f))

    Args:
      factor: the factor, :math:`f`.
      total_iters: the epoch at which it is undone, :math:`T`.
      last_epoch: the epoch to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Raises:
      ValueError: a factor outside [0, 1].
      ZeroDivisionError: `step` cannot undo a factor of 0: at `total_iters`, as torch, and at once under jit.

    Example:
      >>> from jaxopt_port.lr_scheduler import rates
      >>> rates(constant_lr(factor=0.5, total_iters=2), lr=1.0, steps=4)
      [0.5, 0.5, 1.0, 1.0]

    Source: torch/optim/lr_scheduler.py, ConstantLR.
    """
    if factor > 1.0 or factor < 0:
        raise ValueError("Constant multiplicative factor expected to be between 0 and 1.")
    return ConstantLR(factor, total_iters, last_epoch)


@factory
def linear_lr(
    start_factor: float = 1.0 / 3, end_factor: float = 1.0, total_iters: int = 5, last_epoch: int = -1
) -> Scheduler:
    r"""Goes from one factor of the rate to another along a line: torch's LinearLR.

    .. math:: \eta_t = \eta_{t-1} \left(1 + \frac{b - a}{T a + (t - 1)(b - a)}\right) \text{ for } t \le T; \quad
      \text{closed: } \eta_t = \eta (a + (b - a) \min(T, t) / T)

    Args:
      start_factor: the factor at the start, :math:`a`.
      end_factor: the factor at the end, :math:`b`.
      total_iters: how many epochs it takes, :math:`T`.
      last_epoch: the epoch to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Raises:
      ValueError: a start factor outside (0, 1], an end factor outside [0, 1].

    Example:
      >>> from jaxopt_port.lr_scheduler import rates
      >>> rates(linear_lr(start_factor=0.5, total_iters=2), lr=1.0, steps=4)
      [0.5, 0.75, 1.0, 1.0]

    Source: torch/optim/lr_scheduler.py, LinearLR.
    """
    if start_factor > 1.0 or start_factor <= 0:
        raise ValueError("Starting multiplicative factor expected to be greater than 0 and less or equal to 1.")
    if end_factor > 1.0 or end_factor < 0:
        raise ValueError("Ending multiplicative factor expected to be between 0 and 1.")
    return LinearLR(start_factor, end_factor, total_iters, last_epoch)


@factory
def polynomial_lr(total_iters: int = 5, power: float = 1.0, last_epoch: int = -1) -> Scheduler:
    r"""Decays the rate to 0 along a polynomial: torch's PolynomialLR.

    .. math:: \eta_t = \eta_{t-1} \left(\frac{1 - t / T}{1 - (t - 1) / T}\right)^p \text{ for } t \le T; \quad
      \text{closed: } \eta_t = \eta (1 - \min(T, t) / T)^p

    Args:
      total_iters: how many epochs it takes, :math:`T`.
      power: :math:`p`.
      last_epoch: the epoch to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Example:
      >>> from jaxopt_port.lr_scheduler import rates
      >>> rates(polynomial_lr(total_iters=4), lr=1.0, steps=5)
      [1.0, 0.75, 0.5, 0.25, 0.0]

    Source: torch/optim/lr_scheduler.py, PolynomialLR.
    """
    return PolynomialLR(total_iters, power, last_epoch)

"""Schedulers along a cosine: cosine annealing, with warm restarts, and SWALR."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxopt_port.lr_scheduler.double import Float, cos, either, int_log, python_max, python_min
from jaxopt_port.lr_scheduler.scheduler import Groups, LRScheduler, Sched, Scheduler, factory, lrs, per_group


@dataclass(frozen=True, eq=False, repr=False)
class CosineAnnealingLR(LRScheduler):
    """torch's CosineAnnealingLR, see `cosine_annealing_lr`."""

    T_max: int
    eta_min: float
    last_epoch: int

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        t, T_max, eta_min = s["last_epoch"], self.T_max, self.eta_min

        def resumed() -> list[Float]:
            factor = 1 + cos(t * math.pi / T_max)
            return [eta_min + (base_lr - eta_min) * factor / 2 for base_lr in s["base_lrs"]]

        def at_the_bottom() -> list[Float]:
            rise = 1 - cos(math.pi / T_max)
            return [
                group["lr"] + (base_lr - eta_min) * rise / 2
                for base_lr, group in zip(s["base_lrs"], groups, strict=True)
            ]

        def elsewhere() -> list[Float]:
            factor = (1 + cos(math.pi * t / T_max)) / (1 + cos(math.pi * (t - 1) / T_max))
            return [factor * (group["lr"] - eta_min) + eta_min for group in groups]

        def later() -> list[Float]:
            return either((t - 1 - T_max) % (2 * T_max) == 0, at_the_bottom, elsewhere)

        return either((s["_step_count"] == 1) & (t > 0), resumed, later)

    def closed_form_lr(self, s: Sched, groups: Groups) -> list[Float]:
        factor = 1 + cos(math.pi * s["last_epoch"] / self.T_max)
        return [self.eta_min + (base_lr - self.eta_min) * factor / 2 for base_lr in s["base_lrs"]]

    def first_lr(self, s: Sched, groups: Groups) -> list[Float]:
        return lrs(groups)


@dataclass(frozen=True, eq=False, repr=False)
class CosineAnnealingWarmRestarts(LRScheduler):
    """torch's CosineAnnealingWarmRestarts, see `cosine_annealing_warm_restarts`."""

    T_0: int
    T_mult: int
    eta_min: float
    last_epoch: int
    between_epochs = True

    def attributes(self, groups: Groups) -> Sched:
        return {"T_cur": float(self.last_epoch), "T_i": float(self.T_0)}

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        factor = 1 + cos(math.pi * s["T_cur"] / s["T_i"])
        return [self.eta_min + (base_lr - self.eta_min) * factor / 2 for base_lr in s["base_lrs"]]

    def move(self, s: Sched, epoch: Float | None) -> None:
        def on() -> list[Float]:
            t_cur = s["T_cur"] + 1
            again = t_cur >= s["T_i"]
            restarted = either(again, lambda: [t_cur % s["T_i"], s["T_i"] * self.T_mult], lambda: [t_cur, s["T_i"]])
            return [s["last_epoch"] + 1, *restarted]

        if epoch is None:
            new = either(s["last_epoch"] < 0, lambda: [0, *self._to(s, 0)], on)
        else:
            new = [math.floor(epoch), *self._to(s, epoch)]
        s["last_epoch"], s["T_cur"], s["T_i"] = new

    def _to(self, s: Sched, epoch: Float) -> list[Float]:
        """`T_cur` and `T_i` at an epoch."""
        if isinstance(epoch, int | float) and epoch < 0:
            raise ValueError(f"Expected non-negative epoch, but got {epoch}")
        T_0, T_mult = self.T_0, self.T_mult

        def later() -> list[Float]:
            if T_mult == 1:
                return [epoch % T_0, s["T_i"]]
            n = int_log(epoch / T_0 * (T_mult - 1) + 1, T_mult)
            return [epoch - T_0 * (T_mult**n - 1) / (T_mult - 1), T_0 * T_mult**n]

        return either(epoch >= T_0, later, lambda: [1.0 * epoch, float(T_0)])


@dataclass(frozen=True, eq=False, repr=False)
class SWALR(LRScheduler):
    """torch's SWALR, see `swalr`."""

    swa_lr: float | Sequence[float]
    anneal_epochs: int
    anneal_strategy: Literal["cos", "linear"]
    last_epoch: int
    by_epoch = False

    @property
    def options(self) -> Mapping[str, Any]:
        return {"_anneal_strategy": self.anneal_strategy, "anneal_epochs": self.anneal_epochs}

    def attributes(self, groups: Groups) -> Sched:
        for group, lr in zip(groups, per_group("swa_lr", groups, self.swa_lr), strict=True):
            group["swa_lr"] = lr
        return {}

    def alpha(self, step: Float) -> Float:
        t = python_max(0, python_min(1, step / max(1, self.anneal_epochs)))
        return (1 - cos(math.pi * t)) / 2 if self.anneal_strategy == "cos" else t

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        step = s["_step_count"] - 1
        if self.anneal_epochs == 0:
            step = python_max(1, step)
        before, now = self.alpha(step - 1), self.alpha(step)

        def initial(lr: Float, end: Float) -> Float:
            return either(before == 1, lambda: end, lambda: (lr - before * end) / (1 - before))

        return [group["swa_lr"] * now + initial(group["lr"], group["swa_lr"]) * (1 - now) for group in groups]


@factory
def cosine_annealing_lr(T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> Scheduler:
    r"""Anneals the rate along a cosine, down and up again: torch's CosineAnnealingLR.

    .. math:: \eta_t = \eta_{min} + (\eta_{t-1} - \eta_{min})
      \frac{1 + \cos(\pi t / T)}{1 + \cos(\pi (t - 1) / T)}; \quad
      \text{closed: } \eta_t = \eta_{min} + (\eta - \eta_{min}) (1 + \cos(\pi t / T)) / 2

    Args:
      T_max: epochs from the highest rate to the lowest, :math:`T`.
      eta_min: the lowest rate.
      last_epoch: the epoch to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Example:
      >>> from jaxopt_port.lr_scheduler import rates
      >>> rates(cosine_annealing_lr(T_max=2), lr=1.0, steps=3)
      [1.0, 0.5, 0.0]

    Source: torch/optim/lr_scheduler.py, CosineAnnealingLR; Loshchilov and Hutter, SGDR: Stochastic gradient descent
    with warm restarts, 2017 (without the restarts).
    """
    return CosineAnnealingLR(T_max, eta_min, last_epoch)


@factory
def cosine_annealing_warm_restarts(T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1) -> Scheduler:
    r"""Anneals the rate along a cosine and starts again: torch's CosineAnnealingWarmRestarts.

    .. math:: \eta_t = \eta_{min} + (\eta - \eta_{min}) (1 + \cos(\pi T_{cur} / T_i)) / 2

    `step_to` takes epochs between two as well, `epoch + batch / batches`.

    Args:
      T_0: epochs until the first restart.
      T_mult: how many times longer each stretch is than the one before.
      eta_min: the lowest rate.
      last_epoch: the epoch to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Raises:
      ValueError: an option out of range, in torch's words; a negative epoch.

    Example:
      >>> from jaxopt_port.lr_scheduler import rates
      >>> rates(cosine_annealing_warm_restarts(T_0=2), lr=1.0, steps=4)
      [1.0, 0.5, 1.0, 0.5]

    Source: torch/optim/lr_scheduler.py, CosineAnnealingWarmRestarts; Loshchilov and Hutter, SGDR: Stochastic gradient
    descent with warm restarts, 2017.
    """
    if T_0 <= 0 or not isinstance(T_0, int):
        raise ValueError(f"Expected positive integer T_0, but got {T_0}")
    if T_mult < 1 or not isinstance(T_mult, int):
        raise ValueError(f"Expected integer T_mult >= 1, but got {T_mult}")
    if not isinstance(eta_min, float | int):
        raise ValueError(f"Expected float or int eta_min, but got {eta_min} of type {type(eta_min)}")
    return CosineAnnealingWarmRestarts(T_0, T_mult, eta_min, last_epoch)


@factory
def swalr(
    swa_lr: float | Sequence[float],
    anneal_epochs: int = 10,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    last_epoch: int = -1,
) -> Scheduler:
    r"""Anneals the rate to a fixed value: torch's swa_utils.SWALR.

    .. math:: \eta_t = \alpha_t \eta_{swa} + (1 - \alpha_t)
      \frac{\eta_{t-1} - \alpha_{t-1} \eta_{swa}}{1 - \alpha_{t-1}}, \quad
      \alpha_t = (1 - \cos(\pi t / T)) / 2 \text{ or } t / T

    It counts its own steps: `step_to` does what `step` does.

    Args:
      swa_lr: the rate it ends at, or a list with one for each group.
      anneal_epochs: how many epochs it takes, :math:`T`.
      anneal_strategy: "cos" or "linear".
      last_epoch: the epoch to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Raises:
      ValueError: an option out of range, in torch's words; at `init`, another number of rates than of groups.

    Example:
      >>> from jaxopt_port.lr_scheduler import rates
      >>> rates(swalr(swa_lr=0.5, anneal_epochs=2, anneal_strategy="linear"), lr=1.0, steps=4)
      [1.0, 0.75, 0.5, 0.5]

    Source: torch/optim/swa_utils.py, SWALR; Izmailov et al., Averaging weights leads to wider optima and better
    generalization, 2018.
    """
    if anneal_strategy not in ("cos", "linear"):
        raise ValueError(f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy}")
    if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
        raise ValueError(f"anneal_epochs must be equal or greater than 0, got {anneal_epochs}")
    return SWALR(swa_lr, anneal_epochs, anneal_strategy, last_epoch)

"""Schedulers along a cosine: cosine annealing, with warm restarts, and SWALR."""

import math
from typing import Literal

from jaxopt_port.lr_scheduler.number import Number, cos, either, int_log, largest, smallest
from jaxopt_port.lr_scheduler.scheduler import Groups, Sched, Scheduler, factory, per_group, scheduler, unchanged


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

    def get_lr(s: Sched, groups: Groups) -> list[Number]:
        t = s["last_epoch"]

        def resumed() -> list[Number]:
            factor = 1 + cos(t * math.pi / T_max)
            return [eta_min + (base_lr - eta_min) * factor / 2 for base_lr in s["base_lrs"]]

        def at_the_bottom() -> list[Number]:
            rise = 1 - cos(math.pi / T_max)
            return [
                group["lr"] + (base_lr - eta_min) * rise / 2
                for base_lr, group in zip(s["base_lrs"], groups, strict=True)
            ]

        def elsewhere() -> list[Number]:
            factor = (1 + cos(math.pi * t / T_max)) / (1 + cos(math.pi * (t - 1) / T_max))
            return [factor * (group["lr"] - eta_min) + eta_min for group in groups]

        def later() -> list[Number]:
            return either((t - 1 - T_max) % (2 * T_max) == 0, at_the_bottom, elsewhere)

        return either((s["_step_count"] == 1) & (t > 0), resumed, later)

    def closed_form(s: Sched, groups: Groups) -> list[Number]:
        factor = 1 + cos(math.pi * s["last_epoch"] / T_max)
        return [eta_min + (base_lr - eta_min) * factor / 2 for base_lr in s["base_lrs"]]

    options = {"T_max": T_max, "eta_min": eta_min}
    return scheduler("CosineAnnealingLR", get_lr, closed_form, options=options, last_epoch=last_epoch, first=unchanged)


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

    def setup(groups: Groups) -> Sched:
        return {"T_cur": float(last_epoch), "T_i": float(T_0)}

    def get_lr(s: Sched, groups: Groups) -> list[Number]:
        factor = 1 + cos(math.pi * s["T_cur"] / s["T_i"])
        return [eta_min + (base_lr - eta_min) * factor / 2 for base_lr in s["base_lrs"]]

    def walk(s: Sched, epoch: Number | None) -> None:
        def on() -> list[Number]:
            t_cur = s["T_cur"] + 1
            again = t_cur >= s["T_i"]
            restarted = either(again, lambda: [t_cur % s["T_i"], s["T_i"] * T_mult], lambda: [t_cur, s["T_i"]])
            return [s["last_epoch"] + 1, *restarted]

        if epoch is None:
            new = either(s["last_epoch"] < 0, lambda: [0, *to(s, 0)], on)
        else:
            new = [math.floor(epoch), *to(s, epoch)]
        s["last_epoch"], s["T_cur"], s["T_i"] = new

    def to(s: Sched, epoch: Number) -> list[Number]:
        if isinstance(epoch, int | float) and epoch < 0:
            raise ValueError(f"Expected non-negative epoch, but got {epoch}")

        def later() -> list[Number]:
            if T_mult == 1:
                return [epoch % T_0, s["T_i"]]
            n = int_log(epoch / T_0 * (T_mult - 1) + 1, T_mult)
            return [epoch - T_0 * (T_mult**n - 1) / (T_mult - 1), T_0 * T_mult**n]

        return either(epoch >= T_0, later, lambda: [1.0 * epoch, float(T_0)])

    return scheduler(
        "CosineAnnealingWarmRestarts",
        get_lr,
        options={"T_0": T_0, "T_mult": T_mult, "eta_min": eta_min},
        last_epoch=last_epoch,
        setup=setup,
        walk=walk,
        by_epoch=True,
    )


@factory
def swalr(
    swa_lr: float | list[float],
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

    def alpha(step: Number) -> Number:
        t = largest(0, smallest(1, step / max(1, anneal_epochs)))
        return (1 - cos(math.pi * t)) / 2 if anneal_strategy == "cos" else t

    def setup(groups: Groups) -> Sched:
        for group, lr in zip(groups, per_group("swa_lr", groups, swa_lr), strict=True):
            group["swa_lr"] = lr
        return {}

    def get_lr(s: Sched, groups: Groups) -> list[Number]:
        step = s["_step_count"] - 1
        if anneal_epochs == 0:
            step = largest(1, step)
        before, now = alpha(step - 1), alpha(step)

        def initial(lr: Number, end: Number) -> Number:
            return either(before == 1, lambda: end, lambda: (lr - before * end) / (1 - before))

        return [group["swa_lr"] * now + initial(group["lr"], group["swa_lr"]) * (1 - now) for group in groups]

    options = {"_anneal_strategy": anneal_strategy, "anneal_epochs": anneal_epochs}
    return scheduler("SWALR", get_lr, options=options, last_epoch=last_epoch, setup=setup)

"""The scheduler that looks at a metric."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxopt_port.lr_scheduler.double import Condition, Float, either, python_max
from jaxopt_port.lr_scheduler.scheduler import Groups, Sched, Scheduler, factory, lrs, spread


@dataclass(frozen=True, eq=False, repr=False)
class ReduceLROnPlateau(Scheduler):
    """torch's ReduceLROnPlateau, see `reduce_lr_on_plateau`."""

    mode: Literal["min", "max"]
    factor: float
    patience: int
    threshold: float
    threshold_mode: Literal["rel", "abs"]
    cooldown: int
    min_lr: float | Sequence[float]
    eps: float

    @property
    def mode_worse(self) -> float:
        return math.inf if self.mode == "min" else -math.inf

    @property
    def default_min_lr(self) -> float | None:
        """What groups get that are added later."""
        return None if isinstance(self.min_lr, list | tuple) else self.min_lr  # pyright: ignore[reportReturnType]

    @property
    def options(self) -> Mapping[str, Any]:
        own = "factor", "default_min_lr", "patience", "cooldown", "eps", "mode_worse", "mode", "threshold"
        return {name: getattr(self, name) for name in (*own, "threshold_mode")}

    def construct(self, groups: Groups) -> Sched:
        return {
            "best": self.mode_worse,
            "num_bad_epochs": 0,
            "cooldown_counter": 0,
            "last_epoch": 0,
            "min_lrs": list(map(float, spread(groups, self.min_lr, "expected {1} min_lrs, got {0}"))),
            "_last_lr": lrs(groups),
        }

    def is_better(self, metric: Float, best: Float) -> Condition:
        threshold, relative = self.threshold, self.threshold_mode == "rel"
        if self.mode == "min":
            return metric < best * (1.0 - threshold) if relative else metric < best - threshold
        return metric > best * (threshold + 1.0) if relative else metric > best + threshold

    def advance(self, s: Sched, groups: Groups, epoch: Float | None, metric: Float | None) -> None:
        if metric is None:
            raise TypeError("ReduceLROnPlateau needs the metric: step(sched, state, metric)")
        s["last_epoch"] = s["last_epoch"] + 1 if epoch is None else epoch
        better = self.is_better(metric, s["best"])
        bad = either(better, lambda: 0, lambda: s["num_bad_epochs"] + 1)
        s["best"] = either(better, lambda: metric, lambda: s["best"])
        left = s["cooldown_counter"]
        left, bad = either(left > 0, lambda: [left - 1, 0], lambda: [left, bad])
        reduce = bad > self.patience
        s["cooldown_counter"], s["num_bad_epochs"] = either(reduce, lambda: [self.cooldown, 0], lambda: [left, bad])
        if len(s["min_lrs"]) != len(groups):  # add_param_group has made others
            if self.default_min_lr is None:
                raise RuntimeError(
                    f"The number of param groups in the `optimizer` ({len(groups)}) differs from when "
                    f"`ReduceLROnPlateau` was initialized ({len(s['min_lrs'])}): give min_lr as one number"
                )
            s["min_lrs"] = [float(self.default_min_lr)] * len(groups)
        for group, least in zip(groups, s["min_lrs"], strict=True):
            old = group["lr"]
            new = python_max(old * self.factor, least)
            group["lr"] = either(reduce & (old - new > self.eps), lambda: new, lambda: old)  # noqa: B023  called at once
        s["_last_lr"] = lrs(groups)


@factory
def reduce_lr_on_plateau(
    mode: Literal["min", "max"] = "min",
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: Literal["rel", "abs"] = "rel",
    cooldown: int = 0,
    min_lr: float | Sequence[float] = 0,
    eps: float = 1e-8,
) -> Scheduler:
    r"""Reduces the rate when a metric has stopped improving: torch's ReduceLROnPlateau.

    .. math:: \eta_t = \max(f \eta_{t-1}, \eta_{min}) \text{ after more than `patience` epochs without a new best}

    `step(sched, state, metric)` takes the metric. NaN is never better.

    Args:
      mode: whether less ("min") or more ("max") is better.
      factor: the factor, :math:`f`.
      patience: how many epochs without improvement are borne.
      threshold: by how much a new best has to be better.
      threshold_mode: "rel", times the best, or "abs".
      cooldown: for how many epochs after a reduction nothing counts as bad.
      min_lr: the lowest rate, or a list with one for each group.
      eps: a reduction of no more than this is not made.

    Returns:
      A `Scheduler`.

    Raises:
      ValueError: an option out of range, in torch's words; at `init`, another number of rates than of groups.

    Example:
      >>> import jaxopt_port as optim
      >>> scheduler = reduce_lr_on_plateau(factor=0.5, patience=1)
      >>> sched, state = scheduler.init(optim.sgd(lr=1.0).init({}))
      >>> for loss in [3.0, 2.0, 2.0, 2.0]:
      ...     sched, state = scheduler.step(sched, state, loss)
      ...     print(scheduler.get_last_lr(sched))
      [1.0]
      [1.0]
      [1.0]
      [0.5]

    Source: torch/optim/lr_scheduler.py, ReduceLROnPlateau.
    """
    if factor >= 1.0:
        raise ValueError("Factor should be < 1.0.")
    if mode not in ("min", "max"):
        raise ValueError(f"mode {mode} is unknown!")
    if threshold_mode not in ("rel", "abs"):
        raise ValueError(f"threshold mode {threshold_mode} is unknown!")
    return ReduceLROnPlateau(mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps)

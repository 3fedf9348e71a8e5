"""Schedulers made of schedulers: one after the other, all at once."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxopt_port.lr_scheduler.double import Float, either
from jaxopt_port.lr_scheduler.scheduler import Groups, Sched, Scheduler, factory, lrs


class Composite(Scheduler):
    """What the two share: torch's, which count no steps of their own and take neither epoch nor metric."""

    schedulers: Sequence[Scheduler]

    def initial_step(self, s: Sched, groups: Groups) -> None:
        s["_step_count"] = 0
        self.advance(s, groups, None, None)

    def advance(self, s: Sched, groups: Groups, epoch: Float | None, metric: Float | None) -> None:
        if epoch is not None or metric is not None:
            raise TypeError(f"{self.name} takes no {'metric' if epoch is None else 'epoch: it has no closed form'}")
        self.step_parts(s, groups)

    def step_parts(self, s: Sched, groups: Groups) -> None:
        """torch's `step`."""
        raise NotImplementedError

    def undo(self, s: Sched) -> None:
        """torch's `recursive_undo`, which leaves the counter of the scheduler itself as it is."""
        for part, inner in zip(self.schedulers, s["_schedulers"], strict=True):
            part.undo(inner)


@dataclass(frozen=True, eq=False, repr=False)
class SequentialLR(Composite):
    """torch's SequentialLR, see `sequential_lr`."""

    schedulers: Sequence[Scheduler]
    milestones: list[int]
    last_epoch: int

    @property
    def options(self) -> Mapping[str, Any]:
        return {"_schedulers": self.schedulers, "_milestones": self.milestones}

    @property
    def first(self) -> int:
        """Which of the schedulers begins."""
        return bisect_right(self.milestones, 0)

    def construct(self, groups: Groups) -> Sched:
        inner = [part.construct(groups) for part in self.schedulers]
        for group in groups:
            group["lr"] = group["initial_lr"]
        for part, s in zip(self.schedulers, inner, strict=True):
            part.undo(s)
        begins = inner[self.first]
        self.schedulers[self.first].initial_step(begins, groups)
        return {"last_epoch": self.last_epoch + 1, "_schedulers": inner, "_last_lr": list(begins["_last_lr"])}

    def step_parts(self, s: Sched, groups: Groups) -> None:
        s["last_epoch"] += 1
        s["_schedulers"], groups[:], s["_last_lr"] = self._turn(s, groups, self.first)

    def _turn(self, s: Sched, groups: Groups, index: int) -> Any:
        """What becomes of schedulers, groups and rates where it is the turn of the one at `index` or of a later one."""
        now = s["last_epoch"]

        def this() -> Any:
            if index <= self.first:
                return self._moved(s, groups, index, enter=False)
            enters = now == self.milestones[index - 1]
            return either(
                enters, lambda: self._moved(s, groups, index, True), lambda: self._moved(s, groups, index, False)
            )

        if index == len(self.schedulers) - 1:
            return this()
        return either(now < self.milestones[index], this, lambda: self._turn(s, groups, index + 1))

    def _moved(self, s: Sched, groups: Groups, index: int, enter: bool) -> Any:
        """The same where it is the turn of the one at `index`, which begins now or goes on."""
        inner, copies = jax.tree.map(lambda x: x, (s["_schedulers"], groups))
        if enter:
            self.schedulers[index].enter(inner[index], copies)
        else:
            self.schedulers[index].advance(inner[index], copies, None, None)
        return inner, copies, list(inner[index]["_last_lr"])


@dataclass(frozen=True, eq=False, repr=False)
class ChainedScheduler(Composite):
    """torch's ChainedScheduler, see `chained_scheduler`."""

    schedulers: Sequence[Scheduler]

    @property
    def options(self) -> Mapping[str, Any]:
        return {"_schedulers": self.schedulers}

    def construct(self, groups: Groups) -> Sched:
        return {"_schedulers": [part.construct(groups) for part in self.schedulers], "_last_lr": lrs(groups)}

    def step_parts(self, s: Sched, groups: Groups) -> None:
        for part, inner in zip(self.schedulers, s["_schedulers"], strict=True):
            part.advance(inner, groups, None, None)
        s["_last_lr"] = lrs(groups)


@factory
def sequential_lr(schedulers: Sequence[Scheduler], milestones: Sequence[int], last_epoch: int = -1) -> Scheduler:
    r"""Calls schedulers one after the other: torch's SequentialLR.

    .. math:: \text{scheduler}_i \text{ steps while } m_{i-1} \le t < m_i

    As torch's it constructs all of them in order, sets the rates back to the initial ones, takes the initial step of
    the first again, and lets each of the others begin at its own epoch 0. Its state holds theirs, in `_schedulers`.

    Args:
      schedulers: the schedulers. A `sequential_lr` or `chained_scheduler` can only be the first.
      milestones: the epochs at which the next takes over, in increasing order, one fewer than schedulers.
      last_epoch: what torch begins to count epochs from, less 1.

    Returns:
      A `Scheduler`.

    Raises:
      ValueError: no schedulers, another number of milestones, `reduce_lr_on_plateau` among them.
      TypeError: what is not a scheduler.
      NotImplementedError: a scheduler made of schedulers that is not the first: torch raises it at the milestone.

    Example:
      >>> from jaxopt_port.lr_scheduler import constant_lr, exponential_lr, rates
      >>> rates(sequential_lr([constant_lr(factor=0.5), exponential_lr(gamma=0.5)], milestones=[2]), lr=1.0, steps=4)
      [0.5, 0.5, 1.0, 0.5]

    Source: torch/optim/lr_scheduler.py, SequentialLR.
    """
    parts = _check("SequentialLR", "at least one scheduler", schedulers)
    if len(milestones) != len(parts) - 1:
        raise ValueError(
            "Sequential Schedulers expects number of schedulers provided to be one more "
            f"than the number of milestone points, but got number of schedulers {len(parts)} and the "
            f"number of milestones to be equal to {len(milestones)}"
        )
    if list(milestones) != sorted(milestones):
        raise ValueError(f"milestones must be in increasing order: {list(milestones)}")
    first = bisect_right(milestones, 0)
    for part in parts[first + 1 :]:
        if part.name in ("SequentialLR", "ChainedScheduler"):
            raise NotImplementedError(
                f"{part.name} after another scheduler in SequentialLR: torch cannot enter it. "
                "Make one SequentialLR of all parts, or put it first."
            )
    return SequentialLR(parts, list(milestones), last_epoch)


@factory
def chained_scheduler(schedulers: Sequence[Scheduler]) -> Scheduler:
    r"""Steps several schedulers at once, each on what the one before has made of the rate: torch's ChainedScheduler.

    .. math:: \eta_t = s_n(\dots s_1(\eta_{t-1}))

    Args:
      schedulers: the schedulers, in chainable form.

    Returns:
      A `Scheduler`.

    Raises:
      ValueError: no schedulers, `reduce_lr_on_plateau` among them.
      TypeError: what is not a scheduler.

    Example:
      >>> from jaxopt_port.lr_scheduler import constant_lr, exponential_lr, rates
      >>> rates(chained_scheduler([constant_lr(factor=0.5), exponential_lr(gamma=0.5)]), lr=1.0, steps=4)
      [0.5, 0.25, 0.125, 0.0625]

    Source: torch/optim/lr_scheduler.py, ChainedScheduler.
    """
    parts = _check("ChainedScheduler", "at least one scheduler to be chained", schedulers)
    return ChainedScheduler(parts)


def _check(name: str, what: str, schedulers: Sequence[Scheduler]) -> list[Scheduler]:
    if len(schedulers) < 1:
        raise ValueError(f"{name} expects {what}, but got no scheduler.")
    for index, part in enumerate(schedulers):
        if not isinstance(part, Scheduler):
            raise TypeError(f"{name} at index {index} should be a Scheduler, not a {type(part).__name__}.")
        if part.name == "ReduceLROnPlateau":
            raise ValueError(
                f"{name} does not support `ReduceLROnPlateau` scheduler as it "
                "requires additional kwargs to be specified when calling `step`, "
                f"but got one at index {index} in the given schedulers sequence."
            )
    return list(schedulers)

"""Schedulers made of schedulers: one after the other, all at once."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxopt_port.lr_scheduler.number import Number, either
from jaxopt_port.lr_scheduler.scheduler import Groups, Sched, Scheduler, factory, lrs


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

    def construct(groups: Groups) -> Sched:
        inner = [part.construct(groups) for part in parts]
        for group in groups:
            group["lr"] = group["initial_lr"]
        for part, s in zip(parts, inner, strict=True):
            part.undo(s)
        parts[first].initial_step(inner[first], groups)
        return {"last_epoch": last_epoch + 1, "_schedulers": inner, "_last_lr": list(inner[first]["_last_lr"])}

    def advance(s: Sched, groups: Groups, epoch: Number | None, metric: Number | None) -> None:
        _check_arguments("SequentialLR", epoch, metric)
        s["last_epoch"] = now = s["last_epoch"] + 1

        def moved(index: int, enter: bool) -> Any:
            """What becomes of the schedulers and the groups if the one at `index` moves."""
            inner, copies = jax.tree.map(lambda x: x, (s["_schedulers"], groups))
            if enter:
                parts[index].enter(inner[index], copies)
            else:
                parts[index].advance(inner[index], copies, None, None)
            return inner, copies, list(inner[index]["_last_lr"])

        def from_(index: int) -> Any:
            """The same where it is the turn of the one at `index` or of a later one."""

            def this() -> Any:
                if index <= first:
                    return moved(index, enter=False)
                return either(now == milestones[index - 1], lambda: moved(index, True), lambda: moved(index, False))

            if index == len(parts) - 1:
                return this()
            return either(now < milestones[index], this, lambda: from_(index + 1))

        s["_schedulers"], groups[:], s["_last_lr"] = from_(first)

    return Scheduler(
        "SequentialLR",
        {"_schedulers": parts, "_milestones": list(milestones)},
        construct,
        _initial_step(advance),
        advance,
        _no_enter,
        _undo(parts),
    )


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

    def construct(groups: Groups) -> Sched:
        return {"_schedulers": [part.construct(groups) for part in parts], "_last_lr": lrs(groups)}

    def advance(s: Sched, groups: Groups, epoch: Number | None, metric: Number | None) -> None:
        _check_arguments("ChainedScheduler", epoch, metric)
        for part, inner in zip(parts, s["_schedulers"], strict=True):
            part.advance(inner, groups, None, None)
        s["_last_lr"] = lrs(groups)

    options = {"_schedulers": parts}
    return Scheduler("ChainedScheduler", options, construct, _initial_step(advance), advance, _no_enter, _undo(parts))


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


def _check_arguments(name: str, epoch: Number | None, metric: Number | None) -> None:
    if epoch is not None or metric is not None:
        raise TypeError(f"{name} takes no {'metric' if epoch is None else 'epoch: it has no closed form'}")


def _initial_step(advance: Callable[..., None]) -> Callable[[Sched, Groups], None]:
    """torch's `_initial_step` of a scheduler that counts no steps: a step like any other."""

    def initial_step(s: Sched, groups: Groups) -> None:
        s["_step_count"] = 0
        advance(s, groups, None, None)

    return initial_step


def _no_enter(s: Sched, groups: Groups) -> None:
    raise NotImplementedError


def _undo(parts: Sequence[Scheduler]) -> Callable[[Sched], None]:
    """torch's `recursive_undo`, which leaves the counter of the scheduler itself as it is."""

    def undo(s: Sched) -> None:
        for part, inner in zip(parts, s["_schedulers"], strict=True):
            part.undo(inner)

    return undo

"""Schedulers that cycle the rate, and momentum against it: cyclic, one cycle."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from jaxopt_port.lr_scheduler.double import Double, Float, cos, either, value_at
from jaxopt_port.lr_scheduler.scheduler import Groups, LRScheduler, Sched, Scheduler, factory, per_group

PerGroup = float | Sequence[float]


def _start_momentum(groups: Groups, base_momentum: PerGroup, max_momentum: PerGroup, last_epoch: int) -> Sched:
    """What the constructors do to the groups' momentum."""
    for index, group in enumerate(groups):
        if "momentum" not in group and "betas" not in group:
            raise ValueError(
                "optimizer must support momentum or beta1 with `cycle_momentum` option enabled: "
                f"group {index} has neither momentum nor betas in its state. Momentum that is 0 when the optimizer is "
                "made is not live: start from another value, sgd(lr, momentum=0.9); or set cycle_momentum=False."
            )
    base, top = per_group("base_momentum", groups, base_momentum), per_group("max_momentum", groups, max_momentum)
    if last_epoch == -1:
        for group, b, m in zip(groups, base, top, strict=True):
            _set_momentum(group, m)
            group["max_momentum"], group["base_momentum"] = m, b
    return {"base_momentums": base, "max_momentums": top}


def _set_momentum(group: dict[str, Any], value: Float) -> None:
    """beta1 where the optimizer has betas, momentum otherwise."""
    if "betas" in group:
        group["betas"] = [value, *group["betas"][1:]]
    else:
        group["momentum"] = value


@dataclass(frozen=True, eq=False, repr=False)
class CyclicLR(LRScheduler):
    """torch's CyclicLR, see `cyclic_lr`."""

    base_lr: PerGroup
    max_lr: PerGroup
    step_size_up: int
    step_size_down: int | None
    mode: Literal["triangular", "triangular2", "exp_range"]
    gamma: float
    scale_fn: Callable[[Any], Any] | None
    scale_mode: Literal["cycle", "iterations"]
    cycle_momentum: bool
    base_momentum: PerGroup
    max_momentum: PerGroup
    last_epoch: int

    @property
    def total_size(self) -> float:
        return float(self.step_size_up) + float(
            self.step_size_up if self.step_size_down is None else self.step_size_down
        )

    @property
    def step_ratio(self) -> float:
        return float(self.step_size_up) / self.total_size

    @property
    def options(self) -> Mapping[str, Any]:
        own = ("total_size", "step_ratio", "mode", "gamma", "scale_mode", "cycle_momentum")
        return {"_scale_fn_custom": self.scale_fn, **{name: getattr(self, name) for name in own}}

    def attributes(self, groups: Groups) -> Sched:
        if self.last_epoch == -1:
            for lr, group in zip(per_group("base_lr", groups, self.base_lr), groups, strict=True):
                group["lr"] = lr
        s: Sched = {"max_lrs": per_group("max_lr", groups, self.max_lr)}
        if self.cycle_momentum:
            s |= _start_momentum(groups, self.base_momentum, self.max_momentum, self.last_epoch)
        return s

    def construct(self, groups: Groups) -> Sched:
        base_lrs = per_group("base_lr", groups, self.base_lr)
        # torch sets base_lrs at the end: the first rate comes from initial_lr, which may be another scheduler's.
        return {**super().construct(groups), "base_lrs": base_lrs}

    def scale(self, x: Float) -> Float:
        """The height of a cycle, or of a step."""
        if self.scale_fn is not None:
            return value_at("scale_fn", self.scale_fn, x)
        if self.mode == "exp_range":
            return self.gamma**x
        return 1.0 if self.mode == "triangular" else 1 / (2.0 ** (x - 1))

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        cycle = math.floor(1 + s["last_epoch"] / self.total_size)
        x = 1.0 + s["last_epoch"] / self.total_size - cycle
        rises = x <= self.step_ratio
        x = either(rises, lambda: x / self.step_ratio, lambda: (x - 1) / (self.step_ratio - 1))
        height = self.scale(cycle if self.scale_mode == "cycle" else s["last_epoch"])
        if self.cycle_momentum:
            for group, low, high in zip(groups, s["base_momentums"], s["max_momentums"], strict=True):
                _set_momentum(group, high - (high - low) * x * height)
        return [low + (high - low) * x * height for low, high in zip(s["base_lrs"], s["max_lrs"], strict=True)]


@dataclass(frozen=True, eq=False, repr=False)
class OneCycleLR(LRScheduler):
    """torch's OneCycleLR, see `one_cycle_lr`."""

    max_lr: PerGroup
    total_steps: int
    pct_start: float
    anneal_strategy: Literal["cos", "linear"]
    cycle_momentum: bool
    base_momentum: PerGroup
    max_momentum: PerGroup
    div_factor: float
    final_div_factor: float
    three_phase: bool
    last_epoch: int

    @property
    def phases(self) -> list[dict[str, Any]]:
        """torch's `_schedule_phases`."""
        end = self.total_steps - 1
        up = float(self.pct_start * self.total_steps) - 1, "initial_lr", "max_lr", "max_momentum", "base_momentum"
        if self.three_phase:
            turn = float(2 * self.pct_start * self.total_steps) - 2
            down = turn, "max_lr", "initial_lr", "base_momentum", "max_momentum"
            phases = [up, down, (end, "initial_lr", "min_lr", "max_momentum", "max_momentum")]
        else:
            phases = [up, (end, "max_lr", "min_lr", "base_momentum", "max_momentum")]
        keys = "end_step", "start_lr", "end_lr", "start_momentum", "end_momentum"
        return [dict(zip(keys, phase, strict=True)) for phase in phases]

    @property
    def options(self) -> Mapping[str, Any]:
        return {
            "total_steps": self.total_steps,
            "_schedule_phases": self.phases,
            "_anneal_func_type": self.anneal_strategy,
            "cycle_momentum": self.cycle_momentum,
        }

    def attributes(self, groups: Groups) -> Sched:
        if self.last_epoch == -1:
            for group, lr in zip(groups, per_group("max_lr", groups, self.max_lr), strict=True):
                group["initial_lr"], group["max_lr"] = lr / self.div_factor, lr
                group["min_lr"] = group["initial_lr"] / self.final_div_factor
        if self.cycle_momentum:
            _start_momentum(groups, self.base_momentum, self.max_momentum, self.last_epoch)
        return {}

    def anneal(self, start: Float, end: Float, pct: Float) -> Float:
        if self.anneal_strategy == "linear":
            return (end - start) * pct + start
        return end + (start - end) / 2.0 * (cos(math.pi * pct) + 1)

    def annealed(self, step: Float, group: dict[str, Any], start_step: float, phases: list[dict[str, Any]]) -> Any:
        """The rate and the momentum of a group, if the step is in the first of the phases or later."""
        phase, *later = phases

        def here() -> list[Float]:
            pct = (step - start_step) / (phase["end_step"] - start_step)
            names = ("lr", "momentum") if self.cycle_momentum else ("lr",)
            return [self.anneal(group[phase[f"start_{n}"]], group[phase[f"end_{n}"]], pct) for n in names]

        if not later:
            return here()
        return either(step <= phase["end_step"], here, lambda: self.annealed(step, group, phase["end_step"], later))

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        step, new = s["last_epoch"], []
        if isinstance(step, Double):
            step = either(step > self.total_steps, lambda: jnp.nan, lambda: step)
        elif step > self.total_steps:
            raise ValueError(f"Tried to step {step} times. The specified number of total steps is {self.total_steps}")
        for group in groups:
            lr, *momentum = self.annealed(step, group, 0.0, self.phases)
            new.append(lr)
            if self.cycle_momentum:
                _set_momentum(group, *momentum)
        return new


@factory
def cyclic_lr(
    base_lr: PerGroup,
    max_lr: PerGroup,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: float = 1.0,
    scale_fn: Callable[[Any], Any] | None = None,
    scale_mode: Literal["cycle", "iterations"] = "cycle",
    cycle_momentum: bool = True,
    base_momentum: PerGroup = 0.8,
    max_momentum: PerGroup = 0.9,
    last_epoch: int = -1,
) -> Scheduler:
    r"""Cycles the rate between two bounds, and momentum against it: torch's CyclicLR.

    .. math:: \eta_t = \eta_{base} + (\eta_{max} - \eta_{base}) \, x_t \, s, \quad
      \mu_t = \mu_{max} - (\mu_{max} - \mu_{base}) \, x_t \, s

    where :math:`x_t` rises from 0 to 1 over `step_size_up` and falls over `step_size_down`, and :math:`s` is 1,
    :math:`1 / 2^{c - 1}` in cycle :math:`c` ("triangular2"), :math:`\gamma^t` ("exp_range") or `scale_fn`.

    Args:
      base_lr: the lower bound, or a list with one for each group. It takes the place of the optimizer's rate.
      max_lr: the upper bound, or a list.
      step_size_up: how many steps the rate rises.
      step_size_down: how many steps it falls; None, as many as it rises.
      mode: how the height changes from cycle to cycle; ignored with `scale_fn`.
      gamma: the factor of "exp_range".
      scale_fn: a function of the cycle, from 1, or of the step; under jit as in `lambda_lr`.
      scale_mode: what `scale_fn` is a function of, "cycle" or "iterations".
      cycle_momentum: cycle momentum, or beta1 where the optimizer has betas.
      base_momentum: its lower bound, or a list.
      max_momentum: its upper bound, where it starts, or a list.
      last_epoch: the epoch to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Raises:
      ValueError: an unknown mode; at `init`, a list of another length than there are groups, and an optimizer that has
        no momentum to cycle.

    Example:
      >>> import jaxopt_port as optim
      >>> scheduler = cyclic_lr(base_lr=0.25, max_lr=0.75, step_size_up=2)
      >>> sched, state = scheduler.init(optim.sgd(lr=1.0, momentum=0.9).init({}))
      >>> for epoch in range(4):
      ...     sched, state = scheduler.step(sched, state)
      ...     print(scheduler.get_last_lr(sched), round(optim.get_hyper(state)[0]["momentum"], 3))
      [0.5] 0.85
      [0.75] 0.8
      [0.5] 0.85
      [0.25] 0.9

    Source: torch/optim/lr_scheduler.py, CyclicLR; Smith, Cyclical learning rates for training neural networks, 2017.
    """
    if mode not in ("triangular", "triangular2", "exp_range") and scale_fn is None:
        raise ValueError("mode is invalid and scale_fn is None")
    if scale_fn is None:
        scale_mode = "iterations" if mode == "exp_range" else "cycle"
    return CyclicLR(
        base_lr,
        max_lr,
        step_size_up,
        step_size_down,
        mode,
        gamma,
        scale_fn,
        scale_mode,
        cycle_momentum,
        base_momentum,
        max_momentum,
        last_epoch,
    )


@factory
def one_cycle_lr(
    max_lr: PerGroup,
    total_steps: int | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    pct_start: float = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    cycle_momentum: bool = True,
    base_momentum: PerGroup = 0.85,
    max_momentum: PerGroup = 0.95,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
    last_epoch: int = -1,
) -> Scheduler:
    r"""Anneals the rate up to its maximum, then down to almost nothing: torch's OneCycleLR.

    .. math:: \eta: \eta_{max} / d \to \eta_{max} \to \eta_{max} / (d f), \quad
      \mu: \mu_{max} \to \mu_{base} \to \mu_{max}

    each along :math:`b + (a - b) (1 + \cos(\pi p)) / 2` or a line, with :math:`p` the part of the phase that is over.

    torch turns on the momentum of an SGD without; here it has to be live: `sgd(momentum=...)` with any value but 0.

    Args:
      max_lr: the maximum, or a list with one for each group.
      total_steps: how many steps there are, the first included; or
      epochs: how many epochs, of
      steps_per_epoch: so many steps each.
      pct_start: the part of the steps in which the rate rises.
      anneal_strategy: "cos" or "linear".
      cycle_momentum: cycle momentum, or beta1 where the optimizer has betas, against the rate.
      base_momentum: its lower bound, or a list.
      max_momentum: its upper bound, where it starts, or a list.
      div_factor: the maximum over the first rate, :math:`d`. The optimizer's own rate is not used.
      final_div_factor: the first rate over the last, :math:`f`.
      three_phase: go down as steeply as up, to the first rate, then to the last.
      last_epoch: the step to resume from, -1 to start; see `Scheduler.init`.

    Returns:
      A `Scheduler`.

    Raises:
      ValueError: an option out of range, in torch's words; at `init`, a list of another length than there are groups,
        and an optimizer that has no momentum to cycle; a step beyond `total_steps`: under jit the rate is NaN.

    Example:
      >>> import jaxopt_port as optim
      >>> scheduler = one_cycle_lr(max_lr=1.0, total_steps=5, pct_start=0.4, anneal_strategy="linear", div_factor=4.0)
      >>> sched, state = scheduler.init(optim.adam(lr=0.001).init({}))
      >>> optim.get_hyper(state)[0]["lr"]
      0.25
      >>> for epoch in range(2):
      ...     sched, state = scheduler.step(sched, state)
      ...     print(round(scheduler.get_last_lr(sched)[0], 3), round(optim.get_hyper(state)[0]["betas"][0], 3))
      1.0 0.85
      0.667 0.883

    Source: torch/optim/lr_scheduler.py, OneCycleLR; Smith and Topin, Super-convergence, 2018.
    """
    total = _total_steps(total_steps, epochs, steps_per_epoch)
    if pct_start < 0 or pct_start > 1 or not isinstance(pct_start, float):
        raise ValueError(f"Expected float between 0 and 1 pct_start, but got {pct_start}")
    if anneal_strategy not in ("cos", "linear"):
        raise ValueError(f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy}")
    return OneCycleLR(
        max_lr,
        total,
        pct_start,
        anneal_strategy,
        cycle_momentum,
        base_momentum,
        max_momentum,
        div_factor,
        final_div_factor,
        three_phase,
        last_epoch,
    )


def _total_steps(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total_steps is not None:
        if total_steps <= 0 or not isinstance(total_steps, int):
            raise ValueError(f"Expected positive integer total_steps, but got {total_steps}")
        return total_steps
    if epochs is None or steps_per_epoch is None:
        raise ValueError("You must define either total_steps OR (epochs AND steps_per_epoch)")
    for name, value in {"epochs": epochs, "steps_per_epoch": steps_per_epoch}.items():
        if not isinstance(value, int) or value <= 0:
            raise ValueError(f"Expected positive integer {name}, but got {value}")
    return epochs * steps_per_epoch

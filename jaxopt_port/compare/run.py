"""The port's own run from torch's start, step by step, and beside it the same run from starts that are nudged.

Two runs that differ in their last bits part, how fast depends on the network: the nudged runs show how fast these do.
What is further off than they are is no rounding. A tie that rounding decides in ours alone moves it further at once,
and its losses and steps with it: what was off before a step is no fault of the step.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxopt_port.compare import blame, noise
from jaxopt_port.compare.findings import Finding, number
from jaxopt_port.compare.noise import distance, norm
from jaxopt_port.compare.port import Port
from jaxopt_port.compare.trace import Arrays, Step

Tree = Any

TIMES = 20.0  # so far beyond the nudged runs' distance is off: each distance is one draw
INEXACT = 4.0  # the same, of the steps of an optimizer that rounds coarsely: theirs are nudged as much every time
LOSS, STEP = 1e-3, 0.1  # and beside that, of the loss, and of a parameter's step
NUDGED = (1000, 2000)  # the seeds


@dataclass
class Point:
    """A step of all runs.

    Args:
      step: its number.
      torch: torch's loss; the mean over its batches.
      ours: ours.
      itself: how far the losses of the nudged runs are from ours.
      drift: for each parameter how far it is from torch's, relative to how far it has moved since the start.
      nudged: the same, of the nudged runs from ours, the largest.
      rate: torch's learning rate, that of the first group.
    """

    step: int
    torch: float
    ours: float
    itself: float
    drift: dict[str, float] = field(default_factory=dict)
    nudged: dict[str, float] = field(default_factory=dict)
    rate: float = 0.0


class One:
    """A run of the port's; a nudged one, with a seed, also where an optimizer's steps are that inexact."""

    def __init__(self, port: Port, trainable: Tree, rest: Tree, seed: int = 0):
        self.port, self.trainable, self.rest, self.seed = port, trainable, rest, seed
        self.inexact = _inexact(port, trainable) if seed else None
        self.state = self.old = port.init(trainable)
        self.grads: Arrays = {}
        self.before: Arrays = {}
        self.after = self.samples(trainable)

    def samples(self, tree: Tree) -> Arrays:
        index, own = self.port.trace.index, self.port.tied
        whole = self.port.to_torch(tree)
        return {name: x.ravel()[index[own(name)]] for name, x in whole.items() if name in self.port.names}

    def step(self, step: Step) -> list[float]:
        losses, grads, self.rest = self.port.grads(self.trainable, self.rest, step)
        self.grads = self.samples(self.port.seen(grads, step))
        old, self.old = self.trainable, self.state
        self.trainable, self.state = self.port.own_step(grads, self.rest, self.state, old, step)
        if self.inexact is not None:
            self.trainable = noise.shaken(old, self.trainable, self.inexact, self.seed + step.number)
        self.before, self.after = self.after, self.samples(self.trainable)
        return losses


class Run:
    """All runs, and what is off in ours.

    Args:
      port: ours.
      trainable: torch's first parameters.
      rest: and statistics.
    """

    def __init__(self, port: Port, trainable: Tree, rest: Tree):
        self.port, self.trace = port, port.trace
        self.ours = One(port, trainable, rest)
        self.others = [One(port, noise.nudged(trainable, seed, noise.NUDGE), rest, seed) for seed in NUDGED]
        self.start = self.ours.after
        self.theirs = self.ours.after  # torch's
        self.points: list[Point] = []
        self._lag = 1.0  # how many times as far off ours was as the nudged ones, before the step
        self._worst: dict[str, float] = {}

    def worst(self, key: str, value: float) -> float:
        """The largest so far."""
        self._worst[key] = max(self._worst.get(key, 0.0), value)
        return self._worst[key]

    def lag(self) -> float:
        if not self.points:
            return 1.0
        drift, nudged = (np.mean(list(each.values())) for each in (self.points[-1].drift, self.points[-1].nudged))
        return max(1.0, float(drift / (nudged + 1e-30)))

    def step(self, step: Step) -> Finding | None:
        """A step of all; what is off in ours, with no regard to what was before."""
        mine = self.ours.step(step)
        others = [each.step(step) for each in self.others]
        own = self.port.tied
        after, grads = self.trace.samples(step, "after"), self.trace.samples(step, "grad")
        torch = step.losses[:1] if len(mine) == 1 else step.losses
        self._lag = self.lag()
        point = Point(
            step.number,
            float(np.mean(torch)) if torch else float("nan"),
            float(np.mean(mine)),
            max(abs(float(np.mean(other)) - float(np.mean(mine))) for other in others),
            rate=step.hyper[0][0].get("lr", 0.0),
        )
        self.points.append(point)
        found: list[tuple[str, str, float, float]] = []
        for name in self.port.names:
            theirs, before = after[own(name)], self.theirs[own(name)]
            moved = norm(np.asarray(theirs, np.float64) - self.start[name])
            rounding = 4 * noise.EPS["float32"] * norm(theirs)
            point.drift[name] = distance(self.ours.after[name], theirs) / (moved + rounding + 1e-30)
            apart = [distance(each.after[name], self.ours.after[name]) for each in self.others]
            point.nudged[name] = max(apart) / (moved + rounding + 1e-30)
            step_ours = np.asarray(self.ours.after[name], np.float64) - self.ours.before[name]
            step_torch = np.asarray(theirs, np.float64) - before
            steps = [np.asarray(each.after[name], np.float64) - each.before[name] for each in self.others]
            itself = self.worst(f"step {name}", max(distance(x, step_ours) for x in steps) / (norm(step_torch) + 1e-30))
            off = distance(step_ours, step_torch) / (norm(step_torch) + 1e-30)
            times = INEXACT if blame.kind(self.port, own(name)) in noise.INEXACT else TIMES
            allowed = STEP + blame.floor(self.port, name) + times * self._lag * itself
            if not off * norm(step_torch) <= allowed * norm(step_torch) + 2 * rounding:
                found.append(("update", name, off, allowed))
            if own(name) in grads and not self.port.closures:  # of LBFGS it is that of the last closure
                g = grads[own(name)]
                itself = self.worst(
                    f"grad {name}",
                    max(distance(each.grads[name], self.ours.grads[name]) for each in self.others) / (norm(g) + 1e-30),
                )
                off, allowed = distance(self.ours.grads[name], g) / (norm(g) + 1e-30), STEP + TIMES * self._lag * itself
                if not off <= allowed:
                    found.append(("gradient", name, off, allowed))
        self.theirs = {**self.theirs, **after}
        return self.finding(step, point, found, grads)

    def finding(
        self, step: Step, point: Point, found: list[tuple[str, str, float, float]], grads: Arrays
    ) -> Finding | None:
        itself = self.worst("loss", point.itself)
        apart, allowed = abs(point.ours - point.torch), LOSS * abs(point.torch) + TIMES * self._lag * itself
        if not apart <= allowed:
            scale = abs(point.torch) or 1.0
            what = (
                f"the loss of step {step.number} of the port's own run is {point.ours:.6g}, torch's {point.torch:.6g}"
            )
            return Finding(step.number, "loss", None, apart / scale, allowed / scale, what)
        steps = [each for each in found if each[0] == "update"]
        if not steps:
            return None
        off = [each for each in found if each[0] == "gradient"]
        _, name, apart, allowed = max(off or steps, key=lambda each: each[2])
        names = [n for n in self.port.names if self.port.tied(n) in grads]
        uniform = blame.factor([self.ours.grads[n] for n in names], [grads[self.port.tied(n)] for n in names], {})
        if off and not uniform:
            what = (
                f"the gradient of {name} in step {step.number} of the port's own run is {number(apart)} of torch's off"
            )
            return Finding(step.number, "gradient", name, apart, allowed, what)
        what = (
            f"the step that {name} takes in step {step.number} of the port's own run is {number(apart)} of torch's off"
        )
        why = f"torch clips the gradient there, the port's optimizer not so ({uniform})" if uniform else ""
        named = None if uniform else blame.by_options(self.port, step, self.ours.old, self.ours.trainable, name)
        why, stage = named or (why, "update")
        return Finding(step.number, stage, name, apart, allowed, what, why)


def _inexact(port: Port, trainable: Tree) -> Tree | None:
    """By how much of itself each parameter's step may be off, where an optimizer is inexact."""
    sizes = {
        name: noise.INEXACT.get(each["kind"], (0.0, 0.0))[1]
        for each in port.trace.optimizers
        for group in each["groups"]
        for name in group["names"]
    }
    if not any(sizes.values()):
        return None
    shapes = {each["name"]: tuple(each["shape"]) for each in port.trace.parameters}
    whole = port.to_ours({name: np.full(shape, sizes.get(name, 0.0)) for name, shape in shapes.items()}, trainable)
    return jax.tree.map(lambda x: float(x.ravel()[0]) if x.size else 0.0, whole)

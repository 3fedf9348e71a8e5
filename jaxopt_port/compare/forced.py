"""A full step, from torch's own parameters, batches and optimizer state: nothing accumulates."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxopt_port.compare import blame, noise
from jaxopt_port.compare.findings import Finding, number
from jaxopt_port.compare.layers import Layer, called
from jaxopt_port.compare.noise import distance, norm, total
from jaxopt_port.compare.port import Port, as_jax, join, split
from jaxopt_port.compare.trace import Arrays, Step

Tree = Any

CLIPPED = 1e-3  # of the optimizer's state: from clipped and unclipped gradients it is so far apart at most


@dataclass
class Row:
    """A tensor of a full step: how far it is from torch's and how far it may be, relative to torch's own."""

    quantity: str
    name: str
    apart: float
    itself: float
    allowed: float

    @property
    def off(self) -> bool:
        return not self.apart <= self.allowed


@dataclass
class Forced:
    """What a full step came to.

    Args:
      step: its number.
      rows: every tensor that was compared.
      findings: what is off.
      notes: what else is to be said.
      after: our parameters after it.
    """

    step: int
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    after: Arrays = field(default_factory=dict)


class Check:
    """Checks one full step.

    Args:
      port: ours.
      step: torch's.
      before: torch's parameters and buffers before it.
      coarse: the eps of the coarsest arithmetic, in that of float32.
      times: how many times the yardstick is off.
      random: whether torch's network draws random numbers.
    """

    def __init__(self, port: Port, step: Step, before: Arrays, coarse: float, times: float, random: bool):
        self.port, self.step, self.before, self.coarse, self.times = port, step, before, coarse, times
        self.found, self.random = Forced(step.number), random
        self.trainable, self.rest = split(port.to_ours(before, port.like))
        self.losses, grads, self.rest_after = port.grads(self.trainable, self.rest, step)
        self.seen = port.seen(grads, step)
        self.grads = port.to_torch(self.seen)
        self.torch_grads = step.frame.arrays("grad/")
        scale = max(1.0, *step.frame.header["factors"])
        raw = step.frame.arrays("raw/")
        self.raw = {name: raw[name] / x.dtype.type(scale) if name in raw else x for name, x in self.torch_grads.items()}
        self.clipped = any(distance(x, self.torch_grads[name]) > 1e-6 * norm(x) + 1e-30 for name, x in self.raw.items())
        self._draws: list[tuple[list[float], Arrays, Arrays]] = []

    def off(self, stage: str, name: str | None, row: Row, what: str, why: str = "", layer: str | None = None) -> None:
        """Something is off."""
        self.found.findings.append(Finding(self.step.number, stage, name, row.apart, row.allowed, what, why, layer))

    def row(self, quantity: str, name: str, ours: Any, torch: Any, floor: float, yard: float) -> Row:
        """A tensor; `floor` and `yard` are absolute."""
        scale = norm(np.asarray(torch)) or 1.0
        allowed = floor + self.times * yard
        made = Row(quantity, name, distance(ours, torch) / scale, yard / scale, allowed / scale)
        self.found.rows.append(made)
        return made

    def nudged(self, seed: int, size: float) -> tuple[list[float], Arrays, Arrays]:
        """The losses, gradients and statistics from parameters that are some eps off."""
        losses, grads, rest = self.port.grads(noise.nudged(self.trainable, seed, size), self.rest, self.step)
        return losses, self.port.to_torch(self.port.seen(grads, self.step)), self.statistics(rest)

    def draws(self) -> list[tuple[list[float], Arrays, Arrays]]:
        if not self._draws:
            self._draws = [self.nudged(seed, noise.NUDGE) for seed in range(noise.DRAWS)]
        return self._draws

    def statistics(self, rest: Tree) -> Arrays:
        if not self.port.statistics:
            return {}
        whole = self.port.to_torch(join(self.trainable, rest, self.port.like))
        return {name: whole[name] for name in self.port.statistics}

    def itself(self, quantity: str, name: str, torch: np.ndarray, draws: list[np.ndarray], ours: np.ndarray) -> float:
        """The yardstick, absolute: torch's, and ours from nudged parameters."""
        theirs = noise.torch_from_itself(self.step, quantity).get(name, 0.0) * norm(torch)
        return max([theirs, *(distance(draw, ours) for draw in draws)])

    # the stages

    def forward(self, paired: dict[str, str]) -> None:
        """The losses, and every layer from torch's own input."""
        if self.layers(paired):
            return
        mine, theirs = self.losses, self.step.losses
        mine, theirs = (mine[:1], theirs[:1]) if len(mine) == 1 else (mine, theirs)
        if len(mine) != len(theirs):
            self.found.notes.append(f"step {self.step.number} has {len(mine)} batches and {len(theirs)} losses")
            return
        for i, (ours, torch) in enumerate(zip(mine, theirs, strict=True)):
            draws = [np.asarray(draw[0][i]) for draw in self.draws()]
            yard = self.itself("loss", str(i), np.asarray(torch), draws, np.asarray(ours))
            row = self.row("loss", f"batch {i}", ours, torch, noise.LOSS * self.coarse * abs(torch), yard)
            if row.off:
                what = (
                    f"the loss of step {self.step.number} is {ours:.7g}, torch's {torch:.7g}, from the same parameters "
                    "and batch"
                )
                why = blame.factor([np.asarray(ours)], [np.asarray(torch)], self.step.batches()[0])
                self.off("loss", None, row, what, why)
                return

    def layers(self, paired: dict[str, str]) -> bool:
        """Every layer from torch's own input to those before it: whether one is off."""
        outputs, inputs = self.step.frame.arrays("output/"), self.step.frame.arrays("input/")
        made_by = self.step.frame.header["inputs"]
        inputs |= {name: outputs[maker] for name, maker in made_by.items() if maker in outputs}
        if not outputs or not self.step.batches():
            return False
        arguments = (self.trainable, self.rest, as_jax(self.step.batches()[0]))
        bent = {name: np.asarray(x) for name, x in noise.nudged(dict(outputs), 0, 1.0).items()}
        try:
            found, again = called(self.port.loss, arguments, paired, (outputs, bent), inputs)
        except (jax.errors.JAXTypeError, jax.errors.UnexpectedTracerError, ValueError, TypeError) as error:
            self.found.notes.append(f"the layers could not be looked at: {str(error).splitlines()[0]}")
            return False
        theirs, off, right = noise.torch_from_itself(self.step, "output"), False, set[str]()
        for name, layer in found.items():
            rows = []
            for quantity in ("input", "output"):
                pair, nudged = getattr(layer, quantity), getattr(again[name], quantity)
                if pair is not None:
                    yard = max(theirs.get(name, 0.0) * norm(pair[1]), distance(pair[0], nudged[0]))
                    floor = noise.OUTPUT * self.coarse * norm(pair[1])
                    rows.append(self.row(quantity, name, pair[0], pair[1], floor, yard))
            if not off and rows[-1].off:
                maker = made_by.get(name) if rows[0].off and len(rows) > 1 else None
                self.layer_off(name, layer, rows[0] if rows[0].off else rows[-1], maker, maker in right)
                off = True
            right.add(name)
        return off

    def layer_off(self, name: str, layer: Layer, row: Row, maker: str | None, is_right: bool) -> None:
        """A layer is off, or what is before it: in torch the module `maker`, where it is one, if that is not right."""
        between, maker = (maker, None) if is_right else ("", maker)
        named = maker or name.partition("#")[0]
        own = [each["name"] for each in self.port.trace.parameters if each["name"].rpartition(".")[0] == named]
        own = own or [x["name"] for x in self.port.trace.parameters if x["name"].rpartition(".")[0] == name]
        if row.quantity == "output":
            where = f"in {name} ({layer.kind}): from torch's own input its output"
        elif maker:
            where = f"in {maker}: its output, which {name} takes,"
        elif between:
            where = f"in the code between {between} and {name} ({layer.kind}): {between} is right, the input of {name}"
        else:
            where = f"in the code before {name} ({layer.kind}): its input"
        what = f"the forward pass of step {self.step.number} parts {where} is {number(row.apart)} of torch's off"
        dtypes = [x.dtype.name for x in (layer.output if row.quantity == "output" else layer.input or ())]
        narrow = len(dtypes) == 2 and noise.EPS.get(dtypes[0], 0.0) > noise.EPS.get(dtypes[1], 1.0)
        why = f"the port computes in {dtypes[0]}, torch in {dtypes[1]}" if narrow else ""
        self.off("loss", own[0] if own else None, row, what, why, layer=named)

    def gradient(self) -> None:
        if self.port.closures or not self.raw:
            return
        whole, off = total(self.raw), []
        for name in self.port.names:
            if name not in self.raw:
                continue
            ours, torch = self.grads[name], self.raw[name]
            yard = self.itself("grad", name, torch, [draw[1][name] for draw in self.draws()], ours)
            floor = self.coarse * (noise.GRADIENT * norm(torch) + noise.WHOLE * whole)
            row = self.row("grad", name, ours, torch, floor, yard)
            if row.off:
                off.append((name, row))
        if not off:
            return
        names = [name for name in self.port.names if name in self.raw]
        uniform = blame.factor([self.grads[n] for n in names], [self.raw[n] for n in names], {})
        if not uniform and self.tie([name for name, _ in off]):
            self.found.notes.append(
                f"step {self.step.number}: rounding decides a tie (max pooling, ReLU): the gradient of {off[-1][0]} is "
                f"{number(off[-1][1].apart)} of torch's off, and as far from itself where its parameters are nudged"
            )
            for _, row in off:
                row.allowed = row.apart
            return
        later = names.index(off[-1][0]) == len(names) - 1
        name, row = max(off, key=lambda each: each[1].apart) if later or uniform else off[-1]
        what = (
            f"the gradient of {name} in step {self.step.number} is {number(row.apart)} of torch's off, from the same "
            f"parameters and batch ({len(off)} of {len(names)} parameters are off)"
        )
        self.off("gradient", name, row, what, uniform or self.untied(name))

    def untied(self, name: str) -> str:
        alias = next((a for a, own in self.port.untied.items() if name in (a, own)), None)
        return f"torch ties {alias} to {self.port.untied[alias]}, the port has two" if alias else ""

    def tie(self, names: list[str]) -> bool:
        """Whether the gradients are as far from themselves, where the parameters are a few more eps off."""
        draws = [self.nudged(100 + seed, noise.TIE * self.coarse)[1] for seed in range(noise.TIE_DRAWS)]
        return all(
            distance(self.grads[name], self.raw[name]) <= 1.5 * max(distance(d[name], self.grads[name]) for d in draws)
            for name in names
        )

    def update(self, state: Any) -> None:
        """The update with what torch's optimizer saw, and the statistics."""
        ours, rows, state_after = self.stepped(self.torch_grads, state)
        if self.clipped and any(row.off for row in rows):  # to clip once more what is clipped moves it a little
            _, unclipped, _ = self.stepped(self.raw, state)
            rows = rows if any(row.off for row in unclipped) else unclipped
        self.found.after, off = ours, [row for row in rows if row.off]
        self.found.rows += rows
        after, trained = self.step.frame.arrays("after/"), [row for row in off if row.name in self.torch_grads]
        if trained:
            row, names = trained[0], [row.name for row in trained]
            moved = {n: (ours[n] - self.before[n], after[n] - self.before[n], self.before[n]) for n in names}
            why, stage = blame.update(self.port, self.step, state, self.trainable, row.name, moved)
            if not why and self.clipped:
                why = f"torch clips this gradient{self.by_value()}; another clipping in the port may be why"
            what = (
                f"the update of {row.name} in step {self.step.number} is {number(row.apart)} of torch's step off, with "
                f"torch's own gradient and state ({len(trained)} of {len(self.torch_grads)} parameters are off)"
            )
            self.off(stage, row.name, row, what, why)
        elif off:
            what = f"torch does not train {off[0].name}, the port does, in step {self.step.number}"
            why = "its gradient is None in torch: put it in a group with frozen=True"
            self.off("update", off[0].name, off[0], what, why)
        elif self.clipped:
            self.clip(state, state_after)
        self.running()

    def by_value(self) -> str:
        """Whether torch clips element by element: what is not at the largest is as it was."""
        seen = {name: x for name, x in self.torch_grads.items() if x.dtype.kind == "f" and x.size}
        largest = max((float(np.abs(x).max()) for x in seen.values()), default=0.0)
        kept = all(
            (np.isclose(x, self.raw[n], 1e-5, 0) | np.isclose(np.abs(x), largest, 1e-5)).all() for n, x in seen.items()
        )
        return f" by value, to {number(largest)}" if self.clipped and kept else ""

    def stepped(self, given: Arrays, state: Any) -> tuple[Arrays, list[Row], Any]:
        """A step of ours with a gradient of torch's: the parameters, how far off each is, and the state after it."""
        port, count = self.port, len(self.step.batches())
        fed = {**self.grads, **given}
        grads = port.to_ours({name: fed[name] for name in port.names if name in fed}, self.trainable)
        after, itself = self.step.frame.arrays("after/"), dict[str, float]()
        if port.closures:  # which take many steps in one, and part in them
            starts = [self.trainable, *(noise.nudged(self.trainable, i, noise.NUDGE) for i in range(noise.DRAWS))]
            steps = [port.own_step([], self.rest, state, start, self.step) for start in starts]
            new, state_after = steps[0]
            ours, *others = (port.to_torch(params) for params, _ in steps)
            itself = {n: max(distance(other[n], ours[n]) for other in others) for n in port.names}
        else:
            new, state_after = port.stepped(grads, state, self.trainable, count)
            ours = port.to_torch(new)
        for kind in {each["kind"] for each in port.trace.optimizers} & noise.INEXACT.keys():
            bent = noise.nudged(grads, 0, noise.INEXACT[kind][0] / noise.EPS["float32"])  # another rounding inside
            again = port.to_torch(port.stepped(bent, state, self.trainable, count)[0])
            itself |= {n: distance(again[n], ours[n]) for n in port.names if blame.kind(port, n) == kind}
        rows = []
        for name in port.names:
            own = port.tied(name)
            rows.append(self.updated(name, ours[name], after[own], self.before[own], itself.get(name, 0.0)))
        return ours, rows, state_after

    def updated(self, name: str, ours: np.ndarray, torch: np.ndarray, old: np.ndarray, itself: float) -> Row:
        """The row of a parameter's update, in parts of the step that torch took."""
        yard = max(itself, noise.torch_from_itself(self.step, "after").get(name, 0.0) * norm(torch))
        scale = norm(np.asarray(torch, np.float64) - old)
        rounding = 2 * noise.EPS.get(torch.dtype.name, noise.EPS["float32"]) * norm(torch)
        allowed, unit = blame.floor(self.port, name) * scale + rounding + self.times * yard, scale or 1.0
        return Row("update", name, distance(ours, torch) / unit, yard / unit, allowed / unit)

    def clip(self, state: Any, after_seen: Any) -> None:
        """The step once more from the gradient before torch clipped it: an optimizer that clips gets to the same."""
        raw, _, after_raw = self.stepped(self.raw, state)
        pairs = [
            (np.asarray(a), np.asarray(b))
            for a, b in zip(jax.tree.leaves(after_raw), jax.tree.leaves(after_seen), strict=True)
            if np.ndim(a) and np.issubdtype(np.asarray(a).dtype, np.inexact)
        ]
        apart = max((distance(a, b) / (norm(b) or 1.0) for a, b in pairs), default=0.0)
        for name, ours in self.found.after.items():  # an optimizer may keep no state
            if name in self.torch_grads and blame.kind(self.port, name) not in noise.INEXACT:
                step, rounding = ours - self.before[name], 4 * noise.EPS["float32"] * norm(ours)
                apart = max(apart, (distance(raw[name], ours) - rounding) / (norm(step) or 1.0))
        if apart > CLIPPED:
            what = (
                f"torch clips the gradient of step {self.step.number} from a norm of {number(total(self.raw))} to "
                f"{number(total(self.torch_grads))}{self.by_value()}, and the port's optimizer does not clip it so"
            )
            to, by = ("value", "clip") if self.by_value() else ("norm", "clip_by_global_norm")
            why = (
                f"the clipping is left out, or to another {to}; it belongs into the optimizer given here: "
                f"optax.chain(optax.{by}(...), optimizer)"
            )
            self.off("update", self.port.names[0], Row("clip", "", apart, 0.0, CLIPPED), what, why)

    def running(self) -> None:
        """BatchNorm's statistics after the step."""
        ours, after = self.statistics(self.rest_after), self.step.frame.arrays("after/")
        for name, mine in ours.items():
            draws = [draw[2][name] for draw in self.draws()]
            yard = self.itself("buffer", name, after[name], draws, mine)
            row = self.row("statistic", name, mine, after[name], noise.GRADIENT * self.coarse * norm(after[name]), yard)
            if row.off and not any(each.layer for each in self.found.findings):
                what = f"the statistic {name} after step {self.step.number} is {number(row.apart)} of torch's off"
                why = blame.statistic(mine, after[name], self.before[name])
                self.off("update", name, row, what, why, layer=name.rpartition(".")[0])

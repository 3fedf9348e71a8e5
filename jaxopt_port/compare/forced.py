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
        off = self.layers(paired)
        if off is not None:
            self.found.findings.append(off)
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
                self.found.findings.append(
                    Finding(
                        self.step.number,
                        "loss",
                        None,
                        row.apart,
                        row.allowed,
                        f"the loss of step {self.step.number} is {ours:.7g}, torch's {torch:.7g}, from the same "
                        "parameters and batch",
                        blame.factor([np.asarray(ours)], [np.asarray(torch)], as_jax(self.step.batches()[0])),
                    )
                )
                return

    def layers(self, paired: dict[str, str]) -> Finding | None:
        """Every layer from torch's own input to those before it; the first that is off."""
        outputs, inputs = self.step.frame.arrays("output/"), self.step.frame.arrays("input/")
        made_by = self.step.frame.header["inputs"]
        inputs |= {name: outputs[maker] for name, maker in made_by.items() if maker in outputs}
        if not outputs or not self.step.batches():
            return None
        arguments = (self.trainable, self.rest, as_jax(self.step.batches()[0]))
        bent = {name: np.asarray(x) for name, x in noise.nudged(dict(outputs), 0, 1.0).items()}
        try:
            found, again = called(self.port.loss, arguments, paired, (outputs, bent), inputs)
        except (jax.errors.JAXTypeError, jax.errors.UnexpectedTracerError, ValueError, TypeError) as error:
            self.found.notes.append(f"the layers could not be looked at: {str(error).splitlines()[0]}")
            return None
        theirs, off = noise.torch_from_itself(self.step, "output"), None
        for name, layer in found.items():
            rows = []
            for quantity in ("input", "output"):
                pair, nudged = getattr(layer, quantity), getattr(again[name], quantity)
                if pair is not None:
                    yard = max(theirs.get(name, 0.0) * norm(pair[1]), distance(pair[0], nudged[0]))
                    floor = noise.OUTPUT * self.coarse * norm(pair[1])
                    rows.append(self.row(quantity, name, pair[0], pair[1], floor, yard))
            if off is None and rows[-1].off:
                maker = made_by.get(name) if rows[0].off and len(rows) > 1 else None
                off = self.layer_off(name, layer, rows[0] if rows[0].off else rows[-1], maker)
        return off

    def layer_off(self, name: str, layer: Layer, row: Row, maker: str | None) -> Finding:
        """A layer is off, or what is before it: in torch the module `maker`, where it is one."""
        named = maker or name.partition("#")[0]
        own = [each["name"] for each in self.port.trace.parameters if each["name"].rpartition(".")[0] == named]
        own = own or [x["name"] for x in self.port.trace.parameters if x["name"].rpartition(".")[0] == name]
        if row.quantity == "output":
            where = f"in {name} ({layer.kind}): from torch's own input its output"
        elif maker:
            where = f"in {maker}: its output, which {name} takes,"
        else:
            where = f"in the code before {name} ({layer.kind}): its input"
        what = f"the forward pass of step {self.step.number} parts {where} is {number(row.apart)} of torch's off"
        parameter = own[0] if own else None
        return Finding(self.step.number, "loss", parameter, row.apart, row.allowed, what, layer=named)

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
        self.found.findings.append(
            Finding(
                self.step.number,
                "gradient",
                name,
                row.apart,
                row.allowed,
                f"the gradient of {name} in step {self.step.number} is {number(row.apart)} of torch's off, from the "
                f"same parameters and batch ({len(off)} of {len(names)} parameters are off)",
                uniform or self.untied(name),
            )
        )

    def untied(self, name: str) -> str:
        pairs = {*self.port.untied, *self.port.untied.values()}
        alias = next((a for a, own in self.port.untied.items() if name in (a, own)), None)
        return f"torch ties {alias} to {self.port.untied[alias]}, the port has two" if name in pairs and alias else ""

    def tie(self, names: list[str]) -> bool:
        """Whether the gradients are as far from themselves, where the parameters are a few more eps off."""
        draws = [self.nudged(100 + seed, noise.TIE * self.coarse)[1] for seed in range(noise.TIE_DRAWS)]
        return all(
            distance(self.grads[name], self.raw[name]) <= 1.5 * max(distance(d[name], self.grads[name]) for d in draws)
            for name in names
        )

    def update(self, state: Any) -> Any:
        """The update with what torch's optimizer saw, and the statistics. Returns the state after it."""
        fed = {**self.grads, **self.torch_grads}
        grads = self.port.to_ours({name: fed[name] for name in self.port.names if name in fed}, self.trainable)
        after = self.step.frame.arrays("after/")
        if self.port.closures:
            new, new_state = self.port.own_step([], self.rest, state, self.trainable, self.step)
        else:
            new, new_state = self.port.stepped(grads, state, self.trainable, len(self.step.batches()))
        ours, off = self.port.to_torch(new), []
        self.found.after = ours
        itself = self.inexact(grads, state, ours)
        for name in self.port.names:
            name_in_torch = self.port.untied.get(name, name)
            torch, old = after[name_in_torch], self.before[name_in_torch]
            row = self.updated(name, ours[name], torch, old, itself.get(name, 0.0))
            if row.off:
                off.append((name, row))
        trained = [(name, row) for name, row in off if name in self.torch_grads]
        if trained:
            name, row = trained[0]
            moved = {n: (ours[n] - self.before[n], after[n] - self.before[n], self.before[n]) for n, _ in trained}
            why, stage = blame.update(self.port, self.step, state, self.trainable, name, moved)
            self.found.findings.append(
                Finding(
                    self.step.number,
                    stage,
                    name,
                    row.apart,
                    row.allowed,
                    f"the update of {name} in step {self.step.number} is {number(row.apart)} of torch's step off, with "
                    f"torch's own gradient and state ({len(trained)} of {len(self.torch_grads)} parameters are off)",
                    why,
                )
            )
        elif off:
            name, row = off[0]
            self.found.findings.append(
                Finding(
                    self.step.number,
                    "update",
                    name,
                    row.apart,
                    row.allowed,
                    f"torch does not train {name}, the port does, in step {self.step.number}",
                    "its gradient is None in torch: put it in a group with frozen=True",
                )
            )
        elif self.clipped:
            self.clip(state, new_state)
        self.running()
        return new_state

    def inexact(self, grads: Tree, state: Any, ours: Arrays) -> dict[str, float]:
        """How far our step is from itself with another rounding inside, of the optimizers that round coarsely."""
        kinds = {each["kind"] for each in self.port.trace.optimizers} & noise.INEXACT.keys()
        found: dict[str, float] = {}
        for kind in kinds:
            bent = noise.nudged(grads, 0, noise.INEXACT[kind][0] / 2.0**-23)
            again = self.port.to_torch(self.port.stepped(bent, state, self.trainable, len(self.step.batches()))[0])
            found |= {
                name: distance(again[name], ours[name])
                for name in self.port.names
                if blame.kind(self.port, name) == kind
            }
        return found

    def updated(self, name: str, ours: np.ndarray, torch: np.ndarray, old: np.ndarray, itself: float) -> Row:
        """The row of a parameter's update, in parts of the step that torch took."""
        yard = max(itself, noise.torch_from_itself(self.step, "after").get(name, 0.0) * norm(torch))
        scale = norm(np.asarray(torch, np.float64) - old)
        floor = blame.floor(self.port, name) * scale + 2 * noise.EPS["float32"] * self.coarse_of(torch) * norm(torch)
        allowed, unit = floor + self.times * yard, scale or 1.0
        row = Row("update", name, distance(ours, torch) / unit, yard / unit, allowed / unit)
        self.found.rows.append(row)
        return row

    def coarse_of(self, x: np.ndarray) -> float:
        return noise.EPS.get(x.dtype.name, noise.EPS["float32"]) / noise.EPS["float32"]

    def clip(self, state: Any, after_seen: Any) -> None:
        """The step once more from the gradient before torch clipped it: an optimizer that clips gets to the same."""
        fed = {**self.grads, **self.raw}
        grads = self.port.to_ours({name: fed[name] for name in self.port.names}, self.trainable)
        _, after_raw = self.port.stepped(grads, state, self.trainable, len(self.step.batches()))
        pairs = [
            (np.asarray(a), np.asarray(b))
            for a, b in zip(jax.tree.leaves(after_raw), jax.tree.leaves(after_seen), strict=True)
            if np.ndim(a) and np.issubdtype(np.asarray(a).dtype, np.inexact)
        ]
        apart = max((distance(a, b) / (norm(b) or 1.0) for a, b in pairs), default=0.0)
        if apart > 1e-3:
            self.found.findings.append(
                Finding(
                    self.step.number,
                    "update",
                    self.port.names[0],
                    apart,
                    1e-3,
                    f"torch clips the gradient of step {self.step.number} from a norm of {number(total(self.raw))} to "
                    f"{number(total(self.torch_grads))}, and the port's optimizer does not clip it so",
                    "the clipping is left out, or to another norm; it belongs into the optimizer given here: "
                    "optax.chain(optax.clip_by_global_norm(...), optimizer)",
                )
            )

    def running(self) -> None:
        """BatchNorm's statistics after the step."""
        ours, after = self.statistics(self.rest_after), self.step.frame.arrays("after/")
        for name, mine in ours.items():
            draws = [draw[2][name] for draw in self.draws()]
            yard = self.itself("buffer", name, after[name], draws, mine)
            row = self.row("statistic", name, mine, after[name], noise.GRADIENT * self.coarse * norm(after[name]), yard)
            if row.off and not any(each.layer for each in self.found.findings):
                self.found.findings.append(
                    Finding(
                        self.step.number,
                        "update",
                        name,
                        row.apart,
                        row.allowed,
                        f"the statistic {name} after step {self.step.number} is {number(row.apart)} of torch's off",
                        blame.statistic(mine, after[name], self.before[name]),
                        layer=name.rpartition(".")[0],
                    )
                )

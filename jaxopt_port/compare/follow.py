"""Follow a recorded torch run with a port: where the two part, and why."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxopt_port.compare import blame, noise
from jaxopt_port.compare import layers as layers_
from jaxopt_port.compare.findings import Finding, first, number
from jaxopt_port.compare.forced import Check, Forced
from jaxopt_port.compare.noise import distance, norm
from jaxopt_port.compare.port import Port, split
from jaxopt_port.compare.run import Point, Run
from jaxopt_port.compare.sampled import Samples
from jaxopt_port.compare.trace import Arrays, Trace, read

Tree = Any

SAME = 1e-6  # of a tensor: start weights and batches that are so near are equal


@dataclass
class Followed:
    """What `follow` found.

    Args:
      ok: whether nothing is further off than rounding makes it.
      verdict: one sentence.
      findings: all that is off; `blamed` is the first of them.
      trace: torch's run.
      full: the full steps, tensor by tensor.
      points: the port's own run, step by step.
      notes: what else is to be said.
    """

    ok: bool
    verdict: str
    findings: list[Finding]
    trace: Trace
    full: list[Forced] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def blamed(self) -> Finding | None:
        return first(self.findings)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON has it.

        Returns:
          A dict; numbers that are not finite are None.
        """
        from jaxopt_port.compare.report import to_json

        return to_json(self)

    def report(self, path: str | Path) -> None:
        """Write the page: one HTML file with nothing outside it. Needs matplotlib.

        Args:
          path: of the file.
        """
        from jaxopt_port.compare.report import page

        Path(path).write_text(page(self))

    def __str__(self) -> str:
        from jaxopt_port.compare.report import text

        return text(self)


def follow(
    path: str | Path,
    loss_fn: Callable[..., Any],
    params: Tree,
    optimizer: Any,
    mapping: Any = None,
    layers: Mapping[str, str] | None = None,
    *,
    batches: Iterable[Any] | None = None,
    times: float = noise.TIMES,
) -> Followed:
    """Find where a port parts from a recorded torch run.

    Looked at are, in this order: the start weights and the batches; the loss and every layer; the gradient, from
    torch's own parameters and batch; the update, with torch's own gradient and state, and its schedule. Full steps are
    looked at whole, the others where they were sampled; then the port runs by itself. Off is what is further from
    torch's than torch is from itself, see `noise`.

    Args:
      path: what `record` wrote.
      loss_fn: `loss_fn(params, **batch)`, or `loss_fn(params, batch)`, with torch's batch by the names that
        `r.batch` gave it. It returns the loss that backward is called on in torch, or `(loss, changed)` with what else
        changes, such as `{"batch_stats": ...}` or an nnx state.
      params: the port's first parameters, linen's variables or an nnx state; of shapes alone (`jax.eval_shape`) they
        are taken to be torch's.
      optimizer: of this library, of optax, or anything with `init(params)` and `step(grads, state, params)`, with all
        that is between gradient and step: `optax.chain(optax.clip_by_global_norm(1.0), ...)`, `every_k`,
        `compare.Scheduled(optimizer, scheduler)`.
      mapping: from `torch_interop.layout.infer`, where that needs help.
      layers: flax's layers by torch's modules, where names do not pair them: `{"act": "gelu_0"}`.
      batches: the port's own batches, a dict a step or a list of dicts, to be compared with torch's.
      times: how many times the yardstick is off.

    Returns:
      What was found.

    Raises:
      FileNotFoundError: no file.
      TraceError: no trace.
      TypeError: no loss function or optimizer, or a loss function that does not take the batch.
      ValueError: a trace without steps, batches or losses; parameters that `layout.infer` cannot tell apart; a loss
        that is no number.
    """
    trace = read(path)
    if not trace.steps:
        raise ValueError(f"{path} has no step: the run was killed in its first, or the optimizer never stepped")
    for step in trace.steps:
        if not step.frame.names("batch/"):
            raise ValueError(
                f"step {step.number} of {path} has no batch: call r.batch(x=..., y=...) before the forward pass"
            )
        if not step.losses:
            raise ValueError(f"step {step.number} of {path} has no loss: call r.loss(loss) before backward")
    try:
        port = Port(trace, loss_fn, params, optimizer, mapping)
    except ValueError as error:
        missing = _missing(trace, params, error) if mapping is None else None
        if missing is None:
            raise
        return Followed(False, f"At the start: {missing.sentence}", [missing], trace)
    return _Following(port, times, layers, batches).followed()


def assert_follows(path: str | Path, *args: Any, **kwargs: Any) -> None:
    """A test: that `follow(path, ...)` finds nothing, with what it found as the message.

    Args:
      path: what `record` wrote.
      *args: as of `follow`.
      **kwargs: as of `follow`.

    Raises:
      AssertionError: the port parts from torch.
      Exception: all that `follow` raises.
    """
    followed = follow(path, *args, **kwargs)
    if not followed.ok:
        raise AssertionError(str(followed))


class _Following:
    """One comparison."""

    def __init__(self, port: Port, times: float, layers: Mapping[str, str] | None, batches: Iterable[Any] | None):
        self.port, self.trace, self.times = port, port.trace, times
        self.paired = layers_.pairs(port.mapping, layers)
        self.batches = batches
        eps, kind = noise.eps(self.trace)
        self.coarse = max(1.0, eps / noise.EPS["float32"] / 4)  # float32's sums are longer than one rounding
        self.random = _random(self.trace)
        self.findings: list[Finding] = []
        self.full: list[Forced] = []
        self.notes = _notes(self.trace, kind, self.random)

    def followed(self) -> Followed:
        self.start()
        self.data()
        trace, port = self.trace, self.port
        trainable, rest = split(port.to_ours(trace.model, port.like))
        state = port.init(trainable)
        samples = None if port.closures else Samples(port, state)
        run = Run(port, trainable, rest)
        for step in trace.steps:
            if not np.isfinite(step.losses).all():
                self.notes.append(
                    f"torch's loss is not finite in step {step.number}: from there on nothing is compared"
                )
                break
            forced = self.forced(step, run) if step.full else None
            if samples is not None:
                self.add(samples.step(step, trainable, forced.after or None if forced else None))
            off = run.step(step)
            looked_at = forced is not None and step is trace.steps[0]  # from torch's start: the same, and closer
            if not self.random and not looked_at and first(self.findings) is None:
                self.add(off)
        if not self.findings:
            self.options(state, trainable)
        verdict = self.verdict(len(run.points))
        return Followed(not self.findings, verdict, self.findings, trace, self.full, run.points, self.notes)

    def add(self, found: Finding | None) -> None:
        if found is not None and not any(each.step <= found.step for each in self.findings if each.step):
            self.findings.append(found)

    def start(self) -> None:
        """Whether the port starts from torch's weights."""
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(self.port.like)):
            return
        ours, theirs = self.port.to_torch(self.port.like), self.port.torchs(self.trace.model)
        for name, mine in ours.items():
            apart = distance(mine, theirs[name]) / (norm(theirs[name]) or 1.0)
            if not apart <= SAME:
                self.findings.append(
                    Finding(
                        0,
                        "start",
                        name,
                        apart,
                        SAME,
                        f"{name} is {number(apart)} of torch's off",
                        _moved(name, mine, theirs),
                    )
                )
                return

    def options(self, state: Tree, trainable: Tree) -> None:
        """Options that are not torch's, of which the steps show nothing: a fault where an optimizer rounds too coarsely
        to show it, otherwise to be said."""
        first_step, hyper = self.trace.steps[0], self.port.hyper(state, trainable) or {}
        for name in self.port.names:
            differ = blame.differing(self.port, first_step, hyper.get(name, {}), name)
            differ = {key: pair for key, pair in differ.items() if all(map(_is_number, pair))}
            kind = blame.kind(self.port, name)
            if differ and kind in noise.INEXACT:
                what = f"{kind} steps {name} with other options than torch's"
                finding = Finding(first_step.number, "update", name, float("inf"), 0.0, what, blame.told(differ))
                self.findings.append(finding)
                return
            if differ:
                self.notes.append(f"the options of {name} are not torch's: {blame.told(differ)}")
                return

    def data(self) -> None:
        """Whether the port's batches are torch's."""
        for step, mine in zip(self.trace.steps, self.batches or (), strict=False):
            for ours, torch in zip(mine if isinstance(mine, list) else [mine], step.batches(), strict=False):
                wrong = [n for n, x in torch.items() if n in ours and not _equal(np.asarray(ours[n]), x)]
                if wrong:
                    ours_sorted, theirs = (np.sort(np.asarray(x).ravel()) for x in (ours[wrong[0]], torch[wrong[0]]))
                    why = "the same numbers in another order" if _equal(ours_sorted, theirs) else ""
                    why = why or _batch_of(self.trace, wrong[0], np.asarray(ours[wrong[0]]))
                    what = f"the batch of step {step.number} is another: {wrong[0]}"
                    self.findings.append(Finding(step.number, "data", None, float("inf"), SAME, what, why))
                    return

    def forced(self, step: Any, run: Run) -> Forced:
        """A full step, each part from torch's own."""
        before = self.trace.model if step.number == self.trace.steps[0].number else step.frame.arrays("before/")
        check = Check(self.port, step, before, self.coarse, self.times, self.random != "")
        if not self.random:
            check.forward(self.paired)
            check.gradient()
        state = run.ours.state
        try:
            state = self.port.with_torchs(state, step.frame, step, check.trainable)
        except ValueError as error:
            self.notes.append(f"step {step.number}: torch's moments cannot be given to this optimizer: {error}")
            self.full.append(check.found)
            return check.found
        check.update(state)
        for each in check.found.findings:
            if first(self.findings) is None or each.step <= max(x.step for x in self.findings):
                self.findings.append(each)
        self.notes += check.found.notes
        self.full.append(check.found)
        return check.found

    def verdict(self, steps: int) -> str:
        blamed = first(self.findings)
        if blamed is None:
            rows = [row for full in self.full for row in full.rows if row.allowed and row.quantity != "input"]
            last = max((row.apart / row.allowed for row in rows), default=0.0)
            random = f" Loss and gradient were not judged: {self.random} draws at random." if self.random else ""
            whole = "all " if steps == len(self.trace.steps) else ""
            return (
                f"The port follows torch through {whole}{steps:,} steps: nothing is "
                f"further off than rounding makes it (at most {number(last)} of what is allowed).{random}"
            )
        where = "At the start" if not blamed.step else f"At step {blamed.step:,}"
        stage = "" if blamed.stage == "start" else f", in the {blamed.stage}"
        return f"{where} the two part{stage}: {blamed.sentence}"


def _random(trace: Trace) -> str:
    """Which of torch's modules draw random numbers."""
    names = [
        f"{module['name']} ({module['kind']})"
        for module in trace.start.header["modules"]
        if module["options"].get("training")
        and (("Dropout" in module["kind"] and module["options"].get("p", 0) > 0) or module["options"].get("dropout", 0))
        and not module["kind"][0].islower()
    ]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _notes(trace: Trace, kind: str, random: str) -> list[str]:
    header, notes = trace.start.header, []
    ours = jax.devices()[0].platform
    if kind not in ("float32", "float64"):
        notes.append(f"torch computed in {kind}: the bounds are those of its eps, {noise.eps(trace)[0]:.1e}")
    if header["device"] != "cpu" or ours != "cpu":
        notes.append(f"torch ran on {header['device']}, the port on {ours}")
    if random:
        notes.append(f"{random} draws at random: loss and gradient differ by that, and are not judged")
    if not any(step.redo for step in trace.steps):
        notes.append("no step was done again in torch (r.redo): the yardstick is the port's own rounding")
    if trace.cut:
        notes.append("the recording was cut short; what it has is compared")
    if not any(step.full for step in trace.steps):
        notes.append("no step is whole (full=): loss, layers and gradient are compared in the port's own run alone")
    return notes


def _batch_of(trace: Trace, name: str, ours: np.ndarray) -> str:
    """Which step's batch it is in torch."""
    others = (step.number for step in trace.steps for x in step.batches() if name in x and _equal(ours, x[name]))
    other = next(others, None)
    return f"it is torch's of step {other}" if other else ""


def _moved(name: str, ours: np.ndarray, torchs: Arrays) -> str:
    """What was done to a weight."""
    torch = torchs[name]
    other = next((n for n, x in torchs.items() if n != name and x.any() and _equal(ours, x)), None)
    if other:
        return f"it is torch's {other}"
    if ours.ndim == 2 and ours.shape[0] == ours.shape[1] and _equal(ours.T, torch):
        return "it is torch's, transposed"
    if _equal(np.sort(ours.ravel()), np.sort(torch.ravel())):
        return "it has torch's numbers in another order, as after another flattening"
    if np.isfinite(ours).all() and _equal(ours / (norm(ours) or 1), torch / (norm(torch) or 1)):
        return f"it is torch's times {number(norm(ours) / norm(torch))}"
    return "it is not torch's: layout.to_flax moves torch's weights"


def _is_number(x: Any) -> bool:
    """Or some: a word such as `adjust_lr_fn` may be another for the same, and shows in every step."""
    return isinstance(x, int | float | list | tuple)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(distance(a, b) <= SAME * (norm(b) or 1.0))


def _missing(trace: Trace, params: Tree, error: ValueError) -> Finding | None:
    """The parameter that one side has and the other has not, where that is all that is wrong."""
    if "no counterpart" not in str(error):
        return None
    from jaxopt_port.torch_interop import layout

    shapes = {each["name"]: tuple(each["shape"]) for each in trace.parameters}
    shapes |= {each["name"]: tuple(each["shape"]) for each in trace.start.header["buffers"]}
    line = next(line.strip() for line in str(error).splitlines() if "no counterpart" in line)
    named = [name for name in shapes if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", line)]
    for name in [n for n in named or shapes if n.endswith("bias")] + named:
        try:
            layout.infer({n: s for n, s in shapes.items() if n != name}, params)
        except ValueError:
            continue
        return Finding(0, "start", name, float("inf"), SAME, f"the port has no counterpart of {name}")
    return Finding(0, "start", named[0] if named else None, float("inf"), SAME, line)

"""Runs one case here and in torch, and counts the bits in which they differ."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

import jaxopt_port
from tests import oracle
from tests.exact.cases import Case, gradients, parameters
from tests.helpers import eps_apart, real_numbers, same_kind


class Result(NamedTuple):
    """How a case came out.

    Args:
      case: what was run.
      bits: differing bits, over every step compared, parameter and state array.
      values: how many numbers were compared.
      distance: the largest |ours - torch's| of an array after the last step, in eps of the array's largest number.
      first: the first difference, with what reproduces it; empty where there is none.
    """

    case: Case
    bits: int
    values: int
    distance: float
    first: str


class Ours:
    """One of our optimizers with the same interface as `oracle.Torch`."""

    def __init__(self, case: Case, params: list[np.ndarray], groups: list[list[int]], sparse: bool):
        second = {} if case.second is None else oracle.options(case.second)
        self.groups, self.sparse = groups, sparse
        others = [jaxopt_port.ParamGroup([f"p{i}" for i in inside], **second) for inside in groups[1:]]
        given = oracle.options(case.kwargs)
        self.optimizer = jaxopt_port.optimizers[case.optimizer](**given, param_groups=others)
        self.params: dict[str, Any] = {f"p{i}": jnp.asarray(p) for i, p in enumerate(params)}
        self.state: Any = self.optimizer.init(self.params)
        self._step = _compiled(case.optimizer, self.optimizer, self.state, [given, second])

    def set(self, values: Mapping[str, Any]) -> None:
        if values:
            self.state = jaxopt_port.set_hyper(self.state, **values)

    def step(self, grads: list[np.ndarray | None]) -> None:
        tree = {f"p{i}": None if g is None else self._grad(g) for i, g in enumerate(grads)}
        self.params, self.state = self._step(tree, self.state, self.params)

    def read(self) -> None:
        """Fetch what `value` shows."""
        self._read = jax.tree.map(np.asarray, (self.params, self.state.slots, self.state.steps))

    def _grad(self, g: np.ndarray) -> Any:
        if not self.sparse:
            return g
        rows = np.flatnonzero(g.any(tuple(range(1, g.ndim))))
        indices = np.full((len(g), 1), len(g), np.int32)  # past the end: padding
        indices[: len(rows), 0] = rows
        data = np.zeros_like(g)
        data[: len(rows)] = g[rows]
        return BCOO((jnp.asarray(data), jnp.asarray(indices)), shape=g.shape, indices_sorted=True, unique_indices=True)

    def value(self, index: int, name: str) -> np.ndarray | None:
        """A parameter, under the name "", or its state by torch's name; None where there is none."""
        params, slots, steps = self._read
        if not name:
            return params[f"p{index}"]
        found = (getattr(slots, name, None) or {}).get(f"p{index}")
        if found is not None:
            return found
        group = next(at for at, inside in enumerate(self.groups) if index in inside)
        found = steps[group].get(name)
        return np.asarray(found[self.groups[group].index(index)]) if np.ndim(found) else found


_STEPS: dict[Any, Callable[..., Any]] = {}


def _compiled(name: str, optimizer: Any, state: Any, given: list[dict[str, Any]]) -> Callable[..., Any]:
    """`jit(optimizer.step)`, one for all configurations that differ in live hyper-parameters alone.

    Those are in the state, so the program is the same; that spares half of the compilations, and a number that
    was compiled in by mistake shows as a difference.
    """
    static = [
        (tuple(live), tuple((k, v) for k, v in sorted(options.items()) if k not in live))
        for live, options in zip(state.param_groups, given, strict=False)
    ]
    return _STEPS.setdefault((name, *static), jax.jit(optimizer.step))


def run(case: Case) -> Result:
    """Compare parameters and state after every step, in long runs after every tenth or so."""
    sparse = bool(oracle.optimizer_info(case.optimizer).only_supports_sparse_grads)
    params = parameters(case)
    everyone = list(range(len(params)))
    groups = [everyone] if case.second is None else [everyone[::2], everyone[1::2]]
    kwargs = [case.kwargs] if case.second is None else [case.kwargs, case.second]
    theirs = oracle.Torch(case.optimizer, params, groups, kwargs, sparse, case.flush_denormal)
    bits, values, distance, first = 0, 0, 0.0, ""
    with jax.enable_x64(case.x64):
        ours = Ours(case, params, groups, sparse)
        for step in range(case.steps):
            changed = case.schedule(step) if case.schedule else {}
            grads = gradients(case.optimizer, case.dtype, case.extremes, sparse, step)
            for side in (ours, theirs):
                side.set(changed)
                side.step(grads)
            if step % max(case.steps // 100, 1) and step != case.steps - 1:
                continue  # a difference does not go away
            ours.read()
            for index in everyone:
                for name, expected in theirs.values(index).items():
                    actual = ours.value(index, name)
                    if (case.optimizer, name, step) == ("sgd", "momentum_buffer", 0):
                        expected = without_subnormals(expected)  # the one copy that goes through arithmetic here
                    if expected.dtype == np.int64 and actual is not None:  # a Python number in torch's state
                        expected = expected.astype(actual.dtype)
                    differing, where = differing_bits(actual, expected)
                    bits, values = bits + differing, values + expected.size
                    if step == case.steps - 1 and differing:
                        distance = max(distance, eps_apart(actual, expected))
                    if differing and not first:
                        first = reproduction(case, step, index, name, where, actual, expected)
    return Result(case, bits, values, distance, first)


def without_subnormals(x: np.ndarray) -> np.ndarray:
    """Zeros of the same sign for subnormal numbers, which XLA on a CPU computes with as zeros."""
    parts = real_numbers(x)
    least = float(jnp.finfo(parts.dtype).smallest_normal)
    flushed = np.where(np.abs(parts) < least, np.copysign(0, parts), parts)
    return flushed.astype(parts.dtype).view(x.dtype).reshape(x.shape)


def differing_bits(actual: np.ndarray | None, expected: np.ndarray) -> tuple[int, int]:
    """How many bits differ, and the first index (flat) where some do. All NaNs are equal; 0.0 and -0.0 are not."""
    if not same_kind(actual, expected):
        return expected.nbytes * 8 or 1, 0
    a, b = real_numbers(actual), real_numbers(expected)
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    counts = np.bitwise_count(a.view(unsigned) ^ b.view(unsigned)) * ~(np.isnan(a) & np.isnan(b))
    return int(counts.sum()), int(np.argmax(counts > 0)) if counts.size else 0


def reproduction(
    case: Case, step: int, index: int, name: str, where: int, actual: np.ndarray | None, expected: np.ndarray
) -> str:
    """The first difference of a case, in one line."""
    values = (
        "missing, or of another shape or dtype"
        if not same_kind(actual, expected)
        else f"ours {_hex(actual, where)}, torch's {_hex(expected, where)}"
    )
    second = "" if case.second is None else f" second={dict(case.second)}"
    return (
        f"{case.optimizer} kwargs={dict(case.kwargs)}{second} dtype={case.dtype} ({case.label}) step={step} "
        f"p{index}{name and '.' + name}{list(expected.shape)} first differing index {where}: {values}; "
        f"python -m tests.exact.compare --optimizer {case.optimizer} --dtype {case.dtype} --only {case.label!r}"
    )


def _hex(x: np.ndarray, where: int) -> str:
    x = real_numbers(x)
    return f"{x[where]} 0x{x.view(f'u{x.dtype.itemsize}')[where]:0{2 * x.dtype.itemsize}x}"

"""Carries runs from torch here and from here to torch in the middle, and counts the bits in which they then differ.

Run by test_resume in a process with the settings of tests/exact/compare.py: prints a line of JSON for each run.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxopt_port
from jaxopt_port.torch_interop import load_optimizer, optimizer_state_dict
from tests import oracle
from tests.exact.cases import Case, gradients, parameters
from tests.exact.harness import Ours, differing_bits

HALF, STEPS = 5, 10
LATE = 2  # a parameter that gets its first gradient at step 7


def arrays(x: Any) -> Any:
    """A state dict with arrays for tensors."""
    if isinstance(x, dict):
        return {key: arrays(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(map(arrays, x))
    return oracle.to_numpy(x) if isinstance(x, torch.Tensor) else x


def tensors(x: Any) -> Any:
    """A state dict with tensors for arrays, as `torch.load` gives it."""
    if isinstance(x, dict):
        return {key: tensors(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(map(tensors, x))
    return oracle.to_torch(x) if isinstance(x, np.ndarray) else x


def cases(dtype: str) -> list[Case]:
    """torch's plainest and richest configuration of each optimizer, as two groups and the richest alone."""
    found = []
    for name in jaxopt_port.optimizers:
        if name in ("lbfgs", "nonlinear_cg"):
            continue
        known = oracle.configurations(name)
        plain, rich = known[0][1], max(reversed(known), key=lambda each: len(each[1]))[1]
        x64 = dtype == "float64"
        found.append(Case(name, "two groups", plain, dtype, STEPS, second=rich, x64=x64))
        found.append(Case(name, "richest", rich, dtype, STEPS, x64=x64))
    return found


def grads(case: Case, step: int) -> list[np.ndarray | None]:
    drawn = gradients(case.optimizer, case.dtype, False, case.optimizer == "sparse_adam", step)
    return [None if i == LATE and step < 7 else g for i, g in enumerate(drawn)]


class Run:
    """A run of torch's, which can go on here and be gone on with."""

    def __init__(self, case: Case):
        self.case, start = case, parameters(case)
        everyone = list(range(len(start)))
        self.groups = [everyone] if case.second is None else [everyone[::2], everyone[1::2]]
        self.kwargs = [case.kwargs] if case.second is None else [case.kwargs, case.second]
        self.sparse = case.optimizer == "sparse_adam"
        self.start = start

    def torch(self, params: list[np.ndarray], state_dict: Mapping[str, Any] | None = None) -> oracle.Torch:
        side = oracle.Torch(self.case.optimizer, params, self.groups, self.kwargs, self.sparse)
        if state_dict is not None:
            side.optimizer.load_state_dict(state_dict)
        return side

    def advance(self, side: Any, first: int, last: int) -> Any:
        for step in range(first, last):
            side.step(grads(self.case, step))
        return side

    def params(self, side: Any) -> list[np.ndarray]:
        if isinstance(side, oracle.Torch):
            return [side.values(i)[""] for i in range(len(self.start))]
        return [np.asarray(side.params[f"p{i}"]) for i in range(len(self.start))]


def differences(run: Run, ours: Ours, theirs: oracle.Torch) -> tuple[int, float]:
    """Differing bits of parameters and states, and the parameters' distance in eps of the largest."""
    ours.read()
    bits, distance = 0, 0.0
    for i in range(len(run.start)):
        for name, expected in theirs.values(i).items():
            actual = ours.value(i, name)
            expected = expected if actual is None or name == "" else expected.astype(actual.dtype)
            bits += differing_bits(actual, expected)[0]
            if not name:
                distance = max(distance, _distance(actual, expected))
    return bits, distance


def _distance(a: Any, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / (np.abs(b).max() * np.finfo(b.dtype).eps))


def same_state_dict(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two state dicts differ: in a key, a type or a bit."""
    if isinstance(theirs, dict):
        keys = [f"{where}: keys {sorted(map(str, set(ours) ^ set(theirs)))}"] if set(ours) ^ set(theirs) else []
        return keys + [w for k in theirs if k in ours for w in same_state_dict(ours[k], theirs[k], f"{where}/{k}")]
    if isinstance(theirs, np.ndarray):
        same = isinstance(ours, np.ndarray) and not differing_bits(ours, theirs)[0]
        return [] if same else [where]
    return (
        [] if ours == theirs and isinstance(ours, bool) == isinstance(theirs, bool) else [f"{where}: {ours}, {theirs}"]
    )


def to_jax(case: Case) -> tuple[int, float]:
    """5 steps in torch and 5 here, against 10 in torch."""
    run = Run(case)
    theirs = run.advance(run.torch(run.start), 0, HALF)
    ours = Ours(case, run.params(theirs), run.groups, run.sparse)
    factory = jaxopt_port.optimizers[case.optimizer]
    ours.optimizer, ours.state = load_optimizer(factory, arrays(theirs.optimizer.state_dict()), ours.params)
    ours._step = jax.jit(ours.optimizer.step)
    return differences(run, run.advance(ours, HALF, STEPS), run.advance(theirs, HALF, STEPS))


def to_torch(case: Case) -> tuple[int, float, list[str]]:
    """5 steps here and 5 in torch, against 10 in torch; and where our state dict is not torch's after 5.

    torch's own run is interrupted and loaded as well, for float64: then torch makes NAdam's and ASGD's float32 scalars
    float64.
    """
    run = Run(case)
    ours = run.advance(Ours(case, run.start, run.groups, run.sparse), 0, HALF)
    exported = optimizer_state_dict(ours.optimizer, ours.state, ours.params)
    half = run.advance(run.torch(run.start), 0, HALF)
    written = half.optimizer.state_dict()
    for group in exported["param_groups"]:
        del group["param_names"]
    plain = arrays(written)
    for group in plain["param_groups"]:  # what tests/oracle.py chooses for speed's sake
        group.update({"foreach": None} if "foreach" in group else {})
        group.update({k: v.item() if isinstance(v, np.ndarray) else v for k, v in group.items()})
    differ = same_state_dict(exported, plain)
    resumed = run.advance(run.torch(run.params(ours), tensors(exported)), HALF, STEPS)
    if case.dtype == "float64":
        expected = run.advance(run.torch(run.params(half), written), HALF, STEPS)
    else:
        expected = run.advance(half, HALF, STEPS)
    bits, distance = 0, 0.0
    for i in range(len(run.start)):
        values = resumed.values(i)
        for name, x in expected.values(i).items():
            bits += differing_bits(values.get(name), x)[0]
        distance = max(distance, _distance(values[""], expected.values(i)[""]))
    return bits, distance, differ


def main() -> None:
    oracle.one_thread()
    oracle.ieee_sqrt()
    for dtype in ("float32", "float64"):
        for case in cases(dtype):
            with jax.enable_x64(case.x64):
                here, there = to_jax(case), to_torch(case)
            print(
                json.dumps(
                    {
                        "name": case.optimizer,
                        "label": case.label,
                        "dtype": dtype,
                        "bits here": here[0],
                        "distance here": here[1],
                        "bits there": there[0],
                        "distance there": there[1],
                        "not torch's": there[2],
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    jnp.zeros(())
    main()

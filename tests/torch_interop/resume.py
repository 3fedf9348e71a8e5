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
from tests.helpers import eps_apart
from tests.torch_interop.convert import arrays, tensors

HALF, STEPS = 5, 10
LATE = 2  # a parameter that gets its first gradient at step 7


def cases() -> list[Case]:
    """torch's plainest and richest configuration of each optimizer as two groups in float32; the latter in float64."""
    found = []
    for name in jaxopt_port.optimizers:
        if name in ("lbfgs", "nonlinear_cg"):
            continue
        known = oracle.configurations(name)
        plain, rich = known[0][1], max(reversed(known), key=lambda each: len(each[1]))[1]
        found.append(Case(name, "two groups", plain, "float32", STEPS, second=rich))
        found.append(Case(name, "richest", rich, "float64", STEPS, x64=True))
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
                distance = max(distance, eps_apart(actual, expected))
    return bits, distance


def same_state_dict(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two state dicts differ: in a key, a type or a bit."""
    if isinstance(theirs, dict):
        keys = [f"{where}: keys {sorted(map(str, set(ours) ^ set(theirs)))}"] if set(ours) ^ set(theirs) else []
        return keys + [w for k in theirs if k in ours for w in same_state_dict(ours[k], theirs[k], f"{where}/{k}")]
    if isinstance(theirs, list) and isinstance(ours, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [w for i, (one, other) in pairs for w in same_state_dict(one, other, f"{where}/{i}")]
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
    ours._step = ours.optimizer.step
    return differences(run, run.advance(ours, HALF, STEPS), run.advance(theirs, HALF, STEPS))


def to_torch(case: Case) -> tuple[int, float, list[str]]:
    """5 steps here and 5 in torch, against 10 in torch; and where our state dict is not torch's after 5.

    torch's own run is interrupted and loaded as well, for float64: then torch makes NAdam's and ASGD's float32 scalars
    float64.
    """
    run = Run(case)
    ours = Ours(case, run.start, run.groups, run.sparse)
    ours._step = ours.optimizer.step
    run.advance(ours, 0, HALF)
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
        distance = max(distance, eps_apart(values[""], expected.values(i)[""]))
    return bits, distance, differ


class Quartic:
    """L-BFGS on two numbers, whose inner products are the same in any order."""

    start = (np.array([1.5], np.float32), np.array([-0.5], np.float32))

    def __init__(self, line_search_fn: str | None):
        self.kwargs = {"lr": 0.5, "max_iter": 3, "history_size": 4, "line_search_fn": line_search_fn}

    @staticmethod
    def loss(params: Any) -> Any:
        a, b = params
        return ((a * a - 2.0) * (a * a - 2.0) + (b * b - a) * (b * b - a)).sum()

    def torch(self, params: Any, steps: int, state_dict: Any = None) -> tuple[Any, Any]:
        params = [torch.nn.Parameter(oracle.to_torch(p)) for p in params]
        optimizer = torch.optim.LBFGS(params, **self.kwargs)
        if state_dict is not None:
            optimizer.load_state_dict(state_dict)

        def closure() -> Any:
            optimizer.zero_grad()
            loss = self.loss(params)
            loss.backward()
            return loss

        for _ in range(steps):
            optimizer.step(closure)
        return [oracle.to_numpy(p) for p in params], optimizer.state_dict()

    def ours(self, params: Any, steps: int, state_dict: Any = None) -> tuple[Any, Any]:
        params = tuple(map(jnp.asarray, params))
        optimizer = jaxopt_port.lbfgs(**self.kwargs)
        state = optimizer.init(params)
        if state_dict is not None:
            optimizer, state = load_optimizer(jaxopt_port.lbfgs, state_dict, params)
        for _ in range(steps):
            _, params, state = optimizer.step_closure(self.loss, state, params)
        return [np.asarray(p) for p in params], optimizer_state_dict(optimizer, state, params)


def lbfgs(line_search_fn: str | None) -> tuple[int, int, list[str]]:
    """Differing bits of a run that goes on here, of one that goes on in torch, and where our state dict differs."""
    run = Quartic(line_search_fn)
    half, whole = run.torch(run.start, 2), run.torch(run.start, 4)
    ours = run.ours(run.start, 2)
    here = run.ours(half[0], 2, arrays(half[1]))
    there = run.torch(ours[0], 2, tensors(ours[1]))
    bits = [sum(differing_bits(x, y)[0] for x, y in zip(side[0], whole[0], strict=True)) for side in (here, there)]
    theirs = arrays(half[1])
    del theirs["state"][0]["al"], ours[1]["param_groups"][0]["param_names"]
    theirs["param_groups"][0].setdefault("maximize", False)  # torch 2.14 has it
    return bits[0], bits[1], same_state_dict(_numbers(ours[1]), _numbers(theirs))


def _numbers(x: Any) -> Any:
    """A state dict with Python numbers for 0-d arrays, of which torch has sometimes the one and sometimes the other."""
    if isinstance(x, dict):
        return {key: _numbers(value) for key, value in x.items()}
    return x.item() if isinstance(x, np.ndarray) and not x.ndim else x


def main() -> None:
    oracle.one_thread()
    oracle.ieee_sqrt()
    for case in cases():
        with jax.enable_x64(case.x64):
            here, there = to_jax(case), to_torch(case)
        print(json.dumps([case.optimizer, case.dtype, *here, *there]), flush=True)
    for search in (None, "strong_wolfe"):
        here, there, differ = lbfgs(search)
        print(json.dumps(["lbfgs", str(search), here, 0.0, there, 0.0, differ]), flush=True)


if __name__ == "__main__":
    main()

"""Compares L-BFGS with torch's bit for bit, in float64: `python -m tests.closure.exact`.

Both sides evaluate one and the same function, compiled so that nothing is fused, and what is compared is the optimizer.
Inner products and sums are the one thing that the two add up in another order. So every case is run twice: with torch's
replaced by ours, where every bit has to be equal, and with torch's own, where every count has to be.

Like `tests.exact.compare` it starts itself anew with an environment in which neither side fuses arithmetic.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

from tests.exact.compare import SETTINGS as OTHER_SETTINGS
from tests.exact.compare import in_settings

SETTINGS = {
    **OTHER_SETTINGS,
    "JAX_ENABLE_X64": "1",
    "XLA_FLAGS": OTHER_SETTINGS["XLA_FLAGS"]
    + " --xla_cpu_ftz=false"  # denormals are kept
    + " --xla_llvm_disable_expensive_passes=true",  # only to compile faster
}
STEPS = 2  # of up to 20 iterations each
SHORT = (2, 3, 4, 40, 100)  # the numbers of parameters of the problems that the tests take: each is compiled once


class Case(NamedTuple):
    """One comparison.

    Args:
      label: for people.
      fun: `(params, *args) -> loss`.
      start: the parameters' first values.
      kwargs: torch's keyword arguments.
      args: of `fun`.
    """

    label: str
    fun: Callable[..., Any]
    start: Sequence[Any]
    kwargs: Mapping[str, Any]
    args: tuple[Any, ...] = ()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.closure.exact", description=__doc__)
    parser.add_argument("--short", action="store_true", help="14 problems instead of 20")
    parser.add_argument("--json", help="write a line for every case to this file")
    in_settings("tests.closure.exact", argv, SETTINGS)
    from tests import oracle

    args = parser.parse_args(argv)
    oracle.one_thread()
    oracle.ieee_sqrt()
    records = []
    for case in _cases(args.short):
        records.append(_run(case))
        print(json.dumps(records[-1]), flush=True)
    if args.json:
        with open(args.json, "w") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    print(summary(records))
    return int(any(record["bits"] or not record["counts"] or not record["own_counts"] for record in records))


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """The comparison in a line."""
    equal, counts = sum(not r["bits"] for r in records), sum(r["own_counts"] for r in records)
    own, near = sum(not r["own_bits"] for r in records), sum(r["own_eps"] <= 10 for r in records)
    numbers = sum(r["values"] for r in records)
    return (
        f"L-BFGS against torch, float64: {len(records)} cases, {numbers:,} numbers; {equal} cases equal in "
        f"every bit where sums are added in the same order; with torch's own sums {counts} equal in every count, {own} "
        f"in every bit, {near} end within 10 eps"
    )


def _cases(short: bool) -> Iterator[Case]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from tests import oracle
    from tests.closure.problems import PROBLEMS

    rng = np.random.default_rng(0)
    several = [rng.standard_normal(shape) for shape in ((4, 6), (37,), (), (2, 3, 5))]
    targets = [rng.standard_normal(p.shape) for p in several]

    def quartic(params: Any) -> Any:
        off = [p - t for p, t in zip(params, targets, strict=True)]
        return sum((i + 1) * jnp.sum(x * x + 0.1 * (x * x) * (x * x)) for i, x in enumerate(off))

    for label, kwargs in oracle.configurations("lbfgs"):
        yield Case(f"optim_db: {label}", quartic, several, oracle.options(kwargs))
    searching = {"line_search_fn": "strong_wolfe"}
    yield Case("a full memory", quartic, several, {"history_size": 3, **searching})
    yield Case("an exhausted search", quartic, several, {"max_eval": 4, "lr": 1e-4, **searching})

    def awkward(params: Any) -> Any:
        """Not a number below -1, infinite at 0 and without curvature from 1 on."""
        x = params[0]
        return jnp.sum(jnp.where(x >= 1, x, -jnp.log(jnp.abs(x)) + jnp.sqrt(1 + x)))

    for kwargs in ({}, searching):
        words = ", strong Wolfe" if kwargs else ""
        yield Case(f"into not a number{words}", awkward, [np.array([-0.5, 0.7])], {"lr": 100, **kwargs})
        yield Case(f"an infinite loss{words}", awkward, [np.array([0.0, 0.7])], kwargs)
        yield Case(f"down without end{words}", awkward, [np.array([1e4, 2e4])], kwargs)
        yield Case(f"at a minimum{words}", quartic, targets, kwargs)

    # Problems of a size are one function, and so compiled once.
    for size in SHORT if short else sorted({len(problem.start) for problem in PROBLEMS.values()}):
        names = [name for name, problem in PROBLEMS.items() if len(problem.start) == size]
        losses = [PROBLEMS[name].loss for name in names]

        def choose(params: Any, which: Any, losses: Sequence[Any] = losses) -> Any:
            return jax.lax.switch(which, losses, params[0])

        for kwargs in ({}, searching):
            for which, name in enumerate(names):
                label = f"{name}{', strong Wolfe' if kwargs else ''}"
                yield Case(label, choose, [PROBLEMS[name].first()], kwargs, (np.int32(which),))


def _run(case: Case) -> dict[str, Any]:
    import jax.numpy as jnp
    import numpy as np

    import jaxopt_port as optim

    same_order, own_order = (_Torch(case, shared_sums=shared) for shared in (True, False))
    optimizer, params = optim.lbfgs(**case.kwargs), [jnp.asarray(p) for p in case.start]
    state = optimizer.init(params)
    bits, own_bits, counts, own_counts, values = 0, 0, True, True, 0
    evals: list[int] = []
    for _ in range(STEPS):
        loss, params, state = optimizer.step_closure(case.fun, state, params, *case.args)
        mine = _arrays(loss, params, state)
        evals = [int(state.steps[0][name]) for name in ("func_evals", "n_iter")]
        (expected, expected_evals), (own, own_evals) = same_order.step(), own_order.step()
        bits += sum(_differing(a, b) for a, b in zip(mine, expected, strict=True))
        own_bits += sum(_differing(a, b) for a, b in zip(mine, own, strict=True))
        counts, own_counts = counts and evals == expected_evals, own_counts and evals == own_evals
        values += sum(x.size for x in mine)
    ends = [np.concatenate([np.ravel(p) for p in each]) for each in (params, own_order.numpy())]
    with np.errstate(invalid="ignore"):
        off = np.nan_to_num(np.abs(ends[0] - ends[1])).max() / max(np.nan_to_num(np.abs(ends[1])).max(), 1e-300)
    return {
        "case": case.label, "func_evals": evals[0], "n_iter": evals[1], "values": values, "bits": bits,
        "counts": counts, "own_bits": own_bits, "own_counts": own_counts,
        "own_eps": float(f"{off / np.finfo(float).eps:.3g}"), "stop": optim.Stop(int(state.slots.stop)).name,
    }  # fmt: skip


@cache
def _value_and_grad(fun: Callable[..., Any]) -> Callable[..., Any]:
    import jax

    return jax.jit(jax.value_and_grad(fun))


def _arrays(loss: Any, params: Any, state: Any) -> list[Any]:
    """The loss, the parameters and the whole state, the history from the oldest pair on."""
    import numpy as np

    s = state.slots
    rows = (int(s.oldest) + np.arange(int(s.stored))) % s.ro.shape[0]
    history = [np.asarray(x)[rows] for x in (s.old_dirs, s.old_stps, s.ro)]
    d = np.concatenate([np.ravel(x) for x in s.d])
    scalars = [d, s.t, s.H_diag, s.prev_flat_grad, s.prev_loss]
    return [np.asarray(x, np.float64) for x in (loss, *params, *scalars, *history)]


def _differing(a: Any, b: Any) -> int:
    """How many bits differ; all NaNs are equal."""
    import numpy as np

    if a.shape != b.shape:
        return max(a.size, b.size) * 64
    a, b = np.ravel(a), np.ravel(b)
    return int((np.bitwise_count(a.view(np.uint64) ^ b.view(np.uint64)) * ~(np.isnan(a) & np.isnan(b))).sum())


class _Torch:
    """torch's L-BFGS on one of our functions."""

    def __init__(self, case: Case, shared_sums: bool):
        import torch

        self.value_and_grad, self.args, self.shared_sums = _value_and_grad(case.fun), case.args, shared_sums
        self.params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in case.start]
        self.optimizer = torch.optim.LBFGS(self.params, **case.kwargs)

    def numpy(self) -> list[Any]:
        return [p.detach().numpy().copy() for p in self.params]

    def _closure(self) -> Any:
        import numpy as np
        import torch

        loss, grads = self.value_and_grad(self.numpy(), *self.args)
        for p, g in zip(self.params, grads, strict=True):
            p.grad = torch.from_numpy(np.array(g))
        return torch.tensor(float(loss), dtype=torch.float64)

    def step(self) -> tuple[list[Any], list[int]]:
        """One step, then what `_arrays` gives of ours, and the counts."""
        import numpy as np

        with _shared_sums() if self.shared_sums else nullcontext():
            loss = self.optimizer.step(self._closure)
        s, size = self.optimizer.state[self.params[0]], sum(p.numel() for p in self.params)
        stacks = [
            np.array([np.asarray(x) for x in s.get(name, [])]).reshape(-1, size) for name in ("old_dirs", "old_stps")
        ]
        zeros = np.zeros(size)  # before the first iteration torch has no state
        first = {"d": zeros, "t": 0.0, "H_diag": 1.0, "prev_flat_grad": zeros, "prev_loss": 0.0}
        scalars = [s.get(name, default) for name, default in first.items()]
        arrays = [float(loss), *self.numpy(), *scalars, *stacks, [float(x) for x in s.get("ro", [])]]
        return [np.asarray(x, np.float64) for x in arrays], [s["func_evals"], s["n_iter"]]


@contextmanager
def _shared_sums() -> Iterator[None]:
    """torch's inner products and sums, added up as ours are."""
    import torch

    own = torch.Tensor.dot, torch.Tensor.sum
    torch.Tensor.dot, torch.Tensor.sum = _our_sums()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.Tensor.dot, torch.Tensor.sum = own  # pyright: ignore[reportAttributeAccessIssue]


@cache
def _our_sums() -> list[Callable[..., Any]]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    from jaxopt_port.closure.flat import dot

    def on_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *tensors: torch.from_numpy(np.array(function(*(x.detach().numpy() for x in tensors))))

    return [on_tensors(jax.jit(function)) for function in (dot, jnp.sum)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Compares L-BFGS with torch's, in float64: `python -m tests.closure.exact`.

Both sides evaluate one and the same compiled loss and gradient, so that what is compared is the optimizer. Every case
is run twice: with torch's inner products and sums replaced by ours, where every bit has to be equal, and with torch's
own, which sum in another order.

Like `tests.exact.compare` it starts itself anew with an environment in which neither side fuses arithmetic.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.exact.compare import SETTINGS as OTHER_SETTINGS

SETTINGS = {
    **OTHER_SETTINGS,
    "JAX_ENABLE_X64": "1",
    "XLA_FLAGS": OTHER_SETTINGS["XLA_FLAGS"] + " --xla_cpu_ftz=false",
}
STEPS = 3


class Case(NamedTuple):
    label: str
    fun: Callable[[Any], Any]
    start: Sequence[Any]
    kwargs: Mapping[str, Any]


def main() -> int:
    if any(os.environ.get(name) != value for name, value in SETTINGS.items()):
        os.execve(sys.executable, [sys.executable, "-m", "tests.closure.exact"], {**os.environ, **SETTINGS})
    from tests import oracle

    oracle.one_thread()
    oracle.ieee_sqrt()
    results = [_run(case) for case in _cases()]
    for each in results:
        print(json.dumps(each), flush=True)
    total = len(results)
    print(
        f"{total} cases, with torch's own sums: {sum(r['own_counts'] for r in results)} equal in every count, "
        f"{sum(not r['own_bits'] for r in results)} in every bit; with the sums shared: "
        f"{sum(r['counts'] for r in results)} in every count, {sum(not r['bits'] for r in results)} in every bit"
    )
    return int(any(r["bits"] or not r["counts"] for r in results))


def _cases() -> list[Case]:
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

    cases = [
        Case(f"optim_db: {label}", quartic, several, oracle.options(kwargs))
        for label, kwargs in oracle.configurations("lbfgs")
    ]
    cases.append(Case("history_size=3", quartic, several, {"history_size": 3, "line_search_fn": "strong_wolfe"}))
    cases.append(Case("max_eval=7", quartic, several, {"max_eval": 7, "line_search_fn": "strong_wolfe"}))
    for name, problem in PROBLEMS.items():
        for line_search_fn in (None, "strong_wolfe"):
            kwargs = {"line_search_fn": line_search_fn}
            label = f"{name}{', strong Wolfe' if line_search_fn else ''}"
            cases.append(Case(label, lambda p, problem=problem: problem.loss(p[0]), [problem.first()], kwargs))
    return cases


def _run(case: Case) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxopt_port as optim

    value_and_grad = jax.jit(jax.value_and_grad(case.fun))
    theirs = [_Torch(case, value_and_grad, shared_sums=shared) for shared in (True, False)]
    optimizer, params = optim.lbfgs(**case.kwargs), [jnp.asarray(p) for p in case.start]
    state = optimizer.init(params)
    bits, counts, distance = [0, 0], [True, True], 0.0
    for _ in range(STEPS):
        loss, params, state = optimizer.step_closure(case.fun, state, params)
        mine = _arrays(loss, params, state)
        evals = [int(state.steps[0][name]) for name in ("func_evals", "n_iter")]
        for side, torch_side in enumerate(theirs):
            expected, expected_evals = torch_side.step()
            bits[side] += sum(_differing(a, b) for a, b in zip(mine, expected, strict=True))
            counts[side] &= evals == expected_evals
    ends = [np.concatenate([np.ravel(p) for p in each]) for each in (params, theirs[1].numpy())]
    distance = np.abs(ends[0] - ends[1]).max() / max(np.abs(ends[1]).max(), 1e-300) / np.finfo(float).eps
    return {
        "case": case.label, "func_evals": evals[0], "bits": bits[0], "counts": counts[0],
        "own_bits": bits[1], "own_counts": counts[1], "own_eps": float(f"{distance:.3g}"),
    }  # fmt: skip


def _arrays(loss: Any, params: Any, state: Any) -> list[Any]:
    """The loss, the parameters and the whole state, the history from the oldest pair on."""
    import numpy as np

    s = state.slots
    rows = (int(s.oldest) + np.arange(int(s.stored))) % s.ro.shape[0]
    history = [np.asarray(x)[rows] for x in (s.old_dirs, s.old_stps, s.ro)]
    scalars = [s.d, s.t, s.H_diag, s.prev_flat_grad, s.prev_loss]
    return [np.asarray(x, np.float64) for x in (loss, *params, *scalars, *history)]


def _differing(a: Any, b: Any) -> int:
    import numpy as np

    if a.shape != b.shape:
        return max(a.size, b.size) * 64
    a, b = np.ravel(a), np.ravel(b)
    return int((np.bitwise_count(a.view(np.uint64) ^ b.view(np.uint64)) * ~(np.isnan(a) & np.isnan(b))).sum())


class _Torch:
    def __init__(self, case: Case, value_and_grad: Callable[..., Any], shared_sums: bool):
        import torch

        self.value_and_grad, self.shared_sums = value_and_grad, shared_sums
        self.params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in case.start]
        self.optimizer = torch.optim.LBFGS(self.params, **case.kwargs)

    def numpy(self) -> list[Any]:
        return [p.detach().numpy().copy() for p in self.params]

    def _closure(self) -> Any:
        import numpy as np
        import torch

        loss, grads = self.value_and_grad(self.numpy())
        for p, g in zip(self.params, grads, strict=True):
            p.grad = torch.from_numpy(np.array(g))
        return torch.tensor(float(loss), dtype=torch.float64)

    def step(self) -> tuple[list[Any], list[int]]:
        """One step, then the loss, the parameters and the state, and the counts."""
        import numpy as np
        import torch

        own = torch.Tensor.dot, torch.Tensor.sum
        if self.shared_sums:
            torch.Tensor.dot, torch.Tensor.sum = _shared("dot"), _shared("sum")  # pyright: ignore
        try:
            loss = self.optimizer.step(self._closure)
        finally:
            torch.Tensor.dot, torch.Tensor.sum = own  # pyright: ignore[reportAttributeAccessIssue]
        s = self.optimizer.state[self.params[0]]
        size = sum(p.numel() for p in self.params)
        stack = [np.array([np.asarray(x) for x in s["old_dirs"]] or np.zeros((0, size)))]
        stack.append(np.array([np.asarray(x) for x in s["old_stps"]] or np.zeros((0, size))))
        scalars = [s[name] for name in ("d", "t", "H_diag", "prev_flat_grad", "prev_loss")]
        arrays = [float(loss), *self.numpy(), *scalars, *stack, [float(x) for x in s["ro"]]]
        return [np.asarray(x, np.float64) for x in arrays], [s["func_evals"], s["n_iter"]]


def _shared(name: str) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    compiled = jax.jit(jnp.sum if name == "sum" else lambda a, b: jnp.sum(a * b))
    return lambda *tensors: torch.from_numpy(np.array(compiled(*(x.detach().numpy() for x in tensors))))


if __name__ == "__main__":
    sys.exit(main())

"""Barriers, exponentials and far starts beside SciPy and jaxopt: `python -m benchmarks.closure_sweep [family ...]`.

190 problems with a logarithmic or inverse barrier or an exponential, and Himmelblau's, Zakharov's and a logistic
function from 20 starts each, in float32 and in float64. A run has solved a problem where its loss, computed in float64,
is as good as the best that anyone found in float64, or its gradient is within the tolerance. Printed is how many every
solver solved, then every run of ours that did not where SciPy or jaxopt did (there is to be none; the exit status is 1
where there is one).
"""

import argparse
import importlib.util
import itertools
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the work: 13 functions in two dtypes for each of 8 solvers.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize as scipy_minimize

import jaxopt_port as optim
from jaxopt_port.closure.nonlinear_cg import BETAS
from tests.closure.far_starts import FAMILIES, Case, Family

TOLERANCE = 1e-5
MAX_STEPS = 3_000
MAX_EVALUATIONS = 4_000
WITHIN = {"float32": 1e-5, "float64": 1e-8}  # of the loss, or of 1 where that is larger


class Run(NamedTuple):
    params: np.ndarray
    evaluations: int
    stop: str


Solver = Callable[[Family, Case, str], Run]


def ours(optimizer: optim.Optimizer) -> Solver:
    @partial(jax.jit, static_argnums=0)
    def run(fun: Callable[..., Any], start: jax.Array, data: list[jax.Array]) -> optim.Minimized:
        return optim.minimize(optimizer, fun, start, MAX_STEPS, TOLERANCE, args=data)

    def solve(family: Family, case: Case, dtype: str) -> Run:
        start, *data = (jnp.asarray(x, dtype) for x in (case.start, *case.data))
        end = run(family.fun, start, data)
        return Run(np.asarray(end.params), int(end.evaluations), optim.Stop(int(end.stop)).name)

    return solve


def scipy(method: str, **options: Any) -> Solver:
    def solve(family: Family, case: Case, dtype: str) -> Run:
        value_and_grad = VALUE_AND_GRAD[family.fun]
        data = [x.astype(dtype) for x in case.data]

        evaluations = 0

        def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal evaluations
            evaluations += 1
            if evaluations > MAX_EVALUATIONS:  # its line searches look on among NaNs for as long as they may
                raise StopIteration
            loss, grad = value_and_grad(x.astype(dtype), *data)
            return float(loss), np.asarray(grad, np.float64)

        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            options_ = {"gtol": TOLERANCE, "maxiter": MAX_STEPS, **options}
            try:
                end = scipy_minimize(fun, case.start.astype(dtype), jac=True, method=method, options=options_).x
            except StopIteration:
                end = case.start
        return Run(np.asarray(end, dtype), evaluations, "")

    return solve


def with_jaxopt(name: str) -> Solver:
    import jaxopt  # pyright: ignore[reportMissingImports]

    runs: dict[Any, Any] = {}

    def solve(family: Family, case: Case, dtype: str) -> Run:
        if family.fun not in runs:
            runs[family.fun] = jax.jit(getattr(jaxopt, name)(family.fun, tol=TOLERANCE, maxiter=MAX_STEPS).run)
        start, *data = (jnp.asarray(x, dtype) for x in (case.start, *case.data))
        end = runs[family.fun](start, *data)
        return Run(np.asarray(end.params), int(end.state.iter_num), "")

    return solve


OURS: dict[str, Solver] = {f"nonlinear_cg {beta}": ours(optim.nonlinear_cg(beta=beta)) for beta in BETAS}
OURS["lbfgs"] = ours(optim.lbfgs(line_search_fn="strong_wolfe"))
PEERS: dict[str, Solver] = {
    "scipy CG": scipy("CG"),
    "scipy BFGS": scipy("BFGS"),
    "scipy L-BFGS-B": scipy("L-BFGS-B", ftol=0, maxfun=MAX_EVALUATIONS),
}
if importlib.util.find_spec("jaxopt"):
    PEERS |= {"jaxopt NonlinearCG": with_jaxopt("NonlinearCG"), "jaxopt LBFGS": with_jaxopt("LBFGS")}
VALUE_AND_GRAD = {family.fun: jax.jit(jax.value_and_grad(family.fun)) for family in FAMILIES.values()}


def judge(family: Family, case: Case, runs: dict[tuple[str, str], Run]) -> dict[tuple[str, str], bool]:
    """Which runs, by dtype and solver, have solved a case."""
    ends = {key: VALUE_AND_GRAD[family.fun](run.params.astype(float), *case.data) for key, run in runs.items()}
    losses = {key: float(loss) if np.isfinite(loss) else np.inf for key, (loss, _) in ends.items()}
    least = min(losses.values()) if family.least is None else family.least
    solved = {}
    for key, loss in losses.items():
        small = float(np.abs(ends[key][1]).max()) <= TOLERANCE
        solved[key] = loss - least <= WITHIN[key[0]] * max(abs(least), 1) or small
    return solved


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FAMILIES), help="by default all")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th case of a family")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    solvers, dtypes = {**OURS, **PEERS}, list(WITHIN)
    print(f"| problems | dtype | {' | '.join(solvers)} |\n|{'---|' * (len(solvers) + 2)}")
    missed: list[str] = []
    totals = {key: [0, 0] for key in itertools.product(dtypes, solvers)}
    for name in arguments.families:
        family, counts = FAMILIES[name], {key: [0, 0] for key in totals}
        cases = family.cases[:: arguments.every]
        for index, case in enumerate(cases):
            runs = {(dtype, solver): solvers[solver](family, case, dtype) for dtype, solver in totals}
            solved = judge(family, case, runs)
            for key, run in runs.items():
                counts[key][0] += solved[key]
                counts[key][1] += run.evaluations
            for dtype in dtypes:
                by = [peer for peer in PEERS if solved[dtype, peer]]
                for mine in OURS:
                    if by and not solved[dtype, mine]:
                        run = runs[dtype, mine]
                        where = f"{name} {index * arguments.every}, {dtype}, {mine}"
                        spent = f"{run.stop} after {run.evaluations} evaluations"
                        missed.append(f"{where}: {spent}; solved by {', '.join(by)}")
        for dtype in dtypes:
            row = [f"{counts[dtype, solver][0]} ({counts[dtype, solver][1]})" for solver in solvers]
            print(f"| {len(cases)} {name} | {dtype} | {' | '.join(row)} |", flush=True)
        for key, (solved_, spent) in counts.items():
            totals[key][0] += solved_
            totals[key][1] += spent
    for dtype in dtypes:
        print(f"| all | {dtype} | {' | '.join(f'{totals[dtype, s][0]} ({totals[dtype, s][1]})' for s in solvers)} |")
    print(f"\n{len(missed)} runs of ours missed what a peer solved", *missed, sep="\n")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())

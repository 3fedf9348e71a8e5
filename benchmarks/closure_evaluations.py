"""How many evaluations L-BFGS, nonlinear conjugate gradients and their peers need: see benchmarks/closure.py."""

import importlib.util
import statistics
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import minimize as scipy_minimize

import jaxopt_port as optim
from tests.closure.problems import PROBLEMS, Problem

TOLERANCE = 1e-5
MAX_STEPS = 2_000  # each peer that solves a problem does so in fewer


class Run(NamedTuple):
    evaluations: int
    iterations: int
    grad_norm: float

    @property
    def solved(self) -> bool:
        return self.grad_norm <= TOLERANCE

    def __str__(self) -> str:
        return f"{self.evaluations} / {self.iterations} / {self.grad_norm:.0e}{'' if self.solved else ' !'}"


Solver = Callable[[Problem], Run]


def ours(optimizer: optim.Optimizer) -> Solver:
    def solve(problem: Problem) -> Run:
        end = optim.minimize(optimizer, problem.loss, jnp.asarray(problem.first()), MAX_STEPS, TOLERANCE)
        return Run(int(end.evaluations), int(end.steps), float(end.grad_norm))

    return solve


def scipy(method: str, **options: Any) -> Solver:
    def solve(problem: Problem) -> Run:
        value_and_grad = jax.jit(jax.value_and_grad(problem.loss))

        def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
            loss, grad = value_and_grad(x)
            return float(loss), np.asarray(grad)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options_ = {"gtol": TOLERANCE, "maxiter": MAX_STEPS, **options}
            end = scipy_minimize(fun, problem.first(), jac=True, method=method, options=options_)
        return Run(int(end.nfev), int(end.nit), float(np.abs(end.jac).max()))

    return solve


def _counted(loss: Callable[[jax.Array], jax.Array], calls: list[int]) -> Callable[[jax.Array], jax.Array]:
    """The loss, which counts the evaluations of its gradient when it runs."""

    @jax.custom_vjp
    def counted(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: calls.append(1))
        return loss(x)

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        jax.debug.callback(lambda: calls.append(1))
        value, grad = jax.value_and_grad(loss)(x)
        return value, grad

    counted.defvjp(forward, lambda grad, cotangent: (cotangent * grad,))
    return counted


def with_optax(problem: Problem) -> Run:
    calls: list[int] = []
    fun, optimizer = _counted(problem.loss, calls), optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(fun)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        x, state, _, iterations = carry
        value, grad = value_and_grad(x, state=state)
        updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=fun)
        grad = optax.tree.get(state, "grad")  # that of the point the line search chose
        return optax.apply_updates(x, updates), state, grad, iterations + 1

    @jax.jit
    def run(x: jax.Array) -> tuple[Any, ...]:
        start = (x, optimizer.init(x), jnp.full_like(x, jnp.inf), jnp.int32(0))
        return jax.lax.while_loop(lambda c: (jnp.abs(c[2]).max() > TOLERANCE) & (c[3] < MAX_STEPS), step, start)

    x, _, _, iterations = jax.block_until_ready(run(jnp.asarray(problem.first())))
    jax.effects_barrier()
    return Run(len(calls), int(iterations), float(jnp.abs(jax.grad(problem.loss)(x)).max()))


def with_torch(problem: Problem) -> Run:
    import torch

    value_and_grad = jax.jit(jax.value_and_grad(problem.loss))
    x = torch.nn.Parameter(torch.from_numpy(problem.first()))
    options = {"max_iter": MAX_STEPS, "max_eval": 10 * MAX_STEPS, "tolerance_grad": TOLERANCE, "tolerance_change": 0}
    optimizer = torch.optim.LBFGS([x], line_search_fn="strong_wolfe", **options)

    def closure() -> Any:
        loss, grad = value_and_grad(x.detach().numpy())
        x.grad = torch.from_numpy(np.array(grad))
        return torch.tensor(float(loss), dtype=torch.float64)

    optimizer.step(closure)
    closure()
    state = optimizer.state[x]
    return Run(state["func_evals"], state["n_iter"], float(x.grad.abs().max()))  # pyright: ignore


def with_jaxopt(name: str) -> Solver:
    def solve(problem: Problem) -> Run:
        import jaxopt  # pyright: ignore[reportMissingImports]

        calls: list[int] = []
        fun = _counted(problem.loss, calls)
        # jaxopt's tolerance is of the Euclidean norm, which is at least the largest element.
        solver = getattr(jaxopt, name)(fun, tol=TOLERANCE, maxiter=MAX_STEPS)
        x, state = jax.block_until_ready(solver.run(jnp.asarray(problem.first())))
        jax.effects_barrier()
        return Run(len(calls), int(state.iter_num), float(jnp.abs(jax.grad(problem.loss)(x)).max()))

    return solve


def with_optimistix(name: str) -> Solver:
    def solve(problem: Problem) -> Run:
        import optimistix  # pyright: ignore[reportMissingImports]

        calls: list[int] = []
        fun = _counted(problem.loss, calls)
        # It has no tolerance of the gradient: these are for the change of parameters and loss.
        solver = getattr(optimistix, name)(rtol=1e-12, atol=1e-12)
        end = optimistix.minimise(
            lambda x, _: fun(x), solver, jnp.asarray(problem.first()), max_steps=MAX_STEPS, throw=False
        )
        jax.effects_barrier()
        grad_norm = float(jnp.abs(jax.grad(problem.loss)(end.value)).max())
        return Run(len(calls), int(end.stats["num_steps"]), grad_norm)

    return solve


SOLVERS: dict[str, Solver] = {
    "nonlinear_cg": ours(optim.nonlinear_cg()),
    "lbfgs": ours(optim.lbfgs(line_search_fn="strong_wolfe", tolerance_change=0.0)),
    "scipy CG": scipy("CG"),
    "scipy L-BFGS-B": scipy("L-BFGS-B", ftol=0, maxfun=10 * MAX_STEPS),
    "optax lbfgs": with_optax,
}
if importlib.util.find_spec("torch"):
    SOLVERS["torch LBFGS"] = with_torch
if importlib.util.find_spec("jaxopt"):
    SOLVERS |= {"jaxopt NonlinearCG": with_jaxopt("NonlinearCG"), "jaxopt LBFGS": with_jaxopt("LBFGS")}
if importlib.util.find_spec("optimistix"):
    SOLVERS |= {name: with_optimistix(name.split()[1]) for name in ("optimistix NonlinearCG", "optimistix LBFGS")}


def evaluations() -> None:
    """Print a row a problem: evaluations / iterations / largest element of the last gradient."""
    print(f"| problem | {' | '.join(SOLVERS)} |\n|{'---|' * (len(SOLVERS) + 1)}")
    runs: dict[str, list[Run]] = {name: [] for name in SOLVERS}
    for problem_name, problem in PROBLEMS.items():
        for name, solve in SOLVERS.items():
            runs[name].append(solve(problem))
        print(f"| {problem_name} | {' | '.join(str(runs[name][-1]) for name in SOLVERS)} |", flush=True)
    print(f"| solved | {' | '.join(str(sum(run.solved for run in each)) for each in runs.values())} |")
    medians = [statistics.median(r.evaluations if r.solved else np.inf for r in each) for each in runs.values()]
    print(f"| median evaluations, unsolved infinite | {' | '.join(f'{m:g}' for m in medians)} |")

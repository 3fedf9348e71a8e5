"""L-BFGS and nonlinear conjugate gradients beside their peers: `python -m benchmarks.closure [WHAT ...]`.

`evaluations`: on problems of Moré, Garbow and Hillstrom in float64, the evaluations (a loss with its gradient), the
iterations and the last gradient of our two, SciPy's, optax's, torch's, jaxopt's and optimistix's. Every one is to make
the gradient's largest element 1e-5 or smaller; a `!` marks those that did not. Packages that are not installed are left
out (`pip install jaxopt optimistix`).

`time`: 20 iterations of L-BFGS beside torch's, SciPy's, jaxopt's and optax's on the same function, in turns in one
process, as ratios of medians, with the evaluations and the first call of each; and the memory of ours.

`calls`: what a call of `step_closure` costs, jitted and not, with the same batch and another one.
"""

import argparse
import importlib.util
import itertools
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import minimize as scipy_minimize

import jaxopt_port as optim
from tests.closure.problems import PROBLEMS, Problem

TOLERANCE = 1e-5
MAX_STEPS = 2_000  # each peer that solves a problem does so in fewer
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)


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


def _rosenbrock(x: Any) -> Any:
    """Chained, in operations that jax and torch arrays share."""
    a, b = x[:-1], x[1:]
    curve, away = b - a * a, 1 - a
    return (100 * curve * curve + away * away).sum()


def _start(size: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(size).astype(dtype)


class Side:
    """20 iterations of L-BFGS on one function from one start; `first` is how long the first call took."""

    first = 0.0

    def __init__(self, size: int, dtype: str, options: dict[str, Any]):
        self.options, self.start = options, _start(size, dtype)
        self.prepare()
        self.first = self()[0]

    def prepare(self) -> None:
        """What is done once."""

    def __call__(self) -> tuple[float, int]:
        """Seconds and evaluations of one call."""
        raise NotImplementedError


class Ours(Side):
    def prepare(self) -> None:
        self.optimizer = optim.lbfgs(**self.options)
        self.step = jax.jit(
            lambda state, params: self.optimizer.step_closure(_rosenbrock, state, params), donate_argnums=(0, 1)
        )

    def __call__(self) -> tuple[float, int]:
        params = jnp.asarray(self.start.copy())
        state = jax.block_until_ready(self.optimizer.init(params))
        begin = time.perf_counter()
        _, _, state = jax.block_until_ready(self.step(state, params))
        return time.perf_counter() - begin, int(state.steps[0]["func_evals"])

    def memory(self) -> tuple[int, int]:
        """Bytes of the state, and what a step needs beside it."""
        params = jnp.asarray(self.start)
        state = self.optimizer.init(params)
        analysis = self.step.lower(state, params).compile().memory_analysis()
        used = sum(x.nbytes for x in jax.tree.leaves(state))
        return used, 0 if analysis is None else analysis.temp_size_in_bytes


class Torch(Side):
    def __call__(self) -> tuple[float, int]:
        import torch

        x = torch.nn.Parameter(torch.from_numpy(self.start.copy()))
        optimizer = torch.optim.LBFGS([x], **self.options)

        def closure() -> Any:
            optimizer.zero_grad()
            loss = _rosenbrock(x)
            loss.backward()
            return loss

        begin = time.perf_counter()
        optimizer.step(closure)
        return time.perf_counter() - begin, optimizer.state[x]["func_evals"]


class Scipy(Side):
    def prepare(self) -> None:
        self.value_and_grad = jax.jit(jax.value_and_grad(_rosenbrock))

    def fun(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, grad = self.value_and_grad(x.astype(self.start.dtype))
        return float(loss), np.asarray(grad, np.float64)

    def __call__(self) -> tuple[float, int]:
        options = {"maxiter": ITERATIONS, "maxcor": self.options["history_size"], "ftol": 0, "gtol": 0}
        begin = time.perf_counter()
        end = scipy_minimize(self.fun, self.start, jac=True, method="L-BFGS-B", options=options)
        return time.perf_counter() - begin, int(end.nfev)


class Jaxopt(Side):
    def prepare(self) -> None:
        import jaxopt  # pyright: ignore[reportMissingImports]

        history = self.options["history_size"]
        self.run = jax.jit(jaxopt.LBFGS(_rosenbrock, maxiter=ITERATIONS, tol=0.0, history_size=history).run)

    def __call__(self) -> tuple[float, int]:
        start = jnp.asarray(self.start)
        begin = time.perf_counter()
        state = jax.block_until_ready(self.run(start)).state
        return time.perf_counter() - begin, int(state.num_fun_eval)


class Optax(Side):
    def prepare(self) -> None:
        optimizer = optax.lbfgs(memory_size=self.options["history_size"])
        value_and_grad = optax.value_and_grad_from_state(_rosenbrock)

        def step(_: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            x, state, evaluations = carry
            value, grad = value_and_grad(x, state=state)
            updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=_rosenbrock)
            spent = optax.tree.get(state, "num_linesearch_steps")
            return optax.apply_updates(x, updates), state, evaluations + spent

        self.run = jax.jit(lambda x: jax.lax.fori_loop(0, ITERATIONS, step, (x, optimizer.init(x), 0)))

    def __call__(self) -> tuple[float, int]:
        start = jnp.asarray(self.start)
        begin = time.perf_counter()
        _, _, evaluations = jax.block_until_ready(self.run(start))
        return time.perf_counter() - begin, int(evaluations)


SIDES: dict[str, type[Side]] = {"torch": Torch, "scipy": Scipy, "jaxopt": Jaxopt, "optax": Optax}
ITERATIONS = 20


def timing(rounds: int, sizes: list[int]) -> None:
    """Print a row a size and dtype: ours in milliseconds, the others' time over ours, the evaluations of all."""
    peers = {name: side for name, side in SIDES.items() if importlib.util.find_spec(name)}
    columns = ["parameters", "dtype", "line search", "history", "ours, ms", *(f"{name} / ours" for name in peers)]
    columns += ["evaluations", "first call, s", "state, vectors", "working memory, vectors"]
    print(f"Evaluations and first calls (with compiling): {', '.join(['ours', *peers])}.\n")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    rows = [("strong_wolfe", 10), ("strong_wolfe", 100), (None, 100)]
    for size, dtype, (line_search, history) in itertools.product(sizes, ("float32", "float64"), rows):
        history = min(history, 100 if size < 1_000_000 else 20)  # 100 float64 vectors of a million, twice, are 1.6 GB
        options = {"line_search_fn": line_search, "history_size": history, "lr": 1 if line_search else 0.1}
        options["max_iter"] = ITERATIONS
        mine = Ours(size, dtype, options)
        others = {name: side(size, dtype, options) for name, side in peers.items() if line_search or name == "torch"}
        times: dict[str, list[float]] = {name: [] for name in ("ours", *others)}
        evals: dict[str, int] = {}
        for _ in range(rounds):
            for name, side in {"ours": mine, **others}.items():
                seconds, evals[name] = side()
                times[name].append(seconds * 1e3)
        own = statistics.median(times["ours"])
        ratios = [f"{statistics.median(times[name]) / own:.2f}" if name in others else "" for name in peers]
        first = " / ".join(f"{side.first:.2g}" for side in (mine, *others.values()))
        vectors = [f"{each / mine.start.nbytes:.1f}" for each in mine.memory()]
        row = [f"{size:,}", dtype, str(line_search), str(history), f"{own:.2f}", *ratios]
        print(f"| {' | '.join([*row, ' / '.join(map(str, evals.values())), first, *vectors])} |", flush=True)
    print(f"\npeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def calling(rounds: int, blocks: int = 60) -> None:
    """Print what a call of a step costs, by how it is called: one iteration on 60 small residual blocks."""
    width, optimizer = 16, optim.lbfgs(max_iter=1)
    keys = jax.random.split(jax.random.key(0), 2 * blocks)
    params = [jax.random.normal(key, (width, width)) / width for key in keys]
    batches = [jax.random.normal(key, (8, width)) for key in keys[:2]]
    batch = batches[0]

    def loss(params: Any, x: jax.Array) -> jax.Array:
        for first, second in zip(params[::2], params[1::2], strict=True):
            x = x + jax.nn.gelu(x @ first) @ second
        return jnp.mean(x * x)

    def captures(params: Any) -> jax.Array:
        return loss(params, batch)

    jitted = jax.jit(lambda params, state, batch: optimizer.step_closure(loss, state, params, batch))
    state = optimizer.init(params)

    def another_batch(number: int) -> Any:
        nonlocal batch
        batch = batches[number % 2]
        return optimizer.step_closure(captures, state, params)

    ways: dict[str, Callable[[int], Any]] = {
        "jitted, the batch an argument": lambda number: jitted(params, state, batches[number % 2]),
        "as it is, the batch an argument": lambda number: optimizer.step_closure(
            loss, state, params, batches[number % 2]
        ),
        "as it is, captures the same batch": lambda number: optimizer.step_closure(captures, state, params),
        "as it is, captures another batch": another_batch,
    }
    first: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, rounds):
        for name, call in ways.items():
            begin = time.perf_counter()
            jax.block_until_ready(call(number))
            if number < 0:
                first[name] = time.perf_counter() - begin
            else:
                times[name].append((time.perf_counter() - begin) * 1e3)
    base = statistics.median(times["jitted, the batch an argument"])
    print("| a step of 60 residual blocks | first call, s | a call, ms | over jitted |\n|---|---|---|---|")
    for name, each in times.items():
        print(f"| {name} | {first[name]:.2g} | {statistics.median(each):.1f} | {statistics.median(each) / base:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["evaluations", "time", "calls"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if "evaluations" in arguments.what:
        evaluations()
    if "time" in arguments.what:
        timing(arguments.rounds, arguments.sizes)
    if "calls" in arguments.what:
        calling(arguments.rounds)


if __name__ == "__main__":
    main()

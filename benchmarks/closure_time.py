"""What L-BFGS and nonlinear conjugate gradients take beside their peers: see benchmarks/closure.py."""

import importlib.util
import itertools
import resource
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import minimize as scipy_minimize

import jaxopt_port as optim

DTYPES = ("float32", "float64")
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
ITERATIONS = 20


def _rosenbrock(x: Any) -> Any:
    """Chained, in operations that jax and torch arrays share."""
    a, b = x[:-1], x[1:]
    curve, away = b - a * a, 1 - a
    return (100 * curve * curve + away * away).sum()


class Problem(NamedTuple):
    """What every side is to do.

    Args:
      size: how many parameters.
      dtype: theirs.
      line_search: torch's.
      history: pairs that L-BFGS remembers; 0 for nonlinear conjugate gradients.
    """

    size: int
    dtype: str
    line_search: str | None
    history: int

    def start(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal(self.size).astype(self.dtype)

    def options(self) -> dict[str, Any]:
        """Of torch's L-BFGS, and ours."""
        lr = 1 if self.line_search else 0.1
        return {"lr": lr, "max_iter": ITERATIONS, "history_size": self.history, "line_search_fn": self.line_search}


class Side:
    """20 iterations from one start; `first` is how long the first call took."""

    first = 0.0

    def __init__(self, problem: Problem):
        self.problem, self.start = problem, problem.start()
        self.prepare()
        self.first = self()[0]

    def prepare(self) -> None:
        """What is done once."""

    def __call__(self) -> tuple[float, int]:
        """Seconds and evaluations of one call."""
        raise NotImplementedError


class Ours(Side):
    def prepare(self) -> None:
        if self.problem.history:
            self.optimizer = optim.lbfgs(**self.problem.options())
        else:
            self.optimizer = optim.nonlinear_cg(max_iter=ITERATIONS)
        self.step = jax.jit(
            lambda state, params: self.optimizer.step_closure(_rosenbrock, state, params), donate_argnums=(0, 1)
        )

    def steps(self) -> Iterator[tuple[float, int]]:
        """Seconds and evaluations of one step after the other."""
        params = jnp.asarray(self.start.copy())
        state, before = jax.block_until_ready(self.optimizer.init(params)), 0
        while True:
            begin = time.perf_counter()
            _, params, state = jax.block_until_ready(self.step(state, params))
            seconds, evaluations = time.perf_counter() - begin, int(state.steps[0]["func_evals"])
            yield seconds, evaluations - before
            before = evaluations

    def __call__(self) -> tuple[float, int]:
        return next(self.steps())

    def memory(self) -> tuple[int, int]:
        """Bytes of the state, and what a step needs beside it."""
        params = jnp.asarray(self.start)
        state = jax.eval_shape(self.optimizer.init, params)
        analysis = self.step.lower(state, params).compile().memory_analysis()
        used = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        return used, 0 if analysis is None else analysis.temp_size_in_bytes


class Torch(Side):
    def steps(self) -> Iterator[tuple[float, int]]:
        import torch

        x, before = torch.nn.Parameter(torch.from_numpy(self.start.copy())), 0
        optimizer = torch.optim.LBFGS([x], **self.problem.options())

        def closure() -> Any:
            optimizer.zero_grad()
            loss = _rosenbrock(x)
            loss.backward()
            return loss

        while True:
            begin = time.perf_counter()
            optimizer.step(closure)
            seconds, evaluations = time.perf_counter() - begin, optimizer.state[x]["func_evals"]
            yield seconds, evaluations - before
            before = evaluations

    def __call__(self) -> tuple[float, int]:
        return next(self.steps())


class Scipy(Side):
    def prepare(self) -> None:
        self.value_and_grad = jax.jit(jax.value_and_grad(_rosenbrock))

    def fun(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, grad = self.value_and_grad(x.astype(self.start.dtype))
        return float(loss), np.asarray(grad, np.float64)

    def __call__(self) -> tuple[float, int]:
        history = self.problem.history
        options = {"maxcor": history, "ftol": 0} if history else {}
        options |= {"maxiter": ITERATIONS, "gtol": 0}
        begin = time.perf_counter()
        method = "L-BFGS-B" if history else "CG"
        end = scipy_minimize(self.fun, self.start, jac=True, method=method, options=options)
        return time.perf_counter() - begin, int(end.nfev)


class Jaxopt(Side):
    def prepare(self) -> None:
        import jaxopt  # pyright: ignore[reportMissingImports]

        if self.problem.history:
            solver = jaxopt.LBFGS(_rosenbrock, maxiter=ITERATIONS, tol=0.0, history_size=self.problem.history)
        else:
            solver = jaxopt.NonlinearCG(_rosenbrock, maxiter=ITERATIONS, tol=0.0)
        self.run = jax.jit(solver.run)

    def __call__(self) -> tuple[float, int]:
        start = jnp.asarray(self.start)
        begin = time.perf_counter()
        state = jax.block_until_ready(self.run(start)).state
        return time.perf_counter() - begin, int(state.num_fun_eval)


class Optax(Side):
    def prepare(self) -> None:
        optimizer = optax.lbfgs(memory_size=self.problem.history)
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


PEERS: dict[str, type[Side]] = {"torch": Torch, "scipy": Scipy, "jaxopt": Jaxopt, "optax": Optax}


def timing(rounds: int, sizes: list[int], dtypes: list[str]) -> None:
    """Print a row a size and dtype: ours in milliseconds, the others' time over ours, the evaluations of all."""
    peers = {name: side for name, side in PEERS.items() if importlib.util.find_spec(name)}
    columns = ["parameters", "dtype", "line search", "history", "ours, ms", *(f"{name} / ours" for name in peers)]
    columns += ["evaluations", "first call, s", "full memory: ours, ms", "torch / ours", "evaluations"]
    print(f"L-BFGS. Evaluations and first calls (with compiling): {', '.join(['ours', *peers])}.\n")
    _print_row([*columns, "state, vectors", "working memory, vectors"], head=True)
    for size, dtype in itertools.product(sizes, dtypes):
        for line_search, history in _searches(size):
            problem = Problem(size, dtype, line_search, history)
            sides: dict[str, Side] = {"ours": (ours := Ours(problem))}
            sides |= {name: side(problem) for name, side in peers.items() if line_search or name == "torch"}
            row = [f"{size:,}", dtype, str(line_search), str(history), *_in_turns(sides, rounds, ["ours", *peers])]
            row += _with_full_memory(ours, sides.get("torch"), rounds)
            _print_row([*row, *(f"{each / ours.start.nbytes:.1f}" for each in ours.memory())])
    peers = {name: side for name, side in peers.items() if name in ("scipy", "jaxopt")}
    columns = ["parameters", "dtype", "ours, ms", *(f"{name} / ours" for name in peers), "evaluations", "first call, s"]
    print(f"\nNonlinear conjugate gradients: {', '.join(['ours', *peers])}.\n")
    _print_row(columns, head=True)
    for size, dtype in itertools.product(sizes, dtypes):
        problem = Problem(size, dtype, "strong_wolfe", history=0)
        sides = {"ours": Ours(problem), **{name: side(problem) for name, side in peers.items()}}
        _print_row([f"{size:,}", dtype, *_in_turns(sides, rounds, ["ours", *peers])])
    print(f"\npeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _print_row(cells: list[str], head: bool = False) -> None:
    print(f"| {' | '.join(cells)} |" + (f"\n|{'---|' * len(cells)}" if head else ""), flush=True)


def _searches(size: int) -> list[tuple[str | None, int]]:
    """Line searches and histories; with 100 vectors of 10 million float64 numbers, twice, a state would be 16 GB."""
    short, long = {1_000_000: (10, 20), 10_000_000: (5, 10)}.get(size, (10, 100))
    return [("strong_wolfe", short), ("strong_wolfe", long), (None, long)]


def _in_turns(sides: Mapping[str, Side], rounds: int, names: list[str]) -> list[str]:
    """Our milliseconds, the others' time over ours, empty for a name that is not there, evaluations and first calls."""
    runs = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            runs[name].append(side())
    medians = {name: statistics.median(seconds for seconds, _ in each) for name, each in runs.items()}
    ratios = [f"{medians[name] / medians['ours']:.2f}" if name in medians else "" for name in names if name != "ours"]
    counts = " / ".join(str(each[-1][1]) for each in runs.values())
    first = " / ".join(f"{side.first:.2g}" for side in sides.values())
    return [f"{medians['ours'] * 1e3:.2f}", *ratios, counts, first]


def _with_full_memory(ours: Ours, torch: Side | None, rounds: int) -> list[str]:
    """The same of the steps that come when as many pairs are stored as there may be."""
    if not isinstance(torch, Torch):
        return ["", "", ""]
    runs = [ours.steps(), torch.steps()]
    for _ in range(-(-ours.problem.history // ITERATIONS)):
        for run in runs:
            next(run)
    timed = [[next(run) for run in runs] for _ in range(rounds)]
    own, others = (statistics.median(each[side][0] for each in timed) for side in range(2))
    counts = [str(sum(each[side][1] for each in timed)) for side in range(2)]
    return [f"{own * 1e3:.2f}", f"{others / own:.2f}", " / ".join(counts)]

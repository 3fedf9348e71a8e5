"""L-BFGS and nonlinear conjugate gradients beside their peers: `python -m benchmarks.closure [WHAT ...]`.

`evaluations`: on problems of Moré, Garbow and Hillstrom in float64, the evaluations (a loss with its gradient), the
iterations and the last gradient of our two, SciPy's, optax's, torch's, jaxopt's and optimistix's. Every one is to make
the gradient's largest element 1e-5 or smaller; a `!` marks those that did not. Packages that are not installed are left
out (`pip install jaxopt optimistix`).

`time`: 20 iterations of L-BFGS beside torch's, SciPy's, jaxopt's and optax's on the same function, in turns in one
process, as ratios of medians, with the evaluations and the first call of each, and the memory of ours; beside torch's
with a full memory as well. Then 20 iterations of nonlinear conjugate gradients beside SciPy's and jaxopt's.

`calls`: what a call of `step_closure` costs, jitted and not, with the same batch and another one.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

import jaxopt_port as optim
from benchmarks.closure_evaluations import evaluations
from benchmarks.closure_time import DTYPES, SIZES, timing


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

    def made_anew(batch: jax.Array) -> Callable[[Any], jax.Array]:
        return lambda params: loss(params, batch)

    def in_a_list(number: int) -> Callable[[Any], jax.Array]:
        listed = [batches[number % 2]]
        return lambda params: loss(params, listed[0])

    ways: dict[str, Callable[[int], Any]] = {
        "jitted, the batch an argument": lambda number: jitted(params, state, batches[number % 2]),
        "as it is, the batch an argument": lambda number: optimizer.step_closure(
            loss, state, params, batches[number % 2]
        ),
        "as it is, captures the same batch": lambda number: optimizer.step_closure(captures, state, params),
        "as it is, captures another batch": another_batch,
        "as it is, made anew": lambda number: optimizer.step_closure(made_anew(batches[number % 2]), state, params),
        "as it is, another batch in a list": lambda number: optimizer.step_closure(in_a_list(number), state, params),
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
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=DTYPES)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if "evaluations" in arguments.what:
        evaluations()
    if "time" in arguments.what:
        timing(arguments.rounds, arguments.sizes, arguments.dtypes)
    if "calls" in arguments.what:
        calling(arguments.rounds)


if __name__ == "__main__":
    main()

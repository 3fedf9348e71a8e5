"""A small problem in the form that each optimizer takes, and the comparison of trees."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

import jaxopt_port as optim

RULES = sorted(name for name in optim.optimizers if name not in ("lbfgs", "nonlinear_cg"))
SPARSE = "sparse_adam"  # takes row-sparse gradients only
MATRICES = "muon"  # takes matrices only
ROWS = [0, 2]  # of a sparse gradient


def make(name: str, **options: Any) -> optim.Optimizer:
    """An optimizer; Muon with one iteration, which compiles in a fraction of the time."""
    return optim.optimizers[name](**({"ns_steps": 1} if name == MATRICES else {}), **options)


def make_params(name: str, seed: int = 0, dtype: Any = np.float32) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {"bias": (1, 3) if name == MATRICES else (3,), "kernel": (4, 3)}
    return {k: jnp.asarray(rng.normal(size=shape).astype(dtype)) for k, shape in shapes.items()}


def make_grads(name: str, seed: int, dtype: Any = np.float32) -> dict[str, Any]:
    dense = make_params(name, 100 + seed, dtype)
    return {k: to_sparse(g) for k, g in dense.items()} if name == SPARSE else dense


def to_sparse(g: jax.Array) -> BCOO:
    """The rows ROWS of a gradient."""
    rows = np.array(ROWS)
    return BCOO((g[rows], jnp.asarray(rows[:, None])), shape=g.shape)


def to_dense(g: Any) -> np.ndarray:
    return np.asarray(g.todense() if isinstance(g, BCOO) else g)


def slot(state: optim.OptState, key: str) -> tuple[Any, ...]:
    """What the state keeps for the parameter `key`, an array or None for each field."""
    return tuple(None if tree is None else tree[key] for tree in state.slots)


def run(step: Callable[..., Any], name: str, params: Any, state: Any, steps: int) -> tuple[Any, Any]:
    """So many steps with the gradients of `make_grads`."""
    for seed in range(steps):
        params, state = step(make_grads(name, seed), state, params)
    return params, state


def assert_close(actual: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol, atol)


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def assert_same_types(actual: Any, expected: Any) -> None:
    assert jax.tree.map(lambda x: (x.shape, x.dtype), actual) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


def same_kind(actual: np.ndarray | None, expected: np.ndarray) -> TypeGuard[np.ndarray]:
    """Whether there is an array of the same shape and dtype."""
    return actual is not None and actual.shape == expected.shape and actual.dtype == expected.dtype


def real_numbers(x: np.ndarray) -> np.ndarray:
    """An array as a vector of real numbers, two for a complex one."""
    x = np.ascontiguousarray(x).reshape(-1)
    return x.view(x.dtype.char.lower()) if np.iscomplexobj(x) else x


def eps_apart(actual: Any, expected: Any) -> float:
    """The largest difference in eps of the largest number; infinite where one is finite and the other is not.

    Of integers 0, where they are the same.
    """
    actual, expected = (None if x is None else np.asarray(x) for x in (actual, expected))
    if not same_kind(actual, expected):
        return float("inf")
    a, b = (real_numbers(x).astype(np.float64) for x in (actual, expected))
    finite = np.isfinite(b)
    if not np.array_equal(np.where(finite, 0, a), np.where(finite, 0, b), equal_nan=True):
        return float("inf")
    dtype = real_numbers(expected).dtype
    eps = float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 0.0
    scale = np.abs(b[finite]).max(initial=0) * eps
    apart = np.abs(a[finite] - b[finite]).max(initial=0)
    return float(apart / scale) if scale else float(apart and np.inf)


class CountTraces:
    """A jitted function that counts how often it is traced."""

    def __init__(self, function: Callable[..., Any]):
        self.traces = 0

        def counted(*args: Any) -> Any:
            self.traces += 1
            return function(*args)

        self.jitted = jax.jit(counted)

    def __call__(self, *args: Any) -> Any:
        return self.jitted(*args)


@cache
def jitted(name: str) -> CountTraces:
    """The jitted step of an optimizer with its defaults, compiled once for all tests."""
    return CountTraces(make(name).step)


def run_in_process(function: Callable[[], None], xla_flags: str) -> None:
    """Run a function of a test module in a process of its own, since XLA reads its flags once."""
    code = f"from {function.__module__} import {function.__name__} as f; f()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

"""Problems on which a line search meets losses beyond the range of a float, or none at all: barriers, exponentials, far
starts. Every one is a function of parameters and data, so that all of a family are compiled once."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    """A starting point, and the data of the function."""

    start: np.ndarray
    data: tuple[np.ndarray, ...] = ()


class Family(NamedTuple):
    """Cases of one function, all of the same shapes.

    Args:
      fun: `(params, *data) -> loss`.
      cases: starting points and data.
      least: the loss at the minimum, where it is known.
    """

    fun: Callable[..., jax.Array]
    cases: Sequence[Case]
    least: float | None = None


def himmelblau(x: jax.Array) -> jax.Array:
    a, b = x
    return (a * a + b - 11) ** 2 + (a + b * b - 7) ** 2


def zakharov(x: jax.Array) -> jax.Array:
    weighted = jnp.sum(0.5 * jnp.arange(1, x.size + 1) * x)
    return jnp.sum(x * x) + weighted**2 + weighted**4


def logistic(w: jax.Array, features: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.logaddexp(0, -labels * (features @ w))) + 5e-3 * w @ w


def log_barrier(x: jax.Array, a: jax.Array, cost: jax.Array) -> jax.Array:
    """Of the polytope `a x <= 1`, which holds 0: not a number outside."""
    return cost @ x - jnp.sum(jnp.log(1 - a @ x))


def log_box(x: jax.Array, cost: jax.Array) -> jax.Array:
    return cost @ x - jnp.sum(jnp.log(1 - x * x))


def inverse_barrier(x: jax.Array, cost: jax.Array) -> jax.Array:
    """Infinite at 0 and finite, but falling without end, beyond: only a bracket keeps the search on this side."""
    return jnp.sum(jnp.where(x > 0, cost * x + 1 / x, jnp.inf))


def entropy(x: jax.Array, cost: jax.Array) -> jax.Array:
    return jnp.sum(x * jnp.log(x) + cost * x)


def gamma_likelihood(x: jax.Array, cost: jax.Array) -> jax.Array:
    return jnp.sum(cost * x - jnp.log(x))


def exponentials(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(a @ x + b))


def boyd(x: jax.Array) -> jax.Array:
    """Boyd and Vandenberghe, Convex Optimization, equation (9.20)."""
    a, b = x
    return jnp.exp(a + 3 * b - 0.1) + jnp.exp(a - 3 * b - 0.1) + jnp.exp(-a - 0.1)


def poisson(w: jax.Array, features: jax.Array, counts: jax.Array) -> jax.Array:
    z = features @ w
    return jnp.sum(jnp.exp(z) - counts * z)


def exponential_and_square(x: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(scale * x)) + 0.5 * x @ x


def hyperbolic(x: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.sum(jnp.cosh(scale * (x - 1)))


def _numbers(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64)


def _barriers_and_exponentials(rng: np.random.Generator) -> Iterator[tuple[str, Family]]:
    """190 cases: ten families of 19."""
    spread = np.linspace(-3, 3, 19)  # of powers of ten

    def polytope(power: float) -> Case:
        a = rng.standard_normal((15, 5))
        cost = rng.standard_normal(5) * 10**power
        end = np.vstack([a, np.eye(5), -np.eye(5)])  # a box besides, so that it is bounded
        start = rng.standard_normal(5)
        return Case(start * 0.999 / (end @ start).max(), (end, cost))

    yield "log barrier of a polytope", Family(log_barrier, [polytope(power) for power in spread])

    def box(power: float) -> Case:
        return Case(rng.uniform(-1, 1, 4) * (1 - 1e-5), (rng.standard_normal(4) * 10**power,))

    yield "log barrier of a box", Family(log_box, [box(power) for power in spread])

    def positive(power: float) -> Case:
        return Case(10 ** rng.uniform(-2, 2, 3), (10 ** (power * rng.uniform(0.3, 1, 3) / 2),))

    for name, fun in (("inverse barrier", inverse_barrier), ("gamma likelihood", gamma_likelihood)):
        yield name, Family(fun, [positive(power) for power in spread])

    def entropic(power: float) -> Case:
        return Case(10 ** rng.uniform(-2, 2, 3), (rng.uniform(-3, 3, 3) + 0 * power,))

    yield "entropy", Family(entropy, [entropic(power) for power in spread])

    def sums(distance: float) -> Case:
        a = rng.standard_normal((12, 3))
        rows = np.vstack([a, -a])  # every direction rises in the end
        start = rng.standard_normal(3)
        return Case(start * distance / np.abs(rows @ start).max(), (rows, rng.uniform(-1, 1, 24)))

    yield "sum of exponentials", Family(exponentials, [sums(distance) for distance in np.linspace(1, 80, 19)])
    starts = [
        _numbers([distance * np.cos(at), distance * np.sin(at)]) for at, distance in enumerate(np.geomspace(1, 25, 19))
    ]
    yield "Boyd and Vandenberghe's exponentials", Family(boyd, [Case(start) for start in starts])

    def counts(distance: float) -> Case:
        features = rng.standard_normal((30, 4))
        rates = np.exp(features @ (0.5 * rng.standard_normal(4)))
        start = rng.standard_normal(4)
        return Case(start * distance / np.abs(features @ start).max(), (features, rng.poisson(rates) + 0.5))

    yield "Poisson regression", Family(poisson, [counts(distance) for distance in np.linspace(1, 60, 19)])

    def steep(power: float) -> Case:
        scale = 10 ** (power / 3)
        return Case(rng.uniform(-1, 1, 3) * 60 / scale, (_numbers([scale]),))

    for name, fun in (("exponential and square", exponential_and_square), ("hyperbolic cosine", hyperbolic)):
        yield name, Family(fun, [steep(power) for power in spread])


def _classics(rng: np.random.Generator) -> Iterator[tuple[str, Family]]:
    """Twenty starts each, near and far."""
    distances = np.geomspace(1, 1e3, 20)
    yield "Himmelblau", Family(himmelblau, [Case(rng.uniform(-1, 1, 2) * each) for each in distances], 0.0)
    yield "Zakharov", Family(zakharov, [Case(rng.uniform(-1, 1, 4) * each) for each in distances], 0.0)
    features = rng.standard_normal((60, 5)) * [0.1, 1, 1, 3, 10]
    labels = np.sign(features @ rng.standard_normal(5) + rng.standard_normal(60))
    starts = [rng.uniform(-1, 1, 5) * each for each in distances]
    yield "logistic", Family(logistic, [Case(start, (features, labels)) for start in starts])


BARRIERS_AND_EXPONENTIALS = dict(_barriers_and_exponentials(np.random.default_rng(0)))
CLASSICS = dict(_classics(np.random.default_rng(1)))
FAMILIES = {**BARRIERS_AND_EXPONENTIALS, **CLASSICS}

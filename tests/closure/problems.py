"""Test problems of Moré, Garbow and Hillstrom (1981) as sums of squares, with their starting points."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Residuals = Callable[[jax.Array], jax.Array]


class Problem(NamedTuple):
    """A sum of squares to minimize.

    Args:
      number: in the paper.
      residuals: of the parameters, a vector.
      start: the paper's starting point.
      minima: the losses at its known minima, global first.
    """

    number: int
    residuals: Residuals
    start: Sequence[float]
    minima: tuple[float, ...] = (0.0,)

    def loss(self, x: jax.Array) -> jax.Array:
        r = self.residuals(x)
        return jnp.sum(r * r)

    def first(self) -> np.ndarray:
        return np.asarray(self.start, np.float64)


def rosenbrock(x: jax.Array) -> jax.Array:
    a, b = x[::2], x[1::2]
    return jnp.concatenate([10 * (b - a * a), 1 - a])


def freudenstein_roth(x: jax.Array) -> jax.Array:
    a, b = x
    return jnp.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


def powell_badly_scaled(x: jax.Array) -> jax.Array:
    return jnp.stack([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


def brown_badly_scaled(x: jax.Array) -> jax.Array:
    return jnp.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(x: jax.Array) -> jax.Array:
    b = x[1]
    return jnp.array([1.5, 2.25, 2.625]) - x[0] * (1 - jnp.stack([b, b * b, b * b * b]))


def helical_valley(x: jax.Array) -> jax.Array:
    theta = jnp.arctan2(x[1], x[0]) / (2 * jnp.pi)
    theta = jnp.where(theta < -0.25, theta + 1, theta)  # the paper's branch, cut along the negative second axis
    return jnp.stack([10 * (x[2] - 10 * theta), 10 * (jnp.sqrt(x[0] * x[0] + x[1] * x[1]) - 1), x[2]])


def bard(x: jax.Array) -> jax.Array:
    y = [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]
    u = jnp.arange(1.0, 16.0)
    v = 16 - u
    return jnp.array(y) - (x[0] + u / (v * x[1] + jnp.minimum(u, v) * x[2]))


def box_3d(x: jax.Array) -> jax.Array:
    t = 0.1 * jnp.arange(1.0, 11.0)
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))


def powell_singular(x: jax.Array) -> jax.Array:
    a, b, c, d = x.reshape(-1, 4).T
    bc, ad = b - 2 * c, a - d
    return jnp.concatenate([a + 10 * b, 5**0.5 * (c - d), bc * bc, 10**0.5 * ad * ad])


def wood(x: jax.Array) -> jax.Array:
    a, b, c, d = x
    return jnp.stack([10 * (b - a * a), 1 - a, 90**0.5 * (d - c * c), 1 - c, 10**0.5 * (b + d - 2), 10**-0.5 * (b - d)])


def brown_dennis(x: jax.Array) -> jax.Array:
    t = jnp.arange(1.0, 21.0) / 5
    first, second = x[0] + t * x[1] - jnp.exp(t), x[2] + x[3] * jnp.sin(t) - jnp.cos(t)
    return first * first + second * second


def biggs_exp6(x: jax.Array) -> jax.Array:
    t = 0.1 * jnp.arange(1.0, 14.0)
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    return x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4]) - y


def variably_dimensioned(x: jax.Array) -> jax.Array:
    total = jnp.sum(jnp.arange(1.0, x.size + 1) * (x - 1))
    return jnp.concatenate([x - 1, jnp.stack([total, total * total])])


def trigonometric(x: jax.Array) -> jax.Array:
    cos = jnp.cos(x)
    return x.size - jnp.sum(cos) + jnp.arange(1.0, x.size + 1) * (1 - cos) - jnp.sin(x)


def penalty_1(x: jax.Array) -> jax.Array:
    return jnp.concatenate([1e-5**0.5 * (x - 1), (jnp.sum(x * x) - 0.25)[None]])


def broyden_tridiagonal(x: jax.Array) -> jax.Array:
    zero = jnp.zeros(1)
    left, right = jnp.concatenate([zero, x[:-1]]), jnp.concatenate([x[1:], zero])
    return (3 - 2 * x) * x - left - 2 * right + 1


def discrete_boundary_value(x: jax.Array) -> jax.Array:
    h = 1 / (x.size + 1)
    zero, cube = jnp.zeros(1), x + h * jnp.arange(1.0, x.size + 1) + 1
    left, right = jnp.concatenate([zero, x[:-1]]), jnp.concatenate([x[1:], zero])
    return 2 * x - left - right + h * h * (cube * cube * cube) / 2


def _boundary_start(n: int) -> Sequence[float]:
    return [i / (n + 1) * (i / (n + 1) - 1) for i in range(1, n + 1)]


PROBLEMS: dict[str, Problem] = {
    "Rosenbrock 2": Problem(1, rosenbrock, [-1.2, 1]),
    "Rosenbrock 4": Problem(21, rosenbrock, [-1.2, 1] * 2),
    "Rosenbrock 100": Problem(21, rosenbrock, [-1.2, 1] * 50),
    "Freudenstein and Roth": Problem(2, freudenstein_roth, [0.5, -2], (0.0, 48.98425)),
    "Powell badly scaled": Problem(3, powell_badly_scaled, [0, 1]),
    "Brown badly scaled": Problem(4, brown_badly_scaled, [1, 1]),
    "Beale": Problem(5, beale, [1, 1]),
    "Helical valley": Problem(7, helical_valley, [-1, 0, 0]),
    "Bard": Problem(8, bard, [1, 1, 1], (8.21487e-3, 17.4286)),
    "Box 3D": Problem(12, box_3d, [0, 10, 20]),
    "Powell singular": Problem(13, powell_singular, [3, -1, 0, 1]),
    "extended Powell 40": Problem(22, powell_singular, [3, -1, 0, 1] * 10),
    "Wood": Problem(14, wood, [-3, -1, -3, -1]),
    "Brown and Dennis": Problem(16, brown_dennis, [25, 5, -5, -1], (85822.2,)),
    "Biggs EXP6": Problem(18, biggs_exp6, [1, 2, 1, 1, 1, 1], (0.0, 5.65565e-3, 0.306367)),
    "Penalty I 10": Problem(23, penalty_1, list(range(1, 11)), (7.08765e-5,)),
    "Variably dimensioned 10": Problem(25, variably_dimensioned, [1 - i / 10 for i in range(1, 11)]),
    "Trigonometric 10": Problem(26, trigonometric, [0.1] * 10, (0.0, 2.79506e-5)),
    "Discrete boundary value 20": Problem(28, discrete_boundary_value, _boundary_start(20)),
    "Broyden tridiagonal 50": Problem(30, broyden_tridiagonal, [-1.0] * 50),
}

"""Runs from where a trial overflows, or is no number at all. The whole sweep: `python -m benchmarks.closure_sweep`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize

import jaxopt_port as optim
from jaxopt_port.closure.line_search import cubic_interpolate
from jaxopt_port.closure.nonlinear_cg import BETAS
from tests.closure.far_starts import FAMILIES, Case, Family, himmelblau

OPTIMIZERS = {f"nonlinear_cg {beta}": optim.nonlinear_cg(beta=beta) for beta in BETAS}
OPTIMIZERS["lbfgs"] = optim.lbfgs(line_search_fn="strong_wolfe")


def best(family: Family, case: Case, near: np.ndarray) -> float:
    """The loss in float64 at the minimum, by SciPy from a point that is to be close to it."""
    if family.least is not None:
        return family.least

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, grad = jax.value_and_grad(family.fun)(x, *case.data)
        return float(loss), np.asarray(grad)

    return float(scipy_minimize(fun, near, jac=True, method="BFGS").fun)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        *[("Himmelblau", solver) for solver in OPTIMIZERS],
        ("Zakharov", "lbfgs"),
        ("Zakharov", "nonlinear_cg hz"),
        ("sum of exponentials", "lbfgs"),
        ("sum of exponentials", "nonlinear_cg pr+"),
        ("log barrier of a polytope", "nonlinear_cg pr+"),
        ("gamma likelihood", "lbfgs"),
    ],
)
def test_solved_in_float32(name: str, solver: str):
    family = FAMILIES[name]
    cases = family.cases[::4]
    starts, *data = (
        jnp.asarray(np.stack(x), jnp.float32) for x in zip(*((c.start, *c.data) for c in cases), strict=True)
    )
    run = jax.vmap(lambda start, *data: optim.minimize(OPTIMIZERS[solver], family.fun, start, 3000, args=data))
    ends = np.asarray(jax.jit(run)(starts, *data).params, float)
    with jax.enable_x64(True):
        for case, end in zip(cases, ends, strict=True):
            least = best(family, case, end)
            assert float(family.fun(jnp.asarray(end), *case.data)) - least <= 1e-5 * max(1, abs(least))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("power", [3, 18, 25, 37])
def test_every_trial_is_in_the_bracket(dtype: str, power: int):
    """A loss of which torch's square overflows gives the same point as one that is small."""
    with jax.enable_x64(True):

        def at(x: float, f: float, g: float, scale: float) -> tuple[Any, Any, Any]:
            return tuple(jnp.asarray(v, dtype) for v in (x, f * scale, g * scale))  # pyright: ignore

        scale = 10.0 ** (power if dtype == "float32" else 8 * power)
        for f, g in ((3.0, 5.0), (0.5, 2.0), (-2.0, 0.5), (-0.5, -0.1)):
            small = cubic_interpolate(at(0.0, 1.0, -2.0, 1), at(1.5, f, g, 1))
            large = cubic_interpolate(at(0.0, 1.0, -2.0, scale), at(1.5, f, g, scale), safe=True)
            np.testing.assert_allclose(large, small, 1e-5)
        beyond = cubic_interpolate(at(0.0, 1.0, -2.0, 1), at(1.5, np.inf, np.nan, 1), safe=True)
        assert float(beyond) == 0.75


def test_a_small_loss_is_no_reason_to_stop():
    """torch's tolerance_change is absolute: at this loss its steps end where they begin."""
    with jax.enable_x64(True):
        for scale in (1e-5, 1e-12, 1e8):
            fun = lambda x, scale: scale * himmelblau(x)  # noqa: E731
            for optimizer in (optim.lbfgs(line_search_fn="strong_wolfe"), optim.lbfgs(lr=0.5)):
                end = optim.minimize(optimizer, fun, jnp.array([2.5, 2.5]), 300, 1e-10 * scale, args=(scale,))
                assert optim.Stop(int(end.stop)).name == "GRADIENT"
                np.testing.assert_allclose(end.params, [3, 2], 1e-8)


@pytest.mark.parametrize("solver", ["lbfgs", "nonlinear_cg hz"])
def test_a_gradient_that_moves_no_parameter_by_itself(solver: str):
    """L-BFGS ended at its start, since a first step of the gradient's length was lost in rounding."""
    fun = lambda x, scale: scale * jnp.sum((x - 1) ** 2)  # noqa: E731
    for scale in (1e-20, 1e-30, 1e-36):
        end = optim.minimize(OPTIMIZERS[solver], fun, jnp.array([3.0, -2.0]), 100, 0.01 * scale, args=(scale,))
        np.testing.assert_allclose(end.params, 1, atol=0.01)


@pytest.mark.parametrize("factory", [optim.lbfgs, lambda lr: optim.nonlinear_cg(lr=lr, line_search=None)])
def test_without_a_line_search_no_nan_is_returned_in_silence(factory: Any):
    """No length is right for this one: a step jumps out of where the loss is a number, or far away."""
    barrier = lambda x: jnp.sum(-jnp.log(x) - jnp.log(1 - x))  # noqa: E731
    end = optim.minimize(factory(lr=10.0), barrier, jnp.array([0.01, 0.3]), 50)
    assert optim.Stop(int(end.stop)).name == "NON_FINITE"
    assert not np.isfinite(barrier(end.params))
    np.testing.assert_array_equal(end.loss, barrier(end.params))
    steep = lambda x: jnp.sum(jnp.cosh(x))  # noqa: E731
    end = optim.minimize(factory(lr=1e3), steep, jnp.array([1.0, 2.0]), 1)  # the last step is looked at, too
    assert optim.Stop(int(end.stop)).name == "NON_FINITE"
    np.testing.assert_array_equal(end.loss, steep(end.params))


def test_parameters_that_are_no_numbers_end_a_step_so():
    optimizer, start = optim.lbfgs(lr=jnp.inf, max_iter=1), jnp.ones(2)
    _, params, state = optimizer.step_closure(lambda x: (x * x).sum(), optimizer.init(start), start)
    assert not np.isfinite(params).any()
    assert int(state.slots.stop) == optim.Stop.NON_FINITE


def test_steepest_descent_is_tried_again_at_the_first_length():
    """A length that is too long by 30 orders of magnitude is not shortened enough in one search."""

    def barrier(x: jax.Array) -> jax.Array:
        return jnp.sum(-jnp.log(1 - x) - jnp.log(1 + x))

    optimizer, start = optim.nonlinear_cg(max_iter=1, tolerance_grad=1e-4), jnp.array([0.9, -0.5])
    _, x, state = optimizer.step_closure(barrier, optimizer.init(start), start)
    state = state._replace(slots=state.slots._replace(descent=jnp.float32(-1e36), prev_loss=jnp.float32(1e36)))
    _, x, state = optim.nonlinear_cg(max_iter=100).step_closure(barrier, state, x)
    assert optim.Stop(int(state.slots.stop)).name == "GRADIENT"
    np.testing.assert_allclose(x, 0, atol=1e-3)


@pytest.mark.parametrize("solver", ["lbfgs", "nonlinear_cg fr"])
def test_a_run_ends_where_rounding_lets_nothing_come_down(solver: str):
    """The gradient of this one is known to no better than 1e-2: a run goes to and fro there, and says so soon."""

    def fun(x: jax.Array) -> jax.Array:
        return jnp.sum((1e3 * (x - 1) + 1e5) ** 2 / 1e5 - 2e3 * x)

    end = optim.minimize(OPTIMIZERS[solver], fun, jnp.array([3.0, -2.0, 0.5]), 100_000, 1e-12)
    assert optim.Stop(int(end.stop)).name in ("CHANGE", "LINE_SEARCH", "GRADIENT")
    assert int(end.steps) < 1000
    np.testing.assert_allclose(end.params, 1, atol=1e-2)

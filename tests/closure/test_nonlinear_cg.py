"""Nonlinear conjugate gradients: its directions against the textbook's formulas, its work against SciPy's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize

import jaxopt_port as optim
from jaxopt_port.closure.nonlinear_cg import BETAS
from tests.closure.problems import PROBLEMS, Problem
from tests.helpers import CountTraces

ROSENBROCK = PROBLEMS["Rosenbrock 4"].loss
START = PROBLEMS["Rosenbrock 4"].first()


def textbook_beta(name: str, g: np.ndarray, before: np.ndarray, d: np.ndarray) -> Any:
    """Nocedal and Wright (5.41), (5.44), (5.46), (5.49); Hager and Zhang 2005, (1.5) to (1.7), eta = 0.4 scaled."""
    y = g - before
    if name == "fr":
        return g @ g / (before @ before)
    if name == "pr+":
        return max(0.0, g @ y / (before @ before))
    if name == "hs":
        return g @ y / (y @ d)
    if name == "dy":
        return g @ g / (y @ d)
    exact = (y - 2 * d * (y @ y) / (d @ y)) @ g / (d @ y)
    return max(exact, 0.4 * (d @ before) / (d @ d))


@pytest.mark.parametrize("beta", BETAS)
def test_directions_are_the_textbooks(beta: str):
    with jax.enable_x64(True):
        optimizer, x = optim.nonlinear_cg(beta=beta, max_iter=1, restart=None), jnp.asarray(START)
        state, gradient = optimizer.init(x), jax.grad(ROSENBROCK)
        conjugate, before, d = 0, np.zeros(4), np.zeros(4)
        for _ in range(12):
            g = np.asarray(gradient(x))
            _, x, state = optimizer.step_closure(ROSENBROCK, state, x)
            if np.any(d):
                expected = textbook_beta(beta, g, before, d) * d - g
                descends = g @ expected <= -0.01 * g @ g
                np.testing.assert_allclose(state.slots.d, expected if descends else -g, 1e-9)
                assert (int(state.slots.since_restart) > 0) == descends
                conjugate += descends
            before, d = g, np.asarray(state.slots.d)
        assert conjugate >= 8


@pytest.mark.parametrize("beta", ["hs", "dy"])  # where a wrong sign of y shows
def test_a_quadratic_takes_about_as_many_iterations_as_it_has_dimensions(beta: str):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        q, _ = np.linalg.qr(rng.normal(size=(12, 12)))
        matrix, right = q @ np.diag(np.linspace(1, 100, 12)) @ q.T, rng.normal(size=12)

        def quadratic(x: jax.Array) -> jax.Array:
            return x @ (matrix @ x) / 2 - right @ x

        end = optim.minimize(optim.nonlinear_cg(beta=beta), quadratic, jnp.zeros(12), 1000, 1e-8)
        np.testing.assert_allclose(end.params, np.linalg.solve(matrix, right), 1e-6, 1e-9)
        assert int(end.stop) == optim.Stop.GRADIENT
        assert int(end.steps) <= 3 * 12  # as many as it has dimensions, were every search exact


def scipy_cg(problem: Problem) -> Any:
    value_and_grad = jax.jit(jax.value_and_grad(problem.loss))

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, grad = value_and_grad(x)
        return float(loss), np.asarray(grad)

    return scipy_minimize(fun, problem.first(), jac=True, method="CG", options={"gtol": 1e-5, "maxiter": 2000})


def test_no_more_evaluations_than_scipy():
    ours, theirs = [], []
    with jax.enable_x64(True):
        for name in ("Rosenbrock 4", "Beale", "Wood"):
            problem = PROBLEMS[name]
            end = optim.minimize(optim.nonlinear_cg(), problem.loss, jnp.asarray(problem.first()), 2000, 1e-5)
            assert int(end.stop) == optim.Stop.GRADIENT
            assert min(abs(float(end.loss) - loss) for loss in problem.minima) < 1e-5
            ours.append(int(end.evaluations))
            theirs.append(scipy_cg(problem).nfev)
    assert np.median(ours) <= np.median(theirs)


def test_the_scale_of_the_loss_changes_no_bit():
    """Its thresholds are relative, so that a loss 2^20 times as large takes the very same steps."""
    with jax.enable_x64(True):
        optimizer, start = optim.nonlinear_cg(max_iter=100), jnp.asarray(START)
        step = CountTraces(lambda scale: optimizer.step_closure(scaled, optimizer.init(start), start, scale))

        def scaled(x: jax.Array, scale: Any) -> jax.Array:
            return scale * ROSENBROCK(x)

        ends = [step(scale) for scale in (1.0, 2.0**20, 2.0**-20)]
    assert {int(state.slots.stop) for _, _, state in ends} == {optim.Stop.GRADIENT}
    for _, x, state in ends[1:]:
        np.testing.assert_array_equal(x, ends[0][1])
        assert state.steps[0] == ends[0][2].steps[0]


def test_restarts():
    def restarts(restart: Any) -> list[bool]:
        optimizer, x = optim.nonlinear_cg(max_iter=1, restart=restart), jnp.asarray(START, jnp.float32)
        state, found = optimizer.init(x), []
        for _ in range(9):
            g = jax.grad(ROSENBROCK)(x)
            before = state.slots.prev_flat_grad
            _, x, state = optimizer.step_closure(ROSENBROCK, state, x)
            found.append(int(state.slots.since_restart) == 0)
            if restart == "powell":  # Powell's test, where the direction descends anyway
                assert found[-1] or abs(float(g @ before)) < 0.2 * float(g @ g)
            if found[-1]:
                np.testing.assert_allclose(state.slots.d, -g, 1e-3, 1e-5)
        return found

    assert restarts(3) == [True, False, False] * 3
    assert sum(restarts("powell")) > 1
    assert not any(restarts(None)[1:])


def test_steps_of_a_given_length_without_a_line_search():
    optimizer, x = optim.nonlinear_cg(line_search=None, lr=0.25, max_iter=2), jnp.array([1.0, -2.0])
    _, new, state = optimizer.step_closure(lambda x: jnp.sum(x * x), optimizer.init(x), x)
    # Steepest descent to x / 2, where the gradient has the same direction: pr+ has beta = g.(g - 2g) < 0, so 0.
    np.testing.assert_allclose(new, x / 4)
    assert {name: int(count) for name, count in state.steps[0].items()} == {"func_evals": 3, "n_iter": 2}


def test_what_ends_a_step():
    def end(fun: Any, start: list[float], **options: Any) -> tuple[str, list[float], int]:
        x = jnp.array(start)
        optimizer = optim.nonlinear_cg(max_iter=30, **options)
        _, x, state = optimizer.step_closure(fun, optimizer.init(x), x)
        return optim.Stop(int(state.slots.stop)).name, x.tolist(), int(state.steps[0]["func_evals"])

    square = lambda x: jnp.sum(x * x)  # noqa: E731
    assert end(square, [0.0, 0.0]) == ("GRADIENT", [0.0, 0.0], 1)
    assert end(lambda x: jnp.sum(jnp.log(x)), [-1.0])[::2] == ("NON_FINITE", 1)
    # A loss that is not a number beyond 1 makes the search shorten its steps, and the minimum is found.
    stop, x, _ = end(lambda x: jnp.sum(-jnp.log(1 - x) - x), [-0.9, 0.5], tolerance_grad=1e-4)
    assert stop == "GRADIENT"
    np.testing.assert_allclose(x, 0, atol=1e-3)
    # A gradient of the wrong sign: no length is better than none, the search is exhausted, and nothing moves.
    wrong = lambda x: jax.lax.stop_gradient(2 * square(x)) - square(x)  # noqa: E731
    stop, x, evals = end(wrong, [3.0, -2.0])
    assert (stop, x) == ("LINE_SEARCH", [3.0, -2.0])
    assert evals <= 1 + 26
    assert end(lambda x: jnp.sum(x), [0.0], max_eval=3)[0] == "MAX_EVAL"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": "pr"}, r"Invalid beta: 'pr', known are: pr\+, fr, hs, dy, hz"),
        ({"line_search": "armijo"}, "Invalid line_search: 'armijo', known are: None, 'strong_wolfe'"),
        ({"restart": 0}, "Invalid restart: 0"),
        ({"restart": "never"}, "Invalid restart: 'never'"),
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"tolerance_grad": -1.0}, "Invalid tolerance_grad: -1.0"),
        ({"tolerance_change": -1.0}, "Invalid tolerance_change: -1.0"),
    ],
)
def test_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        optim.nonlinear_cg(**options)

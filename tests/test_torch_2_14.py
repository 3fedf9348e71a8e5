"""What torch 2.14 and 2.15 changed, which the tests' torch (2.13) lacks: against the formulas of their sources.

2.14: Muon's "spectral_unclamped", L-BFGS's `maximize`, L-BFGS without parameters, Adafactor's means by `vector_norm`.
2.15: ASGD refuses a negative `lambd` and `alpha`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from tests.helpers import assert_same_bits


@pytest.mark.parametrize("shape", [(3, 12), (12, 3), (4, 4), (1, 5)])
def test_muon_with_the_ratio_not_clamped(shape):
    """torch 2.14's `_adjust_lr`: "spectral_unclamped" is sqrt(A / B), "original" sqrt(max(1, A / B))."""
    rng = np.random.default_rng(0)
    params, grads = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))

    def step(adjust_lr_fn, params=params):
        optimizer = optim.muon(lr=0.1, weight_decay=0.0, adjust_lr_fn=adjust_lr_fn)
        return optimizer.step(grads, optimizer.init(params), params)[0] - params

    rows, columns = shape
    plain = step("original") / math.sqrt(max(1, rows / columns))  # the direction times -lr
    assert float(jnp.abs(plain).max()) > 0.01
    np.testing.assert_allclose(step("spectral_unclamped"), plain * math.sqrt(rows / columns), 1e-4, 1e-6)
    assert (rows < columns) == bool((step("spectral_unclamped") != step("original")).any())


def test_muon_names_what_it_does_not_know():
    with pytest.raises(ValueError, match="Adjust learning rate function spectral is not supported"):
        optim.muon(adjust_lr_fn="spectral")


@pytest.mark.parametrize(
    ("name", "message"), [("lambd", "Invalid lambd value: -0.5"), ("alpha", "Invalid alpha value: -0.5")]
)
def test_asgd_refuses_what_is_negative(name, message):
    negative: dict[str, Any] = {name: -0.5}
    zero: dict[str, Any] = {name: 0.0}
    with pytest.raises(ValueError, match=message):
        optim.asgd(**negative)
    with pytest.raises(ValueError, match=message):
        optim.asgd(param_groups=[optim.ParamGroup(".*", **negative)])
    optim.asgd(**zero)


LBFGS = {
    "no line search": {"lr": 0.5},
    "strong Wolfe": {"line_search_fn": "strong_wolfe"},
    "a short history": {"line_search_fn": "strong_wolfe", "history_size": 2, "max_iter": 4},
}


@pytest.mark.parametrize("options", LBFGS.values(), ids=LBFGS)
def test_lbfgs_that_maximizes_is_one_that_minimizes_the_negative(options):
    """torch 2.14 negates the flat gradient and every loss inside, and returns the closure's own loss: the same bits."""

    def loss(p):
        return ((p["a"] - 3.0) ** 2 * jnp.array([1.0, 5.0])).sum() + (p["b"] ** 4).sum() - p["b"].sum()

    up, down = optim.lbfgs(maximize=True, **options), optim.lbfgs(**options)
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[0.3]])}
    theirs, state, their_state = params, up.init(params), down.init(params)
    for _ in range(3):
        mine, params, state = up.step_closure(lambda p: -loss(p), state, params)
        its, theirs, their_state = down.step_closure(loss, their_state, theirs)
        assert float(mine) == -float(its)
        assert_same_bits(params, theirs)
    assert float(loss(params)) < float(loss({"a": jnp.array([1.0, 2.0]), "b": jnp.array([[0.3]])}))


def test_lbfgs_without_parameters_evaluates_once():
    """torch 2.14 returns the closure's loss, where 2.13 fails at the first `cat`."""
    optimizer = optim.lbfgs()
    loss, params, _ = optimizer.step_closure(lambda p: jnp.float32(4.0), optimizer.init({}), {})
    assert (float(loss), params) == (4.0, {})


@pytest.mark.parametrize("shape", [(3, 4), (3, 1), (1, 4), (2, 3, 1), (1, 1)])
def test_adafactors_means_are_those_of_vector_norm(shape):
    """row_var and col_var after a step, `vector_norm(grad, dim).square_() / size`: along one element it is |g|."""
    rng = np.random.default_rng(0)
    params, grads = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
    optimizer = optim.adafactor()  # whose first weight is 1
    _, state = optimizer.step(grads, optimizer.init(params), params)
    wide = np.asarray(grads, np.float64)
    for name, axis in (("row_var", -1), ("col_var", -2)):
        expected = np.linalg.norm(wide, axis=axis, keepdims=True) ** 2 / shape[axis]
        found = jax.tree.leaves(getattr(state.slots, name))
        np.testing.assert_allclose(found[0], expected, 1e-6)
        if shape[axis] == 1:
            np.testing.assert_array_equal(found[0], np.square(np.asarray(grads)))

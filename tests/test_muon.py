"""Muon on the arrays that JAX's models have: which axes are torch's rows and columns."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_port as optim
from tests.helpers import assert_close, assert_same_bits

LAYOUTS = {  # of torch's matrices [out, in]
    "flax kernel": ((0, 1), lambda w: w[0].T),
    "stacked layers": ((1, 2), lambda w: w.swapaxes(1, 2)),
    "attention kernel": ((0, (1, 2)), lambda w: w[0].T.reshape(6, 2, 4)),
    "convolution": (((0, 1, 2), 3), lambda w: w[0].T.reshape(3, 1, 2, 8)),
    "negative axes": ((-2, -1), lambda w: w.swapaxes(1, 2)),
    "optax's": (optax.contrib.MuonDimensionNumbers(0, 1), lambda w: w[0].T),
}
OPTIONS = [{}, {"adjust_lr_fn": "match_rms_adamw"}, {"adjust_lr_fn": "spectral_unclamped", "nesterov": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_kernel_takes_the_step_of_torchs_matrix(name, options):
    dimension_numbers, laid_out = LAYOUTS[name]
    rng = np.random.default_rng(0)
    params, grads = (rng.normal(size=(2, 8, 6)).astype(np.float32) for _ in range(2))
    plain = optim.muon(lr=0.1, **options)
    expected = [
        plain.step(g, plain.init(p), p)[0] for p, g in zip(jnp.asarray(params), jnp.asarray(grads), strict=True)
    ]
    optimizer = optim.muon(lr=0.1, weight_dimension_numbers=dimension_numbers, **options)
    p, g = jnp.asarray(laid_out(params)), jnp.asarray(laid_out(grads))
    new, _ = optimizer.step(g, optimizer.init(p), p)
    np.testing.assert_allclose(new, laid_out(np.stack(expected)), 1e-6, 1e-6)


def test_a_square_kernel_iterates_on_torchs_side():
    """48 x 48 of rank 5, where the two sides' bfloat16 products are 0.18 of an update apart."""
    rng = np.random.default_rng(0)
    grad = jnp.asarray((rng.normal(size=(48, 5)) @ rng.normal(size=(5, 48))).astype(np.float32))
    params = jnp.asarray(rng.normal(size=(48, 48)).astype(np.float32))
    plain, flax = optim.muon(lr=0.1), optim.muon(lr=0.1, weight_dimension_numbers=(0, 1))
    expected, _ = plain.step(grad, plain.init(params), params)
    new, _ = flax.step(grad.T, flax.init(params.T), params.T)
    assert_same_bits(new.T, expected)


@pytest.mark.parametrize("rows_columns", [(8, 2), (2, 8)])
def test_spectral_unclamped_is_torch_2_14s_formula(rows_columns):
    rng = np.random.default_rng(0)
    params, grad = (jnp.asarray(rng.normal(size=rows_columns).astype(np.float32)) for _ in range(2))
    step = {}
    for name in ("original", "spectral_unclamped"):
        optimizer = optim.muon(lr=1.0, weight_decay=0.0, adjust_lr_fn=name)
        step[name] = optimizer.step(grad, optimizer.init(params), params)[0] - params
    rows, columns = rows_columns
    ratio = np.sqrt(rows / columns) / np.sqrt(max(1, rows / columns))
    np.testing.assert_allclose(step["spectral_unclamped"], step["original"] * ratio, 1e-4, 1e-5)


def test_by_group_and_under_partition():
    rng = np.random.default_rng(0)
    params = {"stack": rng.normal(size=(2, 3, 4)), "dense": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    groups = [optim.ParamGroup("stack", weight_dimension_numbers=(1, 2))]
    muon = optim.muon(lr=0.1, weight_dimension_numbers=(0, 1), param_groups=groups)
    labels = {"stack": "muon", "dense": "muon", "bias": "adamw"}
    tx = optax.partition({"muon": muon, "adamw": optim.adamw()}, labels)
    updates: Any
    updates, _ = tx.update(params, tx.init(params), params)
    for key, axes in (("stack", (1, 2)), ("dense", (0, 1))):
        alone = optim.muon(lr=0.1, weight_dimension_numbers=axes)
        expected, _ = alone.update(params[key], alone.init(params[key]), params[key])
        assert_close(updates[key], expected)


def test_axes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"weight_dimension_numbers \(0, 2\) does not fit .* size \[4, 3\]"):
        optim.muon(weight_dimension_numbers=(0, 2)).init(jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="must be different axes"):
        optim.muon(weight_dimension_numbers=(0, -2)).init(jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"or \(reduction_axis, output_axis\)"):
        optim.muon(weight_dimension_numbers=1)  # pyright: ignore[reportArgumentType]

"""What a step does with the form of its input: maximize, complex numbers, donation, closures, odd trees."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_port as optim
from tests.helpers import (
    MATRICES,
    RULES,
    SPARSE,
    assert_close,
    assert_same_bits,
    make,
    make_grads,
    make_params,
    run,
    slot,
)

REAL_ONLY = ("adafactor", MATRICES, SPARSE)
GROUPS = [optim.ParamGroup("bias", lr=0.02)]


@pytest.mark.parametrize("name", RULES)
def test_update_is_new_minus_old(name):
    optimizer = make(name)
    params = make_params(name)
    state = optimizer.init(params)
    new, after = optimizer.step(make_grads(name, 0), state, params)
    updates, after_update = optimizer.update(make_grads(name, 0), state, params)
    assert_same_bits(updates, jax.tree.map(jnp.subtract, new, params))
    assert_same_bits(after_update, after)
    assert_close(optax.apply_updates(params, updates), new, rtol=1e-6)


@pytest.mark.parametrize("name", [n for n in RULES if "maximize" in inspect.signature(optim.optimizers[n]).parameters])
def test_maximize_is_a_step_along_minus_the_gradient(name):
    params = make_params(name)
    grads = make_grads(name, 0)
    up, down = make(name, maximize=True), make(name)
    minus = jax.tree.map(lambda x: -x if jnp.issubdtype(x.dtype, jnp.floating) else x, grads)
    assert_same_bits(up.step(grads, up.init(params), params), down.step(minus, down.init(params), params))


def test_maximize_of_one_group_only():
    optimizer = optim.sgd(lr=1.0, param_groups=[optim.ParamGroup("up", maximize=True)])
    params = {"down": jnp.zeros(1), "up": jnp.zeros(1)}
    new, _ = optimizer.step({"down": jnp.ones(1), "up": jnp.ones(1)}, optimizer.init(params), params)
    assert_same_bits(new, {"down": -jnp.ones(1), "up": jnp.ones(1)})


@pytest.mark.parametrize("name", [n for n in RULES if n not in REAL_ONLY])
def test_complex_parameters_descend_as_in_torch(name):
    start = np.array([1 + 2j, -0.5j, 3, 0.1 - 1j], np.complex64)
    target = np.array([0.5j, 1 - 1j, 1 + 1j, -2], np.complex64)
    optimizer = make(name, lr=0.05)
    params = {"z": jnp.asarray(start)}
    state = optimizer.init(params)

    def closure(params):
        difference = params["z"] - target
        return (difference * difference.conj()).real.sum()

    step = jax.jit(lambda state, params: optimizer.step_closure(closure, state, params))
    losses = []
    for _ in range(5):
        loss, params, state = step(state, params)
        losses.append(float(loss))
    assert sorted(losses, reverse=True) == losses
    assert params["z"].dtype == np.complex64

    torch = pytest.importorskip("torch")
    from tests.oracle import Torch

    oracle = Torch(name, [start], [[0]], [{"lr": 0.05}])

    def torch_closure():
        oracle.optimizer.zero_grad()
        difference = oracle.params[0] - torch.from_numpy(target)
        loss = (difference * difference.conj()).real.sum()
        loss.backward()
        return loss

    torch_losses = [oracle.optimizer.step(torch_closure).item() for _ in range(5)]
    np.testing.assert_allclose(losses, torch_losses, 1e-5)
    np.testing.assert_allclose(params["z"], oracle.values(0)[""], 1e-5)


def test_step_takes_torchs_complex_gradient_the_conjugate_of_jaxs():
    optimizer = optim.sgd(lr=1.0)
    z = jnp.array([1 + 2j], jnp.complex64)
    grads = jax.grad(lambda z: (z * z.conj()).real.sum() / 2)(z)
    new, _ = optimizer.step(grads.conj(), optimizer.init(z), z)
    np.testing.assert_array_equal(new, [0j])


@pytest.mark.parametrize("name", RULES)
def test_donated_steps(name):
    optimizer = make(name, param_groups=GROUPS)
    params = make_params(name)
    expected = run(optimizer.step, name, params, optimizer.init(params), 2)
    state = optimizer.init(params)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state))]
    assert len(set(buffers)) == len(buffers)
    step = jax.jit(optimizer.step, donate_argnums=(1, 2))
    donated = run(step, name, make_params(name), state, 2)
    assert_close(donated, expected)
    assert jax.tree.leaves(state)[-1].is_deleted()


def test_donation_where_one_array_gives_the_learning_rate_of_every_group():
    with jax.enable_x64(True):
        lr = jnp.asarray(0.1, jnp.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # JAX warns where a float64 becomes a float32
        optimizer = optim.sgd(lr=lr, momentum=0.5, param_groups=[optim.ParamGroup("bias", dampening=0.5)])
    step = jax.jit(optimizer.step, donate_argnums=(1, 2))
    for set_lr in (optim.set_hyper, jax.jit(optim.set_hyper)):
        params = make_params("sgd")
        state = set_lr(jax.jit(optimizer.init)(params), lr=lr)
        run(step, "sgd", params, state, 2)
    assert float(lr) == 0.1


def test_step_closure_with_a_batch_and_aux():
    optimizer = optim.sgd(lr=0.5)
    params = {"w": jnp.array([1.0, 2.0])}

    def closure(params, x, y):
        error = x @ params["w"] - y
        return error**2, {"error": error}

    batch = jnp.array([1.0, -1.0]), 1.0
    (loss, aux), new, state = optimizer.step_closure(closure, optimizer.init(params), params, *batch, has_aux=True)
    assert (float(loss), float(aux["error"])) == (4.0, -2.0)  # of the parameters given
    np.testing.assert_allclose(new["w"], [3.0, 0.0])  # w - 0.5 * 2 * error * x
    assert float(state.steps[0]["step"]) == 1
    loss, again, _ = optimizer.step_closure(lambda *a: closure(*a)[0], optimizer.init(params), params, *batch)
    assert float(loss) == 4.0
    assert_same_bits(again, new)


def test_step_closure_leaves_frozen_integers_alone():
    optimizer = optim.adam(lr=0.1, param_groups=[optim.ParamGroup("count", frozen=True)])
    params = {"count": jnp.array(3), "w": jnp.array([1.0])}
    _, new, _ = optimizer.step_closure(lambda p: (p["count"] * p["w"] ** 2).sum(), optimizer.init(params), params)
    np.testing.assert_allclose(new["w"], [0.9], 1e-6)
    assert new["count"].dtype == params["count"].dtype
    assert int(new["count"]) == 3


@pytest.mark.parametrize("name", RULES)
def test_an_empty_tree(name):
    optimizer = make(name)
    state = optimizer.init({})
    assert_same_bits(jax.jit(optimizer.step)({}, state, {}), ({}, state))
    assert optim.get_hyper(state)[0]["lr"] > 0


@pytest.mark.parametrize("name", [n for n in RULES if n not in (MATRICES, SPARSE)])
def test_an_empty_array_and_a_scalar_among_others(name):
    optimizer = make(name)
    vector, g = jnp.array([1.0, -2.0]), jnp.array([0.5, 0.25])
    params = {"empty": jnp.zeros((0, 3)), "scalar": jnp.array(1.0), "vector": vector}
    grads = {"empty": jnp.zeros((0, 3)), "scalar": jnp.array(0.5), "vector": g}
    new, state = optimizer.step(grads, optimizer.init(params), params)
    assert new["empty"].shape == (0, 3)
    assert new["scalar"].shape == ()
    alone, _ = optimizer.step(g, optimizer.init(vector), vector)
    np.testing.assert_array_equal(new["vector"], alone)
    if name != "adafactor":  # the size of its step depends on the whole array
        np.testing.assert_allclose(new["scalar"], alone[0], 1e-6)
    again, _ = optimizer.step(grads, state, new)
    assert np.isfinite(again["scalar"])
    assert again["scalar"] != new["scalar"]


def test_python_numbers_are_parameters_and_gradients():
    optimizer = optim.sgd(lr=0.5)
    params, state = {"w": 1.0}, optimizer.init({"w": 1.0})
    for step in (optimizer.step, jax.jit(optimizer.step)):
        new, _ = step({"w": 4.0}, state, params)
        assert float(new["w"]) == -1.0
    updates, _ = optimizer.update({"w": 4.0}, state, params)
    assert float(updates["w"]) == -2.0


@pytest.mark.parametrize("name", [n for n in RULES if n not in REAL_ONLY])
def test_every_parameter_keeps_its_dtype(name):
    optimizer = make(name)
    dtypes = {"bf16": jnp.bfloat16, "c64": jnp.complex64, "f16": jnp.float16, "f32": jnp.float32}
    params = {key: jnp.ones(3, dtype) for key, dtype in dtypes.items()}
    new, state = jax.eval_shape(optimizer.step, params, optimizer.init(params), params)
    assert {key: p.dtype for key, p in new.items()} == dtypes
    assert {key: {x.dtype for x in jax.tree.leaves(slot(state, key))} for key in params} == {
        key: {np.dtype(dtype)} if jax.tree.leaves(slot(state, key)) else set() for key, dtype in dtypes.items()
    }

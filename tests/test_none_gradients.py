"""A gradient of None skips its parameter; a gradient of zero does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from tests.helpers import (
    RULES,
    SPARSE,
    CountTraces,
    assert_close,
    assert_same_bits,
    jitted,
    make,
    make_grads,
    make_params,
    slot,
    to_dense,
)

NONE = {"bias": None, "kernel": None}
PATTERN = [(), ("bias", "kernel"), ("bias",), ()]  # which gradients are None at each step


def grads_at(name, step):
    return {k: None if k in PATTERN[step] else g for k, g in make_grads(name, step).items()}


@pytest.mark.parametrize("name", RULES)
def test_no_gradient_at_all_changes_nothing(name):
    optimizer = make(name)
    params = make_params(name)
    params, state = optimizer.step(make_grads(name, 0), optimizer.init(params), params)
    assert_same_bits(jitted(name)(NONE, state, params), (params, state))
    updates, after = optimizer.update(NONE, state, params)
    assert_same_bits(updates, jax.tree.map(jnp.zeros_like, params))
    assert_same_bits(after, state)


@pytest.mark.parametrize("name", RULES)
def test_some_gradients_of_none_as_in_torch(name):
    pytest.importorskip("torch")
    from tests.oracle import Torch, options

    optimizer = make(name)
    params = make_params(name)
    settings = options({"ns_steps": 1} if name == "muon" else {})
    oracle = Torch(name, [np.asarray(p) for p in params.values()], [[0, 1]], [settings], sparse=name == SPARSE)
    state = optimizer.init(params)
    for at in range(len(PATTERN)):
        grads = grads_at(name, at)
        before = params
        params, state = optimizer.step(grads, state, params)
        oracle.step([None if g is None else to_dense(g) for g in grads.values()])
        for index, key in enumerate(params):
            np.testing.assert_allclose(params[key], oracle.values(index)[""], 2e-5, 2e-6)
            assert (key in PATTERN[at]) == bool((params[key] == before[key]).all())
    np.testing.assert_array_equal(state.steps[0]["step"], [2, 3])


@pytest.mark.parametrize("name", RULES)
def test_a_skipped_parameter_keeps_its_state_and_the_others_theirs(name):
    optimizer = make(name)
    params = make_params(name)
    grads = make_grads(name, 0)
    step = optimizer.step
    params, state = step(grads, optimizer.init(params), params)
    some, some_state = step({**grads, "bias": None}, state, params)
    every, every_state = step(grads, state, params)
    assert_same_bits((some["bias"], slot(some_state, "bias")), (params["bias"], slot(state, "bias")))
    assert_close((some["kernel"], slot(some_state, "kernel")), (every["kernel"], slot(every_state, "kernel")))
    for value, before, after in zip(*(jax.tree.leaves(s.steps) for s in (some_state, state, every_state)), strict=True):
        np.testing.assert_array_equal(value, [before, after])  # bias, kernel


def test_groups_count_their_steps_apart():
    optimizer = optim.adam(param_groups=[optim.ParamGroup("bias")])
    params = make_params("adam")
    _, state = optimizer.step({**make_grads("adam", 0), "bias": None}, optimizer.init(params), params)
    assert [steps["step"].shape for steps in state.steps] == [(), ()]
    assert [int(steps["step"]) for steps in state.steps] == [1, 0]


def test_a_pattern_of_none_is_a_trace_of_its_own_and_no_more():
    optimizer = optim.adam()
    params = make_params("adam")
    state = optimizer.init(params)
    step = CountTraces(optimizer.step)
    for at in (0, 0, 1, 1, 2, 2, 2):  # the counter becomes a vector at the first 2: one trace more
        params, state = step(grads_at("adam", at), state, params)
    assert step.traces == 4


@pytest.mark.parametrize(
    ("name", "options"), [("sgd", {"momentum": 0.9}), ("adamw", {}), ("sgd", {"weight_decay": 0.1})]
)
def test_a_zero_gradient_steps(name, options):
    optimizer = optim.optimizers[name](**options)
    params = make_params(name)
    params, state = optimizer.step(make_grads(name, 0), optimizer.init(params), params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    after, new_state = optimizer.step(zeros, state, params)
    assert float(new_state.steps[0]["step"]) == 2
    assert all((after[key] != params[key]).all() for key in params)


def test_set_to_none_false_inside_scan_equals_a_python_loop_with_none():
    optimizer = optim.sgd(lr=0.1, momentum=0.9)
    params = make_params("sgd")
    state = optimizer.init(params)
    batches = jnp.linspace(0.1, 0.8, 8).reshape(4, 2)  # four steps of two micro-batches; below 1, so that no
    # rounding grows: scan and a step of its own do not round alike

    def loss(params, x):
        return sum(jnp.sin(x * p).sum() for p in params.values())

    backward = jax.jit(jax.grad(loss))

    def body(carry, micro_batches):
        params, state, grads = carry
        grads = optim.zero_grad(grads, set_to_none=False)
        for x in micro_batches:
            grads = optim.accumulate_grad(grads, jax.grad(loss)(params, x))
        params, state = optimizer.step(grads, state, params)
        return (params, state, grads), None

    scanned, _ = jax.jit(lambda *carry: jax.lax.scan(body, carry, batches))(params, state, params)
    grads = params
    for micro_batches in batches:
        grads = optim.zero_grad(grads)
        assert jax.tree.leaves(grads) == []
        for x in micro_batches:
            grads = optim.accumulate_grad(grads, backward(params, x))
        params, state = optimizer.step(grads, state, params)
    assert_close(scanned, (params, state, grads))

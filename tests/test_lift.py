"""An optimizer under jit, scan, vmap and grad."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from tests.helpers import (
    MATRICES,
    RULES,
    SPARSE,
    assert_close,
    assert_same_bits,
    assert_same_types,
    jitted,
    make,
    make_grads,
    make_params,
    run,
    run_in_process,
)

STEPS = 4


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def item(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


@pytest.mark.parametrize("name", RULES)
def test_jit_equals_eager(name):
    optimizer = make(name)
    params = make_params(name)
    state = optimizer.init(params)
    eager = run(optimizer.step, name, params, state, STEPS)
    assert_same_bits(jax.jit(optimizer.init)(params), state)
    assert_close(run(jitted(name), name, params, state, STEPS), eager)
    assert all(jnp.any(eager[0][key] != params[key]) for key in params)


def scan_and_loop(name):
    """The same steps by `lax.scan` and by a Python loop over a jitted step."""
    optimizer = make(name)
    params = make_params(name)
    state = optimizer.init(params)
    grads = [make_grads(name, seed) for seed in range(STEPS)]
    structure = jax.tree.structure(grads[0])  # stacked by leaves: rows of sparse arrays are not a sparse array

    @jax.jit
    def scan(params, state, leaves):
        def body(carry, leaves):
            return optimizer.step(structure.unflatten(leaves), carry[1], carry[0]), None

        return jax.lax.scan(body, (params, state), leaves)[0]

    looped = run(jitted(name), name, params, state, STEPS)
    return scan(params, state, stack([jax.tree.leaves(g) for g in grads])), looped


@pytest.mark.parametrize("name", RULES)
def test_scan_equals_a_python_loop(name):
    assert_close(*scan_and_loop(name), rtol=1e-6, atol=1e-7)  # the last bit depends on what XLA fuses


def test_scan_equals_a_python_loop_bit_for_bit_where_nothing_is_contracted():
    run_in_process(scan_bits, "--xla_cpu_max_isa=AVX --xla_disable_hlo_passes=algsimp")


def scan_bits():
    for name in ("adam", "sgd", "nadam", "rprop"):
        if name in RULES:
            assert_same_bits(*scan_and_loop(name))


@pytest.mark.parametrize("name", RULES)
def test_vmap_over_models_and_learning_rates_equals_a_loop(name):
    optimizer = make(name)
    models = [make_params(name, seed) for seed in range(3)]
    lrs = jnp.array([0.01, 0.02, 0.04])
    grads = [make_grads(name, 10 + seed) for seed in range(3)]
    structure = jax.tree.structure(grads[0])

    def two_steps(params, lr, leaves):
        state = optim.set_hyper(optimizer.init(params), lr=lr)
        for _ in range(2):
            params, state = optimizer.step(structure.unflatten(leaves), state, params)
        return params, state

    leaves = [jax.tree.leaves(g) for g in grads]
    together = jax.jit(jax.vmap(two_steps))(stack(models), lrs, stack(leaves))
    for index in range(3):
        assert_close(item(together, index), two_steps(models[index], lrs[index], leaves[index]))


def test_the_second_derivative_by_the_learning_rate_is_its_closed_form():
    optimizer, first = optim.sgd(lr=0.1), jnp.array([2.0])

    def after_two_steps(lr):
        params, state = first, optim.set_hyper(optimizer.init(first), lr=lr)
        for _ in range(2):
            params, state = optimizer.step(params, state, params)  # params * (1 - lr)
        return (params**2).sum()

    for derivative in (jax.grad(jax.grad(after_two_steps)), jax.hessian(after_two_steps)):
        assert_close(derivative(jnp.float32(0.1)), jnp.float32(4 * 12 * 0.9**2), 1e-6)


def test_grad_through_a_step_of_sgd_is_its_closed_form():
    # loss = |p|^2 / 2, so that p' = (1 - lr) p
    optimizer = optim.sgd(lr=0.3)
    params = jnp.array([3.0, -1.0, 2.0])

    def loss(p):
        return (p * p).sum() / 2

    def after(p, lr):
        state = optim.set_hyper(optimizer.init(p), lr=lr)
        return loss(optimizer.step(jax.grad(loss)(p), state, p)[0])

    by_params, by_lr = jax.jit(jax.grad(after, argnums=(0, 1)))(params, 0.3)
    np.testing.assert_allclose(by_params, 0.7**2 * params, 1e-6)
    np.testing.assert_allclose(by_lr, -0.7 * 14.0, 1e-6)


@pytest.mark.parametrize("name", RULES)
def test_grad_through_a_step_equals_finite_differences(name):
    with jax.enable_x64(True):
        optimizer = make(name)
        params = make_params(name, dtype=np.float64)
        state = optimizer.init(params)
        state = state._replace(  # a third step, with no root of 0
            steps=({**state.steps[0], "step": jnp.float32(2)},), slots=jax.tree.map(lambda x: x + 0.3, state.slots)
        )
        direction = make_params(name, 7, np.float64)

        def after(along, lr):
            at = jax.tree.map(lambda p, d: p + along * d, params, direction)
            grads = make_grads(name, 3, np.float64)
            if name != SPARSE:  # a gradient that depends on the parameters
                grads = jax.tree.map(lambda g, p: g + p * p, grads, at)
            new, _ = optimizer.step(grads, optim.set_hyper(state, lr=lr), at)
            return sum(jnp.sin(p).sum() for p in new.values())

        value_and_slopes = jax.jit(jax.value_and_grad(after, argnums=(0, 1)))
        lr, h = 0.02, 1e-6
        _, slopes = value_and_slopes(0.0, lr)
        by_params = (value_and_slopes(h, lr)[0] - value_and_slopes(-h, lr)[0]) / (2 * h)
        by_lr = (value_and_slopes(0.0, lr + h)[0] - value_and_slopes(0.0, lr - h)[0]) / (2 * h)
        if name != MATRICES:  # its orthogonalisation is in bfloat16, too coarse to difference
            np.testing.assert_allclose(slopes[0], by_params, 1e-6, 1e-8)
            assert abs(by_params) > 1e-3
        np.testing.assert_allclose(slopes[1], by_lr, 1e-6, 1e-8)
        assert (abs(by_lr) > 1e-3) == (name not in ("rprop", "asgd"))  # these two use the lr of an earlier step


@pytest.mark.parametrize("name", RULES)
def test_no_retrace_when_lr_changes(name):
    params = make_params(name)
    state = make(name).init(params)
    step, grads = jitted(name), make_grads(name, 0)
    step(grads, state, params)
    traces = step.traces
    for lr in (None, 0.5, 1, np.float32(0.1), np.float64(0.1), jnp.float32(0.1), None):
        state = state if lr is None else optim.set_hyper(state, lr=lr)
        params, state = step(grads, state, params)
    assert step.traces == traces


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_traced_learning_rate_makes_an_optimizer(name):
    params = make_params(name)
    grads = make_grads(name, 0)

    @jax.jit
    def step(lr):
        optimizer = make(name, lr=lr)
        return optimizer.step(grads, optimizer.init(params), params)[0]

    plain = make(name, lr=0.25)
    assert_close(step(0.25), plain.step(grads, plain.init(params), params)[0])


@pytest.mark.parametrize("name", RULES)
def test_leaks_no_tracer_and_promotes_no_dtype(name):
    optimizer = make(name)
    params = make_params(name)
    state = optimizer.init(params)
    with jax.checking_leaks(), jax.numpy_dtype_promotion("strict"):
        new = jax.eval_shape(optimizer.step, make_grads(name, 0), state, params)
    assert_same_types(new, (params, state))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop"])
def test_a_step_of_one_array_is_eight_kernels_at_most(name):
    """More of them XLA hands to threads on a CPU (its ThunkExecutor), which takes longer than a small step."""
    optimizer, p = optim.optimizers[name](), jnp.ones(1000)
    step = jax.jit(lambda p, state, g: optimizer.step(g, state, p), donate_argnums=(0, 1))
    text = step.lower(p, optimizer.init(p), p).compile().as_text() or ""
    kernels = re.findall(r" = \S+ (?!parameter|constant|tuple|bitcast)[\w-]+\(", text[text.index("\nENTRY") :])
    assert 0 < len(kernels) <= 8


def test_a_mesh_of_explicit_axes():
    run_in_process(steps_on_explicit_axes, "--xla_force_host_platform_device_count=2")


def steps_on_explicit_axes():
    """On two devices, by rows and by columns: the same as on one, and where it was."""
    mesh = jax.make_mesh((2,), ("half",), axis_types=(jax.sharding.AxisType.Explicit,))
    for name in set(RULES) - {MATRICES, SPARSE}:
        optimizer = make(name)
        params, grads = (tree["kernel"][:, :2] for tree in (make_params(name), make_grads(name, 0)))
        expected = optimizer.step(grads, optimizer.init(params), params)
        for spec in (("half", None), (None, "half")):
            sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
            p, g = jax.device_put((params, grads), sharding)
            new = optimizer.step(g, optimizer.init(p), p)
            assert_close(new, expected)
            assert new[0].sharding == sharding


@pytest.mark.parametrize("name", RULES)
def test_float64_parameters_with_x64_off(name):
    with jax.enable_x64(True):
        params, grads = make_params(name, dtype=np.float64), make_grads(name, 0, np.float64)
    found = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            optimizer = make(name)
            found.append(optimizer.step(grads, optimizer.init(params), params))
    assert_same_bits(*found)

"""every_k against torch's loop: backward in every call, step and zero_grad in every k-th."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_port as optim
from tests.helpers import (
    CountTraces,
    assert_close,
    assert_same_bits,
    assert_same_types,
    make_grads,
    make_params,
    run_in_process,
)

PARAMS = make_params("adam")
CALLS = 7


def every_k(optimizer: optim.Optimizer, k: int, mean: bool = False) -> Any:
    """Any, for an Optimizer's state is known as an OptState to a type checker, and this one's is an EveryKState."""
    return optim.every_k(optimizer, k, mean)


def accumulated(name, k, patterns, mean=False):
    """torch's recipe with this library's other functions: what every_k has to equal, call by call."""
    optimizer = optim.optimizers[name](lr=0.1)
    params, state, grads = PARAMS, optimizer.init(PARAMS), None
    found = []
    for i, pattern in enumerate(patterns):
        grads = optim.accumulate_grad(grads, gradient(i, pattern))
        if (i + 1) % k == 0:
            if mean:
                grads = jax.tree.map(lambda g: g / k, grads)
            params, state = optimizer.step(grads, state, params)
            grads = None
        found.append((params, state))
    return found


def gradient(i, pattern):
    return {key: g if key in pattern else None for key, g in make_grads("adam", i).items()}


ALL = [("bias", "kernel")] * CALLS


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_is_the_loop_in_torch(k, mean):
    torch = pytest.importorskip("torch")
    theirs = {key: torch.nn.Parameter(torch.from_numpy(np.array(p))) for key, p in PARAMS.items()}
    torch_optimizer = torch.optim.Adam(theirs.values(), lr=0.1)
    optimizer = every_k(optim.adam(lr=0.1), k, mean)
    params, state = PARAMS, optimizer.init(PARAMS)
    step = CountTraces(optimizer.step)
    for i in range(CALLS):
        before = params
        params, state = step(gradient(i, ALL[0]), state, params)
        for key, g in gradient(i, ALL[0]).items():
            (theirs[key] * torch.from_numpy(np.array(g)) / (k if mean else 1)).sum().backward()
        if (i + 1) % k == 0:
            torch_optimizer.step()
            torch_optimizer.zero_grad()
        else:
            assert_same_bits(params, before)
        assert int(state.calls) == (i + 1) % k
        for key, p in params.items():
            np.testing.assert_allclose(p, theirs[key].detach().numpy(), 1e-5, 1e-6)
    assert step.traces == 1


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize(
    "patterns",
    [
        [("kernel",)] * 4,
        [("bias", "kernel"), ("kernel",), ("kernel",), ("kernel",)],
        [(), ("bias",), (), ()],
        [("bias",), ("kernel",), ("kernel",), ("bias",)],
        [("bias",), (), ("kernel",), ()],
    ],
)
def test_none_gradients(name, patterns):
    """Whoever had a gradient in one of the calls steps, and nobody else."""
    optimizer = every_k(optim.optimizers[name](lr=0.1), 2)
    jit = jax.jit(optimizer.step)
    eager = traced = (PARAMS, optimizer.init(PARAMS))
    for i, (pattern, (params, state)) in enumerate(zip(patterns, accumulated(name, 2, patterns), strict=True)):
        grads = gradient(i, pattern)
        eager = optimizer.step(grads, eager[1], eager[0])
        traced = jit(grads, traced[1], traced[0])
        for one in (eager, traced):
            assert_close(one[0], params)
            assert_close(one[1].state.slots, state.slots)
            for key, at in (("bias", 0), ("kernel", 1)):
                counts = (np.broadcast_to(s.steps[0]["step"], 2)[at] for s in (one[1].state, state))
                assert len(set(map(float, counts))) == 1, key


def test_update_is_zero_in_between():
    optimizer = every_k(optim.adam(lr=0.1), 2)
    params = {**PARAMS, "bias": PARAMS["bias"].at[0].set(jnp.inf)}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    updates, state = update(make_grads("adam", 0), state, params)
    assert_same_bits(updates, jax.tree.map(jnp.zeros_like, params))
    updates, _ = update(make_grads("adam", 1), state, params)
    stepped, _ = optimizer.step(make_grads("adam", 1), state, params)
    assert_close(PARAMS["kernel"] + updates["kernel"], stepped["kernel"])
    with pytest.raises(ValueError, match="update needs the parameters"):
        optimizer.update(updates, state)


def test_in_scan_and_chain_with_a_scheduler():
    """The scheduler goes on where the optimizer has stepped; everything stays float64 where it was."""
    optimizer = every_k(optim.sgd(lr=0.1, momentum=0.9), 2)
    scheduler = optim.lr_scheduler.exponential_lr(gamma=0.5)
    start = PARAMS, *scheduler.init(optimizer.init(PARAMS))[::-1]

    def body(carry, g):
        params, state, sched = carry
        params, state = optimizer.step(jax.tree.map(lambda p: g * p, params), state, params)
        moved = scheduler.step(sched, state)
        with jax.enable_x64(True):
            sched, state = jax.tree.map(lambda n, o: jnp.where(state.calls == 0, n, o), moved, (sched, state))
        return (params, state, sched), None

    end, _ = jax.jit(lambda c: jax.lax.scan(body, c, jnp.linspace(-1, 1, 6)))(start)
    assert_same_types(end, start)
    assert optim.get_hyper(end[1])[0]["lr"] == 0.1 * 0.5**3
    changed = optim.set_hyper(end[1], lr=1.0)
    assert optim.get_hyper(changed)[0]["lr"] == 1.0
    chained = optax.chain(optax.clip(1.0), optimizer)
    _, state = jax.jit(chained.update)(make_grads("adam", 0), chained.init(PARAMS), PARAMS)
    assert optim.get_hyper(state)[0]["lr"] == 0.1


def test_closure_donation_and_a_restored_state():
    optimizer = every_k(optim.adam(lr=0.1), 2)

    def loss(params, x):
        return sum(((p - x) ** 2).sum() for p in params.values())

    params, state = PARAMS, optimizer.init(PARAMS)
    value, params, state = optimizer.step_closure(loss, state, params, 1.0)
    assert value == loss(PARAMS, 1.0)
    back = jax.device_get(state)
    assert_same_bits(back, state)
    step = jax.jit(lambda params, state: optimizer.step(PARAMS, state, params), donate_argnums=(0, 1))
    expected = optimizer.step(PARAMS, state, params)
    assert_close(step(jax.tree.map(jnp.copy, params), back), expected)


def test_in_an_nnx_optimizer():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = every_k(optim.adam(lr=0.1), 2)
    state, nnx_optimizer = optimizer.init(params), nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    for i in range(2):
        grads = {key: make_grads("adam", i)[key] for key in params}
        boxed = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(boxed, grads)
        nnx_optimizer.update(model, boxed)
        params, state = optimizer.step(grads, state, params)
    assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)
    assert optim.get_hyper(nnx_optimizer.opt_state) == optim.get_hyper(state)


def test_groups_and_integers():
    """Frozen integers with the float0 that jax.grad gives for them, and two groups."""
    params = {"w": jnp.ones(2), "b": jnp.ones(2), "n": jnp.arange(3)}
    groups = [optim.ParamGroup("n", frozen=True), optim.ParamGroup("b", lr=0.5)]
    optimizer = every_k(optim.sgd(lr=0.25, param_groups=groups), 2)
    state = optimizer.init(params)
    step = jax.jit(optimizer.step)
    grads = {"w": jnp.ones(2), "b": jnp.ones(2), "n": np.zeros(3, jax.dtypes.float0)}
    for _ in range(2):
        params, state = step(grads, state, params)
    assert_same_bits(params, {"w": jnp.full(2, 0.5), "b": jnp.zeros(2), "n": jnp.arange(3)})


def test_errors():
    with pytest.raises(ValueError, match="k must be an integer of at least 1, not 0"):
        every_k(optim.sgd(), 0)
    with pytest.raises(TypeError, match=r"every_k.* needs an optimizer, .* not sgd, a function"):
        optim.every_k(optim.sgd, 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="lbfgs and nonlinear_cg need the loss itself"):
        optim.every_k(optim.lbfgs(), 2)
    optimizer = every_k(optim.sgd(), 2)
    state = optimizer.init(PARAMS)
    with pytest.raises(TypeError, match="expected the EveryKState that init returned, got a OptState"):
        optimizer.step(PARAMS, optim.sgd().init(PARAMS), PARAMS)
    with pytest.raises(TypeError, match="adds up no sparse gradients"):
        optimizer.step(make_grads("sparse_adam", 0), state, PARAMS)
    with pytest.raises(TypeError, match=r"the gradient of .bias. is bfloat16\[3\], its parameter float32\[3\]"):
        optimizer.step(jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS), state, PARAMS)
    with pytest.raises(ValueError, match=r"the gradient of .bias. is float32\[1\]"):
        optimizer.step({**PARAMS, "bias": jnp.ones(1)}, state, PARAMS)
    with pytest.raises(ValueError, match="key"):
        optimizer.step({"bias": jnp.ones(3)}, state, PARAMS)


def sharded_step():
    """On two devices: parameters and state by rows, the batch's gradient on both; the same as on one."""
    assert len(jax.devices()) == 2
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    params = {"kernel": PARAMS["kernel"]}
    optimizer, scaler = every_k(optim.adam(lr=0.1), 2), optim.GradScaler(init_scale=4.0)
    average = optim.swa_utils.averaged_model()

    def step(grads, params, state, scaling, averaged):
        grads, found_inf = scaler.unscale(scaling, grads)
        grads, norm = optim.clip_grad_norm(grads, 1.0)
        params, state, _ = scaler.step(optimizer, scaling, grads, state, params, found_inf)
        return params, state, scaler.update(scaling, found_inf), average.update(averaged, params), norm

    def two(params):
        carry = params, optimizer.init(params), scaler.init(), average.init(params), jnp.zeros(())
        for i in range(2):
            carry = jax.jit(step)({"kernel": make_grads("adam", i)["kernel"]}, *carry[:-1])
        return carry

    there, here = two(jax.device_put(params, rows)), two(params)
    assert_close(jax.device_get(there), jax.device_get(here))
    moved = (there[0], there[1].grads, there[1].state.slots, there[3].params)
    assert {x.sharding.spec for x in jax.tree.leaves(moved)} == {PartitionSpec("rows")}
    assert optim.get_hyper(there[1])[0]["lr"] == 0.1


def test_on_two_devices():
    run_in_process(sharded_step, "--xla_force_host_platform_device_count=2")


def test_nothing_is_computed_in_between():
    optimizer = every_k(optim.sgd(momentum=0.9), 2)
    jaxpr = jax.make_jaxpr(optimizer.step)(PARAMS, optimizer.init(PARAMS), PARAMS)
    names = [equation.primitive.name for equation in jaxpr.jaxpr.eqns]
    assert names.count("cond") == 1
    assert not {"jit", "pjit"} & set(names)  # of the lift's steps of a leaf

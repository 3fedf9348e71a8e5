"""Reading and changing live hyper-parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_port as optim
from jaxopt_port.lr_scheduler import constant_lr
from jaxopt_port.number import to_numpy
from tests.helpers import (
    RULES,
    CountTraces,
    assert_same_bits,
    make,
    make_grads,
    make_params,
    run,
    run_in_process,
)

PARAMS = make_params("adam")
GRADS = make_grads("adam", 0)
GROUPS = [optim.ParamGroup("bias", lr=0.2)]


def lrs(state):
    return [group["lr"] for group in optim.get_hyper(state)]


@pytest.mark.parametrize("name", RULES)
def test_set_hyper_equals_an_optimizer_made_with_the_value(name):
    params = make_params(name)
    changed, made = make(name), make(name, lr=0.07)
    state = optim.set_hyper(changed.init(params), lr=0.07)
    assert_same_bits(state, made.init(params))
    assert_same_bits(run(changed.step, name, params, state, 1), run(made.step, name, params, made.init(params), 1))


@pytest.mark.parametrize("name", RULES)
def test_every_live_value_reads_as_it_was_given(name):
    for group in optim.get_hyper(make(name, lr=0.07, param_groups=[optim.ParamGroup(".*", lr=0.08)]).init({})):
        assert {type(x) for x in jax.tree.leaves(group)} == {float}
        again = make(name, **group).init({})
        assert optim.get_hyper(again) == [group]


def test_groups():
    state = optim.sgd(lr=0.1, param_groups=GROUPS).init(PARAMS)
    assert lrs(state) == [0.1, 0.2]
    assert lrs(optim.set_hyper(state, lr=0.3)) == [0.3, 0.3]
    assert lrs(optim.set_hyper(state, 0, lr=0.3)) == [0.3, 0.2]
    assert lrs(optim.set_hyper(state, group=1, lr=0.3)) == [0.1, 0.3]
    assert lrs(state) == [0.1, 0.2]
    for group in (2, -1):
        with pytest.raises(ValueError, match=f"group {group} does not exist: the state has groups 0 to 1"):
            optim.set_hyper(state, group=group, lr=0.3)


def test_betas():
    for given in ((0.9, 0.999), [0.9, 0.999]):
        state = optim.adam(betas=given).init(PARAMS)  # pyright: ignore[reportArgumentType]
        for new in ((0.8, 0.99), [0.8, 0.99], (jnp.float32(0.5), np.float64(0.99))):
            changed = optim.set_hyper(state, betas=new)  # pyright: ignore[reportArgumentType]
            assert optim.get_hyper(changed)[0]["betas"] == tuple(map(float, new))
        for new in (0.8, (0.8,), (0.8, 0.9, 0.99), None):
            with pytest.raises(ValueError, match=r"'betas' of group 0 must be \(a number, a number\), not"):
                optim.set_hyper(state, betas=new)  # pyright: ignore[reportArgumentType]
    for wrong, shown in (((0.1, 0.2), r"\(0.1, 0.2\)"), ("0.1", "'0.1'"), (np.ones(2), "an array of 2")):
        with pytest.raises(ValueError, match=f"'lr' of group 0 must be a number, not {shown}"):
            optim.set_hyper(state, lr=wrong)  # pyright: ignore[reportArgumentType]


def test_inside_a_chain_and_a_train_state():
    tx = optax.chain(optax.clip(1.0), optim.sgd(lr=0.1, param_groups=GROUPS))
    chained = tx.init(PARAMS)
    train_state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    for state in (chained, train_state):
        changed = optim.set_hyper(state, group=1, lr=0.5)
        assert type(changed) is type(state)
        assert lrs(changed) == [0.1, 0.5]
        assert lrs(state) == [0.1, 0.2]
    stepped = optim.set_hyper(train_state, lr=0.0).apply_gradients(grads=GRADS)
    assert_same_bits(stepped.params, PARAMS)


def test_inside_an_nnx_optimizer():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optim.adam(lr=0.1, param_groups=GROUPS), wrt=nnx.Param)
    grads = nnx.grad(lambda model: model(jnp.ones((1, 2))).sum())(model)
    optimizer.update(model, grads)
    assert lrs(optimizer.opt_state) == [0.1, 0.2]
    optimizer.opt_state = optim.set_hyper(optimizer.opt_state, lr=0.0, betas=(0.5, 0.5))
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    assert_same_bits(nnx.to_pure_dict(nnx.state(model, nnx.Param)), before)
    assert optim.get_hyper(optimizer.opt_state)[1]["betas"] == (0.5, 0.5)


def test_one_of_several_in_a_partition():
    tx = optax.partition({"a": optim.sgd(lr=0.1), "b": optim.sgd(lr=0.2)}, {"bias": "a", "kernel": "b"})
    state: Any = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"found 2: .*put the new part back.*inner_states=\{\*\*state\.inner_states"):
        optim.set_hyper(state, lr=0.0)
    part = optim.set_hyper(state.inner_states["b"], lr=0.0)
    updates: Any = tx.update(GRADS, state._replace(inner_states={**state.inner_states, "b": part}), PARAMS)[0]
    expected: Any = tx.update(GRADS, state, PARAMS)[0]
    assert_same_bits(updates, {"bias": expected["bias"], "kernel": jnp.zeros_like(PARAMS["kernel"])})


def test_stacked_states():
    optimizer, stacked = optim.adam(lr=0.1), jax.tree.map(lambda p: jnp.stack([p] * 3), PARAMS)
    state = optim.set_hyper(jax.vmap(optimizer.init)(stacked), lr=0.5, betas=(0.8, 0.9))
    assert optim.get_hyper(state)[0]["lr"] == [0.5] * 3
    assert optim.get_hyper(state)[0]["betas"] == ([0.8] * 3, [0.9] * 3)
    new, _ = jax.vmap(optimizer.step)(stacked, state, stacked)
    alone = optim.adam(lr=0.5, betas=(0.8, 0.9))
    expected, _ = jax.vmap(alone.step)(stacked, jax.vmap(alone.init)(stacked), stacked)
    assert_same_bits(new, expected)


def sharded_run():
    """On four devices: rates that change before the first step, and after, by hand and by a scheduler."""
    assert len(jax.devices()) == 4
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    params = {"w": jnp.arange(8.0)}
    optimizer, scheduler = optim.adamw(lr=0.1), constant_lr(factor=0.5, total_iters=2)

    def train(params):
        step = CountTraces(optimizer.step)
        sched, state = scheduler.init(optim.set_hyper(optimizer.init(params), eps=1e-6))
        sched, state = scheduler.step(sched, state)
        for weight_decay in (0.0, 0.1, 0.2):
            params, state = step(params, state, params)
            sched, state = scheduler.step(sched, optim.set_hyper(state, weight_decay=weight_decay))
        assert step.traces <= 2  # one, and one when the first step has brought the state to the mesh
        return params, state

    there, here, third = map(
        train, (*jax.device_put([params] * 2, [rows, None]), jax.device_put(params, jax.devices()[2]))
    )
    assert there[0]["w"].sharding.spec == PartitionSpec("rows")
    assert third[0]["w"].devices() == {jax.devices()[2]}
    for one in (there, third):
        assert_same_bits(jax.device_get(one), jax.device_get(here))
        assert one[1].param_groups[0]["lr"].parts.sharding.device_set == one[0]["w"].sharding.device_set


def test_on_four_devices():
    run_in_process(sharded_run, "--xla_force_host_platform_device_count=4")


def test_none_or_two_states():
    state = optim.sgd().init(PARAMS)
    for wrong, count in ((PARAMS, 0), ((state, state), 2)):
        for call in (optim.get_hyper, lambda wrong: optim.set_hyper(wrong, lr=0.1)):
            with pytest.raises(ValueError, match=f"expected one OptState in the state, found {count}"):
                call(wrong)
    assert lrs((state, PARAMS)) == [1e-3]
    for optimizer in (optim.sgd(), optax.chain(optim.sgd())):
        with pytest.raises(TypeError, match="this is the optimizer: pass its state"):
            optim.get_hyper(optimizer)


@pytest.mark.parametrize(
    ("name", "change"),
    [("sgd", {"nesterov": True}), ("sgd", {"momentum": 0.9}), ("adam", {"amsgrad": True}), ("adam", {"momentum": 0.9})],
)
def test_static_and_structural_options_are_refused(name, change):
    option = next(iter(change))
    message = f"'{option}' is not a live hyper-parameter of group 0: live are .*lr.*fixed when the optimizer is made"
    with pytest.raises(ValueError, match=message):
        optim.set_hyper(optim.optimizers[name]().init(PARAMS), **change)


def test_a_structural_option_that_is_on_is_live():
    optimizer = optim.sgd(lr=0.1, momentum=0.9)
    params, state = run(optimizer.step, "sgd", PARAMS, optimizer.init(PARAMS), 2)
    state = optim.set_hyper(state, momentum=0.0)
    plain = optim.sgd(lr=0.1)
    expected, _ = plain.step(GRADS, plain.init(PARAMS), params)
    assert_same_bits(optimizer.step(GRADS, state, params)[0], expected)


def test_traced_values():
    optimizer = optim.sgd(lr=0.1)
    state = optimizer.init(PARAMS)

    @jax.jit
    def warm_up(state, steps):
        lr = state.param_groups[0]["lr"]
        return optim.set_hyper(state, lr=jnp.where(steps < 3, 0.5, lr.astype(jnp.float32)))

    assert lrs(warm_up(state, 2)) == [0.5]
    assert float(warm_up(state, 2).param_groups[0]["lr"]) == 0.5
    assert lrs(warm_up(state, 4)) == [float(np.float32(0.1))]

    def body(state, lr):
        return optim.set_hyper(state, lr=lr), state.param_groups[0]["lr"]

    last, seen = jax.jit(lambda *args: jax.lax.scan(body, *args))(state, jnp.array([0.25, 0.5]))
    assert lrs(last) == [0.5]
    np.testing.assert_array_equal(to_numpy(seen), [0.1, 0.25])

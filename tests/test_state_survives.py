"""float64 scalars in a state survive what JAX does with states; what turns them to float32 is caught."""

import pickle
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import PartitionSpec

import jaxopt_port as optim
from jaxopt_port.hyper import find_state
from tests.helpers import assert_close, assert_same_bits, make_grads, make_params, run

PARAMS = make_params("adam")
GRADS = make_grads("adam", 0)


@pytest.fixture
def optimizer():
    return optim.adam(lr=0.1)


@pytest.fixture
def after_two_steps(optimizer):
    return run(jax.jit(optimizer.step), "adam", PARAMS, optimizer.init(PARAMS), 2)


def assert_exact(state):
    """Every hyper-parameter of `adam(lr=0.1)` is there to the last bit."""
    hyper = find_state(state).param_groups[0]
    assert {x.dtype for x in jax.tree.leaves(hyper)} == {np.dtype(np.float64)}
    assert optim.get_hyper(state) == [{"betas": (0.9, 0.999), "eps": 1e-8, "lr": 0.1, "weight_decay": 0.0}]


def two_updates(tx):
    """Two jitted steps as optax has them."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for seed in range(2):
        params, state = step(params, state, make_grads("adam", seed))
    return params, state


def test_chain(optimizer, after_two_steps):
    params, state = two_updates(optax.chain(optax.clip(100.0), optimizer))
    assert_exact(state)
    assert_close(params, after_two_steps[0])


def test_apply_if_finite(optimizer, after_two_steps):
    tx = optax.apply_if_finite(optimizer, max_consecutive_errors=3)
    params, state = two_updates(tx)
    assert_exact(state)
    assert_close(params, after_two_steps[0])
    updates, after = jax.jit(tx.update)(jax.tree.map(lambda g: g * jnp.nan, GRADS), state, params)
    assert_same_bits(updates, jax.tree.map(jnp.zeros_like, params))
    assert_same_bits(find_state(after), find_state(state))


def test_partition(optimizer, after_two_steps):
    tx = optax.partition({"ours": optimizer, "theirs": optax.sgd(0.1)}, {"bias": "theirs", "kernel": "ours"})
    params, state = two_updates(tx)
    assert_exact(state)
    np.testing.assert_allclose(params["kernel"], after_two_steps[0]["kernel"], 1e-5)


def test_train_state(optimizer, after_two_steps):
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=optimizer)
    step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
    for seed in range(2):
        state = step(state, make_grads("adam", seed))
    assert_exact(state)
    assert_close(state.params, after_two_steps[0])


def test_nnx_optimizer(optimizer):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    state = optimizer.init(params)
    nnx_optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    x = jnp.arange(8.0).reshape(2, 4)

    @nnx.jit
    def nnx_step(model, nnx_optimizer):
        nnx_optimizer.update(model, nnx.grad(lambda model: (model(x) ** 2).mean())(model))

    for _ in range(3):
        nnx_step(model, nnx_optimizer)
        grads = jax.grad(lambda p: ((x @ p["kernel"] + p["bias"]) ** 2).mean())(params)
        params, state = optimizer.step(grads, state, params)
    assert_exact(nnx_optimizer.opt_state)
    assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)
    assert_close(jax.tree.leaves(nnx_optimizer.opt_state), jax.tree.leaves(state))


def test_equinox(optimizer):
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda model: model(jnp.ones(2)).sum())(model)
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    new, state = step(*step(model, state))
    assert_exact(state)
    assert new(jnp.ones(2)) < model(jnp.ones(2))


def test_vmap(optimizer):
    stacked = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    states = jax.vmap(optimizer.init)(stacked)
    _, states = jax.vmap(optimizer.step)(stacked, states, stacked)
    assert_exact(jax.tree.map(lambda x: x[1], states))


def test_shard_map_and_sharded_slots(optimizer, after_two_steps):
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated, rows = PartitionSpec(), PartitionSpec("batch")

    def step(grads, state, params):
        return optimizer.step(jax.tree.map(lambda g: jax.lax.pmean(g[0], "batch"), grads), state, params)

    sharded = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(rows, replicated, replicated), out_specs=replicated))
    params, state = PARAMS, optimizer.init(PARAMS)
    for seed in range(2):
        params, state = sharded(jax.tree.map(lambda g: g[None], make_grads("adam", seed)), state, params)
    assert_exact(state)
    assert_close(params, after_two_steps[0])
    sharding = jax.sharding.NamedSharding(mesh, rows)
    slots = optimizer.init(jax.device_put(PARAMS, sharding)).slots
    assert {x.sharding for x in jax.tree.leaves(slots)} == {sharding}


def test_donation_and_device_put(optimizer):
    params, state = jax.device_put((PARAMS, optimizer.init(PARAMS)))
    step = jax.jit(optimizer.step, donate_argnums=(1, 2))
    assert_exact(run(step, "adam", jax.tree.map(jnp.array, params), state, 2)[1])


def test_control_flow(optimizer, after_two_steps):
    state = optimizer.init(PARAMS)

    def body(carry, _):
        return optimizer.step(GRADS, carry[1], carry[0]), None

    _, scanned = jax.jit(lambda *c: jax.lax.scan(body, c, length=2)[0])(PARAMS, state)
    _, looped = jax.jit(
        lambda *c: jax.lax.while_loop(lambda c: c[1].steps[0]["step"] < 2, lambda c: body(c, None)[0], c)
    )(PARAMS, state)
    _, branched = jax.jit(lambda on, *c: jax.lax.cond(on, lambda *c: body(c, None)[0], lambda *c: c, *c))(
        True, PARAMS, state
    )
    for each, steps in ((scanned, 2), (looped, 2), (branched, 1)):
        assert_exact(each)
        assert float(each.steps[0]["step"]) == steps
    rematerialised = jax.jit(jax.checkpoint(optimizer.step))(GRADS, state, PARAMS)
    assert_exact(rematerialised[1])


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")
def test_abstract_states(optimizer):
    state = jax.eval_shape(optimizer.init, PARAMS)
    assert {x.dtype for x in jax.tree.leaves(state.param_groups)} == {np.dtype(np.float64)}
    with pytest.raises(TypeError, match="enable_x64"):  # JAX takes an abstract float64 for a float32 without x64
        jax.jit(optimizer.step).lower(GRADS, state, PARAMS)
    with jax.enable_x64(True):
        lowered = jax.jit(optimizer.step).lower(GRADS, state, PARAMS)
    assert_close(
        lowered.compile()(GRADS, optimizer.init(PARAMS), PARAMS), optimizer.step(GRADS, optimizer.init(PARAMS), PARAMS)
    )


@pytest.mark.parametrize("under_x64", [False, True])
def test_orbax(after_two_steps, tmp_path, under_x64):
    saved = dict(zip(("params", "state"), after_two_steps, strict=True))
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "saved", saved)
    if under_x64:
        with jax.enable_x64(True):
            back = checkpointer.restore(tmp_path / "saved", saved, ocp.checkpoint_utils.construct_restore_args(saved))
    else:
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        back = checkpointer.restore(tmp_path / "saved", saved, as_numpy)
    back = optim.restore(back)
    assert_same_bits(back, saved)
    assert_exact(back)


def test_a_dict_of_flax_comes_back_before_it_is_a_state_again(after_two_steps):
    _, state = after_two_steps
    written = flax.serialization.msgpack_serialize(jax.device_get(flax.serialization.to_state_dict(state)))
    back: Any = optim.restore(flax.serialization.msgpack_restore(written))
    assert_same_bits(flax.serialization.from_state_dict(state, back), state)


def test_what_orbax_restores_without_x64_is_refused(after_two_steps, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", after_two_steps[1])
        checkpointer.wait_until_finished()
        back = checkpointer.restore(tmp_path / "saved", after_two_steps[1])
        as_numpy = checkpointer.restore(tmp_path / "saved", jax.tree.map(np.asarray, after_two_steps[1]))
        without_target = checkpointer.restore(tmp_path / "saved")
    with pytest.raises(TypeError, match=r"came back as float32.*enable_x64.*restore's docstring"):
        optim.restore(back)
    with pytest.raises(TypeError, match=r"came back as float32.*enable_x64.*restore's docstring"):
        optim.restore({"params": PARAMS, "state": without_target})
    assert_same_bits(optim.restore(as_numpy), after_two_steps[1])


def test_a_pickle_of_jax_arrays_needs_x64(after_two_steps):
    data = pickle.dumps(after_two_steps[1])
    with pytest.raises(TypeError, match=r"came back as float32.*restore's docstring"):
        optim.restore(pickle.loads(data))
    with jax.enable_x64(True):
        assert_same_bits(pickle.loads(data), after_two_steps[1])


ROUND_TRIPS = {
    "flax.serialization": lambda state: flax.serialization.from_bytes(state, flax.serialization.to_bytes(state)),
    "pickle": lambda state: pickle.loads(pickle.dumps(jax.device_get(state))),
    "device_get": jax.device_get,
    "numpy": lambda state: jax.tree.map(np.asarray, state),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trips_through_restore_and_is_caught_without(name, optimizer, after_two_steps):
    params, state = after_two_steps
    back = ROUND_TRIPS[name](state)
    with pytest.raises(TypeError, match=r"is float32, not float64.*jaxopt_port\.restore"):
        jax.jit(optimizer.step)(GRADS, back, params)
    restored = optim.restore(back)
    assert_same_bits(restored, state)
    assert_exact(restored)
    step = jax.jit(optimizer.step)
    assert_same_bits(step(GRADS, restored, params), step(GRADS, state, params))


def test_a_train_state_is_restored_whole(optimizer):
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=optax.chain(optimizer)).apply_gradients(grads=GRADS)
    back = optim.restore(flax.serialization.from_bytes(state, flax.serialization.to_bytes(state)))
    assert_exact(back)
    assert_exact(jax.jit(lambda state: state.apply_gradients(grads=GRADS))(back))


def test_float32_hyper_parameters_are_refused(optimizer):
    state = optimizer.init(PARAMS)
    hyper = {**state.param_groups[0], "lr": jnp.float32(0.1)}
    wrong = state._replace(param_groups=(hyper,))
    for step in (optimizer.step, jax.jit(optimizer.step), optimizer.update):
        with pytest.raises(TypeError, match=r"'lr' of parameter group 0 is float32.*set_hyper"):
            step(GRADS, wrong, PARAMS)
    with pytest.raises(TypeError, match="'lr' came back as float32"):
        optim.restore(wrong)
    with pytest.raises(TypeError, match="'lr' of parameter group 0 is float, not float64"):
        optimizer.step(GRADS, state._replace(param_groups=({**hyper, "lr": 0.1},)), PARAMS)


def test_an_optimizer_pickles(optimizer):
    back = pickle.loads(pickle.dumps(optim.adam(lr=0.1, param_groups=[optim.ParamGroup("bias", lr=0.2)])))
    assert [group["lr"] for group in optim.get_hyper(back.init(PARAMS))] == [0.1, 0.2]

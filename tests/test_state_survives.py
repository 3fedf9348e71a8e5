"""A state survives what JAX's programs do with states, every bit of its numbers, with x64 off."""

import io
import pickle
from typing import Any

import equinox as eqx
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
from tests.helpers import RULES, assert_close, assert_same_bits, make, make_grads, make_params, run

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
    assert {x.dtype for x in jax.tree.leaves(hyper)} == {np.dtype(np.float32)}
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


@pytest.mark.parametrize("name", RULES)
def test_abstract_states(name):
    optimizer, params, grads = make(name), make_params(name), make_grads(name, 0)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    abstract = jax.eval_shape(optimizer.init, params)
    assert jax.tree.leaves(optimizer.init(shapes)) == jax.tree.leaves(abstract)
    assert jax.tree.structure(optimizer.init(shapes)) == jax.tree.structure(abstract)
    compiled = jax.jit(optimizer.step).lower(grads, abstract, shapes).compile()
    state = optimizer.init(params)
    assert_same_bits(compiled(grads, state, params), jax.jit(optimizer.step)(grads, state, params))


def test_an_abstract_state_is_sharded_as_its_parameters():
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec("batch"))
    state = optim.adafactor().init({"w": jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=sharding)})
    assert [x.sharding for x in jax.tree.leaves(state.slots)] == [None, None]  # row_var, col_var: of other shapes
    state = optim.adam().init({"w": jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=sharding)})
    assert [x.sharding for x in jax.tree.leaves(state.slots)] == [sharding, sharding]


def orbax_standard(state, abstract, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "standard", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "standard", abstract)


def orbax_pytree(state, abstract, path):
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(path / "pytree", state)
    return checkpointer.restore(path / "pytree", item=abstract)


def orbax_manager(state, abstract, path):
    with ocp.CheckpointManager(path / "manager") as manager:
        manager.save(0, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        return manager.restore(0, args=ocp.args.StandardRestore(abstract))


def flax_bytes(state, abstract, path):
    empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    return flax.serialization.from_bytes(empty, flax.serialization.to_bytes(state))


def flax_dict(state, abstract, path):
    written = flax.serialization.msgpack_serialize(jax.device_get(flax.serialization.to_state_dict(state)))
    back: Any = flax.serialization.msgpack_restore(written)
    return flax.serialization.from_state_dict(state, back)


def equinox_leaves(state, abstract, path):
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, state)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, abstract)


def x64_switched_between(state, abstract, path):
    data = pickle.dumps(state)
    with jax.enable_x64(True):
        return pickle.loads(data)


WAYS = {
    "Orbax StandardCheckpointer": orbax_standard,
    "Orbax PyTreeCheckpointer": orbax_pytree,
    "Orbax CheckpointManager": orbax_manager,
    "flax bytes": flax_bytes,
    "flax dict": flax_dict,
    "equinox": equinox_leaves,
    "pickle": lambda state, abstract, path: pickle.loads(pickle.dumps(state)),
    "pickle of NumPy": lambda state, abstract, path: pickle.loads(pickle.dumps(jax.device_get(state))),
    "x64 switched between": x64_switched_between,
    "NumPy": lambda state, abstract, path: jax.tree.map(np.asarray, state),
    "NumPy and back": lambda state, abstract, path: jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state),
    "a mean": lambda state, abstract, path: jax.tree.map(lambda x: x if x.dtype == bool else 0.5 * (x + x), state),
    "selected": lambda state, abstract, path: jax.tree.map(lambda x: jnp.where(True, x, jnp.zeros_like(x)), state),
}


@pytest.mark.parametrize("name", RULES)
def test_a_state_comes_back_from_everywhere(name, tmp_path):
    optimizer, params = make(name, lr=0.1), make_params(name)
    step = jax.jit(optimizer.step)
    params, state = step(make_grads(name, 0), optimizer.init(params), params)
    abstract = jax.eval_shape(optimizer.init, make_params(name))
    expected = step(make_grads(name, 1), state, params)
    for way, through in WAYS.items():
        back = through(state, abstract, tmp_path)
        assert optim.get_hyper(back) == optim.get_hyper(state), way
        assert jax.tree.structure(back) == jax.tree.structure(state), way
        assert_same_bits(step(make_grads(name, 1), back, params), expected)


def test_optax_wrappers_that_select_or_reset_a_state(optimizer, after_two_steps):
    twice = optax.MultiSteps(optimizer, 2).gradient_transformation()
    params, state = PARAMS, twice.init(PARAMS)
    for seed in (0, 0, 1, 1):
        updates, state = twice.update(make_grads("adam", seed), state, params)
        params = optax.apply_updates(params, updates)
    assert_exact(state)
    assert_close(params, after_two_steps[0])

    slow_and_fast = optax.LookaheadParams.init_synced(PARAMS)
    look = optax.lookahead(optimizer, 2, 0.5, reset_state=True)
    state = look.init(slow_and_fast)
    for seed in range(2):
        updates, state = look.update(make_grads("adam", seed), state, slow_and_fast)
        slow_and_fast = optax.apply_updates(slow_and_fast, updates)
    assert_exact(state)
    assert float(find_state(state).steps[0]["step"]) == 0

    sam = optax.contrib.sam(optimizer, optax.sgd(0.05), sync_period=2)
    state = sam.init(PARAMS)
    for seed in range(2):
        _, state = sam.update(make_grads("adam", seed), state, PARAMS)
    assert_exact(state)


@pytest.mark.parametrize("wrong", [0.1, jnp.float32(0.1), jnp.zeros(4)], ids=repr)
def test_what_is_no_number_is_refused(optimizer, wrong):
    state = optimizer.init(PARAMS)
    changed = state._replace(param_groups=({**state.param_groups[0], "lr": wrong},))
    for step in (optimizer.step, jax.jit(optimizer.step), optimizer.update):
        with pytest.raises(TypeError, match=r"'lr' of parameter group 0 is .*set_hyper"):
            step(GRADS, changed, PARAMS)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, state)
    with pytest.raises(TypeError, match=r"cast state\.slots alone"):
        optimizer.step(GRADS, half, PARAMS)


@pytest.mark.parametrize("name", RULES)
def test_moments_in_bfloat16(name):
    """The one way to a state in 16 bits: give init the parameters in them."""
    optimizer, params = make(name), make_params(name)
    state = optimizer.init(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    new, after = jax.jit(optimizer.step)(make_grads(name, 0), state, params)
    assert {x.dtype for x in jax.tree.leaves(after.slots)} <= {np.dtype(jnp.bfloat16)}
    expected, full = optimizer.step(make_grads(name, 0), optimizer.init(params), params)
    assert {x.dtype for x in jax.tree.leaves(new)} == {np.dtype(np.float32)}
    assert_close(new, expected)
    for half, whole in zip(jax.tree.leaves(after.slots), jax.tree.leaves(full.slots), strict=True):
        np.testing.assert_array_equal(half, whole.astype(jnp.bfloat16))


def test_an_optimizer_pickles(optimizer):
    back = pickle.loads(pickle.dumps(optim.adam(lr=0.1, param_groups=[optim.ParamGroup("bias", lr=0.2)])))
    assert [group["lr"] for group in optim.get_hyper(back.init(PARAMS))] == [0.1, 0.2]

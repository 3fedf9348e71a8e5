"""Slots are trees like the parameters, a donated step copies nothing, a None costs little: over all optimizers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.sparse import BCOO

import jaxopt_port as optim
from tests.helpers import MATRICES, RULES, SPARSE, assert_same_bits, make, make_grads, make_params

TAKE_GRADIENTS = [name for name in RULES if name != SPARSE]
GROUPED = [optim.ParamGroup("bias", lr=0.5)]
SPECS = {"bias": "of bias", "kernel": "of kernel"}


@pytest.mark.parametrize("groups", [(), GROUPED, [optim.ParamGroup("bias", frozen=True)]], ids=["one", "two", "frozen"])
@pytest.mark.parametrize("name", RULES)
def test_map_params_with_a_tree_of_specs(name, groups):
    """How public training code gives optimizer states their shardings."""
    optimizer, params = make(name, param_groups=groups), make_params(name)
    state: Any = optimizer.init(params)
    mapped: Any = optax.tree.map_params(
        optimizer,  # pyright: ignore[reportArgumentType]
        lambda x, spec: None if x is None else spec,
        state,
        SPECS,
        transform_non_params=lambda x: "other",
        is_leaf=lambda x: x is None,
    )
    for field, specs in zip(state.slots, mapped.slots, strict=True):
        assert specs == (None if field is None else {k: None if x is None else SPECS[k] for k, x in field.items()})
    assert set(jax.tree.leaves((mapped.steps, mapped.param_groups))) == {"other"}


@pytest.mark.parametrize("name", RULES)
def test_optax_tree_get(name):
    state: Any = optax.chain(optax.clip(1.0), make(name, lr=0.25)).init(make_params(name))
    assert float(optax.tree.get(state, "lr")) == 0.25
    (own,) = (x for x in state if isinstance(x, optim.OptState))
    for field in own.slots._fields:
        found = optax.tree.get(state, field)
        assert jax.tree.structure(found) == jax.tree.structure(getattr(own.slots, field))


def test_a_slot_that_no_group_has_is_none():
    params = make_params("adam")
    assert optim.adam().init(params).slots.max_exp_avg_sq is None
    slots = optim.adam(param_groups=[optim.ParamGroup("bias", amsgrad=True)]).init(params).slots
    assert slots.max_exp_avg_sq["kernel"] is None
    assert slots.max_exp_avg_sq["bias"].shape == params["bias"].shape


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", sorted(optim.optimizers))
def test_inject_hyperparams_is_refused_with_the_remedy(name, jit):
    """It would report one rate and step with another."""
    closure = name in ("lbfgs", "nonlinear_cg")
    params, grads = make_params(name), make_grads("adam" if closure else name, 0)
    tx = optax.inject_hyperparams(optim.optimizers[name])(lr=optax.linear_schedule(1.0, 0.5, 10))
    extra: Any = {"value": 1.0, "grad": grads, "value_fn": lambda p: p["kernel"].sum()} if closure else {}
    wrap = jax.jit if jit else lambda f: f

    def run():
        state = wrap(tx.init)(params)
        for _ in range(2):
            _, state = wrap(lambda g, s, p: tx.update(g, s, p, **extra))(grads, state, params)

    with pytest.raises((TypeError, ValueError), match=r"set_hyper|static_args|should be an integer"):
        run()


def test_an_array_as_rate_is_right_where_it_is_the_states():
    params, grads = make_params("adam"), make_grads("adam", 0)

    def run(lr):
        optimizer = optim.sgd(lr=lr)
        return optimizer.step(grads, optimizer.init(params), params)[0]

    swept = jax.jit(jax.vmap(run))(jnp.array([0.5, 0.25]))
    assert_same_bits(jax.tree.map(lambda x: x[1], swept), run(0.25))
    state = optim.sgd(lr=0.25).init(params)
    assert_same_bits(optim.sgd(lr=jnp.float32(0.25)).step(grads, state, params)[0], run(0.25))
    with pytest.raises(TypeError, match=r"lr was given as an array .*set_hyper\(state, lr="):
        optim.sgd(lr=jnp.float32(0.5)).step(grads, state, params)


RICH: dict[str, list[dict[str, Any]]] = {
    "sgd": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}],
    "rmsprop": [{}, {"momentum": 0.9}, {"centered": True, "momentum": 0.9, "weight_decay": 0.1}],
    "adam": [{}, {"amsgrad": True, "weight_decay": 0.1}],
    "nadam": [{}, {"decoupled_weight_decay": True, "weight_decay": 0.1}],
}
TEMPORARY = {
    "adadelta": 1.05,
    "adafactor": None,
    "muon": None,
}  # of the parameters' bytes; the two work on whole arrays


@pytest.mark.parametrize("name", [name for name in TAKE_GRADIENTS if TEMPORARY.get(name, 0) is not None])
def test_a_donated_step_copies_nothing(name):
    """Adadelta's one array beside: its two outputs need each other's old values."""
    for options in RICH.get(name, [{}]):
        optimizer = make(name, **options)
        params = [jnp.ones((64, 256)) for _ in range(4)]
        step = jax.jit(lambda p, s, g, step=optimizer.step: step(g, s, p), donate_argnums=(0, 1))
        used: Any = step.lower(params, optimizer.init(params), params).compile().memory_analysis()
        size = sum(p.nbytes for p in params)
        assert used.temp_size_in_bytes <= TEMPORARY.get(name, 0.05) * size, options


@pytest.mark.parametrize("name", [name for name in TAKE_GRADIENTS if name != MATRICES])
def test_every_k_with_none_holds_one_step(name):
    params = {f"p{i:02}": jnp.ones(3) for i in range(20)}
    grads = {key: None if i else p for i, (key, p) in enumerate(params.items())}

    def size(optimizer):
        compiled = jax.jit(optimizer.step).lower(grads, optimizer.init(params), params).compile()
        return len(compiled.as_text() or "")

    assert size(optim.every_k(make(name), 2)) < 5 * size(make(name))


def test_frozen_gradients_are_not_looked_at():
    params = {"table": jnp.zeros((5, 2)), "rest": jnp.ones(3)}
    sparse = BCOO((jnp.ones((1, 2)), jnp.array([[1]])), shape=(5, 2))
    rows = optim.sparse_adam(param_groups=[optim.ParamGroup("rest", frozen=True)])
    rest = optim.adam(param_groups=[optim.ParamGroup("table", frozen=True)])
    grads = {"table": sparse, "rest": jnp.ones(3)}
    new, _ = rows.step(grads, rows.init(params), params)
    new, _ = rest.step(grads, rest.init(new), new)
    alone = optim.sparse_adam()
    assert_same_bits(new["table"], alone.step(sparse, alone.init(params["table"]), params["table"])[0])
    assert (new["rest"] < 1).all()


@pytest.mark.parametrize("name", TAKE_GRADIENTS)
def test_numpy_float64_is_one_dtype_eager_and_under_jit(name):
    params = {"w": np.array([[1.0, 2.0]])}
    grads = {"w": np.array([[0.3, 0.7]])}
    optimizer = make(name)
    eager = optimizer.step(grads, optimizer.init(params), params)
    jitted = jax.jit(optimizer.step)(grads, jax.jit(optimizer.init)(params), params)
    assert {x.dtype for x in jax.tree.leaves((eager, jitted)) if x.ndim == 2} == {np.dtype(np.float32)}

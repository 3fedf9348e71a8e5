"""Reading and changing live hyper-parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxopt_port as optim
from tests.helpers import RULES, assert_same_bits, make, make_grads, make_params, run

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
    with pytest.raises(ValueError, match=r"'lr' of group 0 must be a number, not \(0.1, 0.2\)"):
        optim.set_hyper(state, lr=(0.1, 0.2))


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


def test_none_or_two_states():
    state = optim.sgd().init(PARAMS)
    for wrong, count in ((PARAMS, 0), ((state, state), 2)):
        for call in (optim.get_hyper, lambda wrong: optim.set_hyper(wrong, lr=0.1)):
            with pytest.raises(ValueError, match=f"expected one OptState in the state, found {count}"):
                call(wrong)
    assert lrs((state, PARAMS)) == [1e-3]


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
    assert warm_up(state, 2).param_groups[0]["lr"].dtype == np.float64
    assert lrs(warm_up(state, 4)) == [float(np.float32(0.1))]

    def body(state, lr):
        return optim.set_hyper(state, lr=lr), state.param_groups[0]["lr"]

    last, seen = jax.jit(lambda *args: jax.lax.scan(body, *args))(state, jnp.array([0.25, 0.5]))
    assert lrs(last) == [0.5]
    np.testing.assert_array_equal(seen, [0.1, 0.25])

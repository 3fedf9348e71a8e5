"""Parameter groups: who belongs to which, what may differ, and paths that are the same at init and at update."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxopt_port as optim
from jaxopt_port.param_groups import assign, leaf_paths
from tests.helpers import RULES, assert_same_bits, make, make_grads, make_params, slot

PARAMS = {
    "decoder": {"bias": jnp.ones(2), "kernel": jnp.ones((3, 2))},
    "encoder": [{"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))}],
    "scale": jnp.ones(()),
}
PATHS = ["decoder/bias", "decoder/kernel", "encoder/0/bias", "encoder/0/kernel", "scale"]
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def members(*which):
    return assign([optim.ParamGroup(each) for each in which], PARAMS)


def test_paths():
    assert leaf_paths(PARAMS) == PATHS
    assert leaf_paths(jnp.ones(1)) == [""]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (r".*/bias", [1, 0, 1, 0, 0]),
        (r".*(bias|scale)", [1, 0, 1, 0, 1]),
        (r"decoder/.*", [1, 1, 0, 0, 0]),
        (r"encoder/\d/kernel", [0, 0, 0, 1, 0]),
        (["scale", "decoder/bias"], [1, 0, 0, 0, 1]),
        (lambda path, leaf: leaf.ndim >= 2, [0, 1, 0, 1, 0]),
        (lambda path, leaf: path.startswith("encoder") and leaf.size == 3, [0, 0, 1, 0, 0]),
    ],
)
def test_pattern_list_and_predicate(which, expected):
    assert members(which) == expected


def test_a_pattern_matches_the_whole_path_and_a_listed_path_is_no_pattern():
    for which in ("bias", "decoder", ["decoder/.*"]):
        with pytest.raises(ValueError, match="ParamGroup"):
            members(which)


def test_first_match_wins_and_group_0_may_be_empty():
    assert members(r".*/bias", r"decoder/.*", ".*") == [1, 2, 1, 3, 3]
    optimizer = optim.adam(param_groups=[optim.ParamGroup(".*", lr=0.5)])
    new, state = optimizer.step(GRADS, optimizer.init(PARAMS), PARAMS)
    assert [group["lr"] for group in optim.get_hyper(state)] == [1e-3, 0.5]
    assert [float(steps["step"]) for steps in state.steps] == [0, 1]
    np.testing.assert_allclose(new["scale"], 0.5, 1e-6)


def test_a_group_that_loses_all_it_matches_to_others_is_an_error():
    blocks = {f"block_{i}": jnp.ones(1) for i in range(11)}
    groups = [optim.ParamGroup(f"block_{i}.*") for i in (1, 10)]
    with pytest.raises(ValueError, match=r"more than one parameter group: .*_10.* gets none, since 'block_10' .*_1\."):
        assign(groups, blocks)
    assert assign(groups[::-1], blocks) == [0, 2, 1, *[0] * 8]  # in the order block_0, block_1, block_10, block_2, ...


def test_drop_frozen_leaves_the_gradients_that_torch_would_have():
    torch = pytest.importorskip("torch")
    parameters = {
        name: torch.nn.Parameter(torch.ones(2), requires_grad=name != "backbone") for name in ("backbone", "head")
    }
    (sum(10 * p.sum() for p in parameters.values()) + parameters["head"].square().sum()).backward()
    theirs = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)

    params = {name: jnp.ones(2) for name in parameters}
    frozen = optim.sgd(param_groups=[optim.ParamGroup("backbone", frozen=True)])
    grads = jax.grad(lambda p: 10 * (p["backbone"] + p["head"]).sum() + (p["head"] ** 2).sum())(params)
    for optimizer in (frozen, optim.every_k(frozen, 2)):
        clipped, norm = optim.clip_grad_norm(optim.drop_frozen(optimizer, grads, params), 1.0)
        np.testing.assert_allclose(norm, theirs.item(), rtol=1e-6)
        np.testing.assert_allclose(clipped["head"], parameters["head"].grad, rtol=1e-6)
        assert clipped["backbone"] is None


@pytest.mark.parametrize("name", RULES)
def test_a_group_steps_as_an_optimizer_with_its_options(name):
    params, grads = make_params(name), make_grads(name, 0)
    grouped = make(name, param_groups=[optim.ParamGroup("bias", lr=0.5)])
    new, state = grouped.step(grads, grouped.init(params), params)
    for key, options in (("bias", {"lr": 0.5}), ("kernel", {})):
        alone = make(name, **options)
        p = {key: params[key]}
        expected, expected_state = alone.step({key: grads[key]}, alone.init(p), p)
        assert_same_bits((new[key], slot(state, key)), (expected[key], slot(expected_state, key)))


def test_flags_and_structural_options_differ_by_group():
    optimizer = optim.adam(lr=0.1, param_groups=[optim.ParamGroup(".*/bias", amsgrad=True, maximize=True)])
    new, state = optimizer.step(GRADS, optimizer.init(PARAMS), PARAMS)
    assert state.slots.max_exp_avg_sq["decoder"]["bias"] is not None
    assert state.slots.max_exp_avg_sq["decoder"]["kernel"] is None
    np.testing.assert_allclose(new["decoder"]["bias"], [1.1, 1.1], 1e-6)
    np.testing.assert_allclose(new["scale"], 0.9, 1e-6)
    sgd = optim.sgd(param_groups=[optim.ParamGroup("scale", momentum=0.9)])
    state = sgd.init(PARAMS)
    assert state.slots.momentum_buffer["scale"] is not None
    assert state.slots.momentum_buffer["decoder"]["bias"] is None
    assert optim.sgd().init(PARAMS).slots.momentum_buffer is None
    assert ["momentum" in group for group in state.param_groups] == [False, True]


@pytest.mark.parametrize("name", RULES)
def test_frozen_parameters_do_not_step_and_have_no_slots(name):
    params, grads = make_params(name), make_grads(name, 0)
    optimizer = make(name, param_groups=[optim.ParamGroup("bias", frozen=True)])
    state = optimizer.init(params)
    assert not any(slot(state, "bias"))
    new, after = optimizer.step(grads, state, params)
    assert_same_bits(new["bias"], params["bias"])
    assert not any(slot(after, "bias"))
    assert after.steps[1] == {}
    assert (new["kernel"] != params["kernel"]).any()
    updates, _ = optimizer.update(grads, state, params)
    assert_same_bits(updates["bias"], jnp.zeros_like(params["bias"]))


class Seen:
    """A predicate that remembers the paths it was asked about."""

    def __init__(self):
        self.paths: set[str] = set()

    def __call__(self, path, leaf):
        self.paths.add(path)
        return path.endswith("bias")


def check_same_paths(step, expected):
    """`step(optimizer)` inits and updates; returns the state."""
    seen = Seen()
    state = step(optim.sgd(lr=0.5, momentum=0.9, param_groups=[optim.ParamGroup(seen, lr=0.0)]), seen)
    assert seen.paths == expected
    return state


def test_paths_of_nnx_states():
    class Model(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(0))])
            self.norm = nnx.LayerNorm(2, rngs=nnx.Rngs(0))

    def loss(model):
        return (model.norm(model.layers[0](jnp.array([[1.0, 3.0]]))) ** 3).sum()

    expected = {"layers/0/bias", "layers/0/kernel", "norm/bias", "norm/scale"}

    def by_state(optimizer, seen):
        model = Model()
        params = nnx.state(model, nnx.Param)
        state = optimizer.init(params)
        assert seen.paths == expected
        seen.paths.clear()
        new, after = optimizer.step(nnx.grad(loss)(model), state, params)
        assert jax.tree.structure((new, after)) == jax.tree.structure((params, state))
        nnx.update(model, new)
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    def by_optimizer(optimizer, seen):
        model = Model()
        nnx_optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
        assert seen.paths == expected
        seen.paths.clear()
        nnx_optimizer.update(model, nnx.grad(loss)(model))
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    one, other = check_same_paths(by_state, expected), check_same_paths(by_optimizer, expected)
    np.testing.assert_allclose(one["norm"]["scale"], other["norm"]["scale"], 1e-6)
    assert (one["norm"]["scale"] != 1).all()
    assert (one["norm"]["bias"] == 0).all()  # lr=0.0


@pytest.mark.parametrize("boxed", [nn.with_partitioning, nn.with_logical_partitioning])
def test_paths_of_partitioned_linen_parameters(boxed):
    model = nn.Dense(
        3,
        kernel_init=boxed(nn.initializers.ones, ("in", "out")),
        bias_init=boxed(nn.initializers.ones, ("out",)),
    )
    params = model.init(jax.random.key(0), jnp.ones((1, 2)))["params"]

    def step(optimizer, seen):
        state = optimizer.init(params)
        seen.paths.clear()
        grads = jax.tree.map(jnp.ones_like, params)
        new, after = jax.jit(optimizer.step)(grads, state, params)
        assert jax.tree.structure((new, after)) == jax.tree.structure((params, state))
        np.testing.assert_array_equal(new["kernel"].unbox(), np.full((2, 3), 0.5))
        np.testing.assert_array_equal(new["bias"].unbox(), np.ones(3))
        return after

    state = check_same_paths(step, {"bias", "kernel"})
    specs = nn.get_partition_spec(state.slots)
    assert specs.momentum_buffer["kernel"] == jax.sharding.PartitionSpec("in", "out")


def test_two_parameters_of_one_path_are_refused_where_groups_tell_them_apart():
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(ValueError, match="two parameters have the path 'a/b'"):
        optim.sgd(param_groups=[optim.ParamGroup("a/b", lr=0.1)]).init(params)
    assert optim.sgd(momentum=0.9).init(params).slots.momentum_buffer["a"]["b"].shape == (2,)


def test_a_field_named_value_is_a_path_of_its_own():
    class Attention(NamedTuple):
        query: jax.Array
        key: jax.Array
        value: jax.Array

    assert leaf_paths({"attention": Attention(*jnp.ones(3))}) == [
        "attention/query",
        "attention/key",
        "attention/value",
    ]


@pytest.mark.parametrize("which", ["no/such", ["scale", "no/such"], lambda path, leaf: False])
def test_a_group_that_matches_nothing_is_an_error(which):
    optimizer = optim.adam(param_groups=[optim.ParamGroup(which, lr=0.5)])
    message = r"ParamGroup\(.*lr=0\.5\).*" + (r"no/such" if isinstance(which, list) else "matches no parameter")
    for call in (
        optimizer.init,
        lambda p: optimizer.step(p, optim.adam(param_groups=[optim.ParamGroup(".*")]).init(p), p),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call(PARAMS)
        assert all(path in str(error.value) for path in PATHS)


def test_a_group_that_matches_nothing_where_there_are_no_leaves():
    optimizer = optim.adam(param_groups=[optim.ParamGroup("kernel", lr=0.5)])
    tx = optax.partition({"on": optimizer, "off": optimizer}, {"kernel": "on"})
    params = {"kernel": jnp.ones(2)}
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)  # "off" has no leaves
    np.testing.assert_allclose(updates["kernel"], [-0.5, -0.5], 1e-6)


def test_bad_groups():
    with pytest.raises(ValueError, match=r"unknown options: learning_rate\. Known are: lr, betas, eps"):
        optim.adam(param_groups=[optim.ParamGroup(".*", learning_rate=0.1)])
    with pytest.raises(ValueError, match=r"pattern '\*bias' is not a regular expression"):
        optim.ParamGroup("*bias")
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        optim.adam(param_groups=[optim.ParamGroup(".*", lr=-1.0)])
    with pytest.raises(TypeError, match=r"must be a list of ParamGroups.*'params'.*ParamGroup\(which, lr="):
        optim.adam(param_groups=[{"params": ["w"], "lr": 0.1}])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="must be a list of ParamGroups"):
        optim.adam(param_groups=optim.ParamGroup(".*"))  # pyright: ignore[reportArgumentType]

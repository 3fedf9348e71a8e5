"""The state of L-BFGS and nonlinear conjugate gradients: of which parameters and options it is, and where."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_port as optim
from tests.helpers import assert_same_types, run_in_process

FACTORIES = [optim.lbfgs, partial(optim.lbfgs, line_search_fn="strong_wolfe"), optim.nonlinear_cg]
PARAMS = {"b": jnp.ones(6), "w": jnp.ones((2, 3))}


def bowl(params: Any) -> jax.Array:
    return sum((jnp.abs(x - 2.0) ** 2).sum() for x in jax.tree.leaves(params))  # pyright: ignore


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"b": jnp.ones(6), "w": jnp.ones((3, 2))}, r"'w' is float32\[2, 3\] in it, and would be float32\[3, 2\]"),
        ({"b": jnp.ones(7), "w": jnp.ones((2, 3))}, r"'b' is float32\[6\] in it, and would be float32\[7\]"),
        ({"b": jnp.ones(6), "w": jnp.ones((2, 3), complex)}, r"'w' is float32\[2, 3\] in it, and would be complex64"),
        ({"b": jnp.ones(6), "c": jnp.ones((2, 3))}, "it has 'w'; it lacks 'c'"),
        ({"b": jnp.ones(6)}, "it has 'w'"),
        ([jnp.ones(6), jnp.ones((2, 3))], "it has 'b', 'w'; it lacks '0', '1'"),
    ],
)
def test_a_state_of_other_parameters(factory: Callable[..., optim.Optimizer], params: Any, message: str):
    optimizer = factory()
    with pytest.raises(ValueError, match=f"the state is of other parameters: {message}"):
        optimizer.step_closure(bowl, optimizer.init(PARAMS), params)
    with pytest.raises(ValueError, match=message):  # in a trace as well
        jax.jit(lambda state, params: optimizer.step_closure(bowl, state, params))(optimizer.init(PARAMS), params)
    with pytest.raises(ValueError, match=message):
        optimizer.update(params, optimizer.init(PARAMS), params, value=1.0, value_fn=bowl)


@pytest.mark.parametrize(
    ("of", "used", "message"),
    [
        ({"history_size": 5}, {"history_size": 7}, "of history_size=5, this optimizer has history_size=7"),
        ({}, {"line_search_fn": "strong_wolfe"}, "of line_search_fn=None, this optimizer has 'strong_wolfe'"),
        ({"line_search_fn": "strong_wolfe"}, {}, "of line_search_fn='strong_wolfe', this optimizer has None"),
    ],
)
def test_a_state_of_other_options(of: dict[str, Any], used: dict[str, Any], message: str):
    state = optim.lbfgs(**of).init(PARAMS)
    with pytest.raises(ValueError, match=f"the state is {message}"):
        optim.lbfgs(**used).step_closure(bowl, state, PARAMS)


def test_a_state_of_another_optimizer():
    for state in (optim.adam().init(PARAMS), optim.nonlinear_cg().init(PARAMS)):
        with pytest.raises(ValueError, match="another optimizer's"):
            optim.lbfgs().step_closure(bowl, state, PARAMS)
    with pytest.raises(TypeError, match="expected the OptState that init returned, got a dict"):
        optim.lbfgs().step_closure(bowl, {}, PARAMS)  # pyright: ignore


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex128"])
def test_the_direction_is_like_the_parameters_and_the_abstract_state_like_the_state(factory: Any, dtype: str):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        optimizer, params = factory(max_iter=2), jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    state = optimizer.init(params)
    assert_same_types(jax.eval_shape(optimizer.init, params), state)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert_same_types(optimizer.init(shapes), state)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(optimizer.init(shapes)))
    _, after, stepped = optimizer.step_closure(bowl, state, params)
    assert_same_types((after, stepped), (params, state))
    expected = "float32" if dtype == "bfloat16" else dtype
    assert {(x.shape, x.dtype.name) for x in jax.tree.leaves(stepped.slots.d)} == {((6,), expected), ((2, 3), expected)}


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_rate_that_a_step_would_not_use(factory: Callable[..., optim.Optimizer]):
    def step(lr: Any) -> Any:
        return factory(lr=lr).step_closure(bowl, factory(lr=1.0).init(PARAMS), PARAMS)

    with pytest.raises(TypeError, match="lr was given as an array to an optimizer that has not made this state"):
        jax.jit(step)(0.5)


def test_the_direction_is_minus_the_gradient_at_first():
    grads = jax.grad(bowl)(PARAMS)
    for factory in FACTORIES:
        optimizer = factory(max_iter=1)
        _, _, state = optimizer.step_closure(bowl, optimizer.init(PARAMS), PARAMS)
        jax.tree.map(lambda d, g: np.testing.assert_array_equal(d, -g), state.slots.d, grads)


def test_what_optax_calls():
    optimizer = optim.lbfgs()
    assert "jax.value_and_grad(value_fn)" in (optimizer.update.__doc__ or "")
    with pytest.raises(ValueError, match="not found in the state"):
        optax.value_and_grad_from_state(bowl)(PARAMS, state=optimizer.init(PARAMS))


def sharded():
    """Histories are divided as the parameters are, and stay so; a loss of each device's own is refused."""
    rows, cols = PartitionSpec("x"), PartitionSpec(None, "y")
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind,) * 2)
        whole = {"v": jnp.linspace(1, 2, 8), "w": jnp.linspace(-1, 1, 16).reshape(4, 4)}
        params = jax.device_put(whole, {"v": NamedSharding(mesh, rows), "w": NamedSharding(mesh, cols)})
        for factory in FACTORIES:
            optimizer = factory(max_iter=3)
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
            state, abstract = optimizer.init(params), optimizer.init(shapes)
            step = jax.jit(lambda state, params, optimizer=optimizer: optimizer.step_closure(bowl, state, params))
            _, new, after = step(state, params)
            for slots in (state.slots, abstract.slots, after.slots):
                for name in ("old_dirs", "old_stps", "prev_flat_grad"):
                    if hasattr(slots, name):
                        x = getattr(slots, name)
                        assert x.sharding.shard_shape(x.shape)[-1] == 24 // 4, (kind, name, x.sharding)
                if slots is not after.slots or kind == AxisType.Explicit:  # on automatic axes XLA chooses
                    assert slots.d["w"].sharding.is_equivalent_to(params["w"].sharding, 2)
                assert len(slots.t.sharding.device_set) == 4
            _, expected, _ = optimizer.step_closure(bowl, optimizer.init(whole), whole)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), b, 1e-5), new, expected)

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    optimizer, params, batch = optim.lbfgs(max_iter=3), jnp.ones(3), jnp.arange(8.0)

    def loss(params: Any, batch: Any) -> Any:
        return ((params.sum() - batch) ** 2).mean()

    def shard(closure: Any, call: Any) -> Any:
        specs = {"in_specs": (PartitionSpec(), PartitionSpec("data")), "out_specs": PartitionSpec()}
        return jax.jit(jax.shard_map(partial(call, closure), mesh=mesh, **specs))(params, batch)

    def step_(closure: Any, params: Any, batch: Any) -> Any:
        return optimizer.step_closure(closure, optimizer.init(params), params, batch)[1]

    def run(closure: Any, params: Any, batch: Any) -> Any:
        return optim.minimize(optimizer, closure, params, 3, args=(batch,)).params

    for call in (step_, run):
        mean = shard(lambda params, batch: jax.lax.pmean(loss(params, batch), "data"), call)
        np.testing.assert_allclose(mean, call(loss, params, batch), 1e-5)
        with pytest.raises(ValueError, match=r"lbfgs was called under shard_map .* along the mesh axes data: .*pmean"):
            shard(loss, call)


def test_on_four_devices():
    run_in_process(sharded, "--xla_force_host_platform_device_count=4")


def test_on_the_device_of_the_parameters():
    device = jax.devices()[0]
    state = optim.lbfgs().init(jax.device_put(PARAMS, device))
    assert all(x.committed and x.devices() == {device} for x in jax.tree.leaves(state))
    assert not any(x.committed for x in jax.tree.leaves(optim.lbfgs().init(PARAMS)))

"""Explicit meshes: parameters, gradients and state divided in different ways, on two devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_port as optim
from tests.helpers import RULES, SPARSE, assert_close, make, make_grads, run_in_process

FLAGS = "--xla_force_host_platform_device_count=2"


def every_rule():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("data",), ()))
    rng = np.random.default_rng(0)
    params, grads = ({"w": jnp.asarray(rng.normal(size=(4, 3)).astype(np.float32))} for _ in range(2))

    def put(tree, sharding):
        divided = {4: sharding}
        return jax.tree.map(lambda x: jax.device_put(x, divided.get(x.shape[0] if x.ndim else 0, whole)), tree)

    for name in RULES:
        if name == SPARSE:
            continue
        optimizer = make(name)
        state = optimizer.init(params)
        expected = optimizer.step(grads, state, params)
        with jax.set_mesh(mesh):
            for of_params, of_grads, of_state in ((whole, whole, rows), (rows, whole, rows), (rows, rows, rows)):
                slots = state._replace(slots=put(state.slots, of_state))
                p, g = put(params, of_params), put(grads, of_grads)
                new, after = jax.jit(optimizer.step)(g, slots, p)
                assert_close((new, after), expected, 1e-4, 1e-5)
                assert jax.typeof(new["w"]).sharding.spec == jax.typeof(p["w"]).sharding.spec, name
                for x, old in zip(jax.tree.leaves(after.slots), jax.tree.leaves(slots.slots), strict=True):
                    assert jax.typeof(x).sharding.spec == jax.typeof(old).sharding.spec, name


def sparse_rows_are_refused():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    table = jnp.zeros((4, 3))
    with jax.set_mesh(mesh):
        optimizer = optim.sparse_adam()
        with pytest.raises(ValueError, match="mesh with explicit axes"):
            jax.jit(optimizer.step)(make_grads(SPARSE, 0)["kernel"], optimizer.init(table), table)


def one_compilation():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    for spec in ((), ("data",)):
        params = jax.device_put({"w": jnp.ones((4, 3))}, NamedSharding(mesh, PartitionSpec(*spec)))
        optimizer = optim.adamw()
        step, state = jax.jit(optimizer.step), optimizer.init(params)
        for _ in range(3):
            params, state = step(params, state, params)
        assert step._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("check", [every_rule, sparse_rows_are_refused, one_compilation], ids=lambda f: f.__name__)
def test_on_two_devices(check):
    run_in_process(check, FLAGS)

"""Whole runs: any optimizer, the reason for stopping, the evaluations spent, under vmap and on several devices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_port as optim
from tests.helpers import CountTraces, run_in_process

OPTIMIZERS = {
    "lbfgs": optim.lbfgs(line_search_fn="strong_wolfe"),
    "lbfgs, fixed step": optim.lbfgs(lr=0.5),
    "nonlinear_cg": optim.nonlinear_cg(),
    "sgd": optim.sgd(lr=0.25),
    "optax sgd": optax.sgd(0.25),
}


def bowl(x: jax.Array, center: Any = 0.5) -> jax.Array:
    off = x - center
    return jnp.sum(off * off + 0.1 * off * off * off * off)


CALLS: list[None] = []  # one for every evaluation of `counted`


@jax.custom_vjp
def counted(x: jax.Array, center: jax.Array) -> jax.Array:
    return bowl(x, center)


def _forward(x: jax.Array, center: jax.Array) -> tuple[jax.Array, jax.Array]:
    jax.debug.callback(lambda: CALLS.append(None))
    return jax.value_and_grad(bowl)(x, center)


counted.defvjp(_forward, lambda grad, cotangent: (cotangent * grad, jnp.zeros(())))


def run(
    name: str, start: Any, center: float = 0.5, steps: int = 200, tolerance: float = 1e-3, fun: Any = bowl
) -> optim.Minimized:
    return optim.minimize(OPTIMIZERS[name], fun, jnp.asarray(start), steps, tolerance, args=(center,))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_finds_the_minimum_and_counts_what_it_spends(name: str):
    CALLS.clear()
    end = run(name, [2.0, -1.0], fun=counted)
    jax.effects_barrier()
    assert int(end.evaluations) == len(CALLS)
    assert int(end.stop) == optim.Stop.GRADIENT
    np.testing.assert_allclose(end.params, 0.5, atol=1e-3)
    assert 0 < int(end.steps) < int(end.evaluations)
    np.testing.assert_allclose(end.grad_norm, jnp.abs(jax.grad(bowl)(end.params)).max(), 1e-4, 1e-7)
    np.testing.assert_allclose(end.loss, bowl(end.params), 1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_why_it_stops(name: str):
    def stop(start: float, center: float, steps: int, tolerance: float) -> tuple[optim.Stop, int, int]:
        end = run(name, [start] * 2, center, steps, tolerance)
        return optim.Stop(int(end.stop)), int(end.steps), int(end.evaluations)

    assert stop(0.5, 0.5, 100, 1e-3) == (optim.Stop.GRADIENT, 0, 1)  # a zero gradient at the start
    assert stop(3.0, 0.5, 0, 1e-3) == (optim.Stop.MAX_ITER, 0, 1)
    assert stop(3.0, 0.5, 2, 0.0)[:2] == (optim.Stop.MAX_ITER, 2)
    reason, _, evaluations = stop(3.0, np.nan, 1_000_000, 1e-3)  # ends all the same
    assert reason == optim.Stop.NON_FINITE
    assert evaluations < 30


def test_limits_and_arguments_are_not_compiled_in():
    traced = CountTraces(
        lambda start, steps, tolerance, center: optim.minimize(
            OPTIMIZERS["sgd"], bowl, start, steps, tolerance, args=(center,)
        )
    )
    for steps, tolerance, center in ((10, 1e-3, 0.5), (20, 1e-2, 0.25)):
        traced(jnp.ones(2), steps, tolerance, center)
    assert traced.traces == 1


@pytest.mark.parametrize("name", ["lbfgs", "nonlinear_cg", "sgd"])
def test_vmap_over_starting_points(name: str):
    starts = jnp.array([[2.0, -1.0], [0.5, 0.5], [-3.0, 4.0]])
    together, alone = jax.jit(jax.vmap(partial(run, name)))(starts), [run(name, start) for start in starts]
    np.testing.assert_allclose(together.params, [end.params for end in alone], 1e-3, 1e-4)
    for field in ("stop", "steps", "evaluations"):
        assert getattr(together, field).tolist() == [int(getattr(end, field)) for end in alone]


def test_an_optax_line_search_gets_what_it_needs():
    end = optim.minimize(optax.lbfgs(), bowl, jnp.array([2.0, -1.0]), 50, 1e-3)
    assert int(end.stop) == optim.Stop.GRADIENT


def test_a_tree_of_complex_parameters():
    target = {"a": 1.0 - 2.0j, "b": 3.0}

    def fun(params: Any) -> jax.Array:
        return sum(jnp.sum(jnp.abs(params[name] - x) ** 2) for name, x in target.items())  # pyright: ignore

    params = {"a": jnp.zeros(2, jnp.complex64), "b": jnp.zeros(())}
    for name in ("lbfgs", "sgd"):
        end = optim.minimize(OPTIMIZERS[name], fun, params, 100, 1e-3)
        assert int(end.stop) == optim.Stop.GRADIENT
        for key, x in target.items():
            np.testing.assert_allclose(end.params[key], x, atol=2e-3)


def test_arguments_in_another_order():
    with pytest.raises(
        TypeError, match=r"minimize\(optimizer, fun, params\) needs an optimizer, .* not bowl, a function"
    ):
        optim.minimize(bowl, optim.lbfgs(), jnp.ones(2))  # pyright: ignore
    with pytest.raises(TypeError, match=r"needs a function \(params, \*args\) -> loss as fun, not an? \w*Array"):
        optim.minimize(optim.lbfgs(), jnp.ones(2), bowl)  # pyright: ignore


def sharded_run():
    """Parameters on two devices end where those on one do, and stay on both."""
    assert len(jax.devices()) == 2
    start = {"w": jnp.linspace(-1, 3, 12).reshape(4, 3), "v": jnp.linspace(2, 1, 8)}

    def fun(params: Any) -> jax.Array:
        return bowl(params["w"]) + bowl(params["v"], -1.0) + jnp.sum(params["w"]) * jnp.sum(params["v"]) / 100

    auto, explicit = AxisType.Auto, AxisType.Explicit
    for name, axis_type in (("lbfgs", auto), ("nonlinear_cg", auto), ("lbfgs, fixed step", explicit)):
        mesh = jax.make_mesh((2,), ("rows",), axis_types=(axis_type,))
        here = optim.minimize(OPTIMIZERS[name], fun, start, 100, 1e-3)
        with jax.set_mesh(mesh):
            rows = jax.device_put(start, NamedSharding(mesh, PartitionSpec("rows")))
            there = optim.minimize(OPTIMIZERS[name], fun, rows, 100, 1e-3)
        assert int(here.stop) == int(there.stop) == optim.Stop.GRADIENT
        assert (int(here.steps), int(here.evaluations)) == (int(there.steps), int(there.evaluations))
        for a, b in zip(jax.tree.leaves(here.params), jax.tree.leaves(there.params), strict=True):
            np.testing.assert_allclose(jax.device_get(a), jax.device_get(b), 1e-4, 1e-4)
            assert len(b.sharding.device_set) == 2


def test_on_two_devices():
    run_in_process(sharded_run, "--xla_force_host_platform_device_count=2")

"""examples/zero1.py: the numbers of a replicated run, and the collectives of the compiled program."""

import runpy
from pathlib import Path

from benchmarks.zero1 import collectives
from tests.helpers import assert_close, run_in_process

FLAGS = "--xla_force_host_platform_device_count=8"
ROOT = Path(__file__).parents[1]


def check_zero1() -> None:
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec as P

    import jaxopt_port as optim
    from examples.zero1 import AXIS, loss_fn, whole, zero1

    mesh = jax.make_mesh((8,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    keys = jax.random.split(jax.random.key(0), 4)
    first = {
        "in": {"kernel": jax.random.normal(keys[0], (5, 33)), "bias": jnp.zeros(33)},
        "out": {"kernel": jax.random.normal(keys[1], (33, 1)), "bias": jnp.zeros(1)},
    }
    batch = jax.random.normal(keys[2], (64, 5)), jax.random.normal(keys[3], (64, 1))
    groups = [optim.ParamGroup(".*/bias", lr=0.1), optim.ParamGroup("out/kernel", frozen=True)]
    plain = optim.adamw(lr=1e-2, param_groups=groups)
    expected, state = first, plain.init(first)
    for _ in range(3):
        expected, state = plain.step(jax.grad(loss_fn)(expected, batch), state, expected)
    for optimizer in (plain, optim.flat(plain)):
        init, step = zero1(loss_fn, optimizer, mesh)
        params = jax.device_put(jax.tree.map(jnp.copy, first), jax.NamedSharding(mesh, P()))  # they are donated
        divided = init(params)
        text = step.lower(params, divided, batch).compile().as_text()
        found = collectives(text, 8)
        padded = {"steps": 168 + 40 + 8, "frozen": 40}  # of 165, 33 and 1 numbers, and 33
        assert found["reduce-scatter"][1] == padded["steps"] * 4 * 7 // 8, found
        assert found["all-gather"][1] == sum(padded.values()) * 4 * 7 // 8, found
        assert found["all-reduce"] == (1, 7)  # the loss, 2 * 4 * 7 / 8 bytes
        for _ in range(3):
            params, divided, _ = step(params, divided, batch)
        assert_close(params, expected, 1e-4, 1e-6)
        for x in jax.tree.leaves(divided.slots):
            assert x.addressable_shards[0].data.size * 8 == x.size
        if optimizer is plain:
            own = whole(divided.slots.exp_avg["in"], first["in"])
            assert_close(own, state.slots.exp_avg["in"], 1e-4, 1e-6)


def test_zero1():
    run_in_process(check_zero1, FLAGS)


def test_bytes_of_what_runs_beside_others():
    """As a GPU's programs have it: the operands, then the results."""
    scatter = "  %a = ((f32[8,4]{1,0}, f32[8]{0}), (f32[4]{0}, f32[1]{0})) reduce-scatter-start(%x, %y), channel_id=1"
    gather = "  %b = (f32[4]{0}, f32[32]{0}) all-gather-start(%z), channel_id=2"
    reduce = "  %c = f32[6]{0} all-reduce-start(%w), channel_id=3"
    expected = {
        "all-reduce": (1, 2 * 24 * 7 // 8),
        "reduce-scatter": (1, 160 * 7 // 8),
        "all-gather": (1, 128 * 7 // 8),
    }
    assert collectives("\n".join((scatter, gather, reduce)), 8) == expected


def run_example() -> None:
    runpy.run_path(str(ROOT / "examples/zero1.py"), run_name="__main__")


def test_the_example_runs():
    run_in_process(run_example, FLAGS)

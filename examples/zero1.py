"""ZeRO-1 on 8 devices (virtual ones on a CPU): each keeps and steps its share of the optimizer's state.

Gradients are summed by a reduce-scatter, every device steps its share of each parameter, and an all-gather gives all
devices the new parameters: as many bytes as the all-reduce of a replicated optimizer, and an eighth of its state and
work. For any optimizer whose rule is elementwise, `optim.flat` too; groups go by paths. A norm over all gradients, to
clip by, is a sum over shares: `jnp.sqrt(jax.lax.psum(sum(jnp.vdot(g, g) for g in jax.tree.leaves(own_grads)), AXIS))`.
"""

import os

if "device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

import jaxopt_port as optim

AXIS = "data"
STATE: Any = optim.OptState(*(P(), P(AXIS), P()))  # steps, slots, param_groups: the slots are divided


def rows(tree: Any, devices: int) -> Any:
    """Every array as one row for each device, filled up with zeros."""
    return jax.tree.map(lambda x: jnp.pad(x.reshape(-1), (0, -x.size % devices)).reshape(devices, -1), tree)


def whole(shares: Any, like: Any) -> Any:
    """Arrays in the shapes of others, from all their shares in order: a slot for a checkpoint, too."""
    return jax.tree.map(lambda x, p: x.reshape(-1)[: p.size].reshape(p.shape), shares, like)


def zero1(loss_fn: Callable[..., Any], optimizer: optim.Optimizer, mesh: Any) -> tuple[Any, Any]:
    """`init(params) -> state` and `step(params, state, batch) -> (params, state, loss)`, for a mean over a batch."""
    devices = mesh.shape[AXIS]

    def own(params: Any) -> Any:
        return jax.tree.map(lambda x: x[jax.lax.axis_index(AXIS)], rows(params, devices))

    def init(params: Any) -> Any:
        return optimizer.init(own(params))

    def step(params: Any, state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        own_grads = jax.tree.map(lambda g: jax.lax.psum_scatter(g, AXIS) / devices, rows(grads, devices))
        own_params, state = optimizer.step(own_grads, state, own(params))
        return whole(jax.lax.all_gather(own_params, AXIS), params), state, jax.lax.pmean(loss, AXIS)

    # check_vma would sum the gradients of replicated parameters over all devices, as an all-reduce
    init = jax.shard_map(init, mesh=mesh, in_specs=P(), out_specs=STATE, check_vma=False)
    specs = P(), STATE, P(AXIS)
    step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(P(), STATE, P()), check_vma=False)
    return jax.jit(init), jax.jit(step, donate_argnums=(0, 1))


def loss_fn(params: Any, batch: Any) -> jax.Array:
    x, y = batch
    hidden = jax.nn.relu(x @ params["in"]["kernel"] + params["in"]["bias"])
    return jnp.mean((hidden @ params["out"]["kernel"] + params["out"]["bias"] - y) ** 2)


if __name__ == "__main__":
    mesh = jax.make_mesh((8,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "in": {"kernel": jax.random.normal(keys[0], (5, 33)) / 2, "bias": jnp.zeros(33)},
        "out": {"kernel": jax.random.normal(keys[1], (33, 1)) / 6, "bias": jnp.zeros(1)},
    }
    batch = jax.random.normal(keys[2], (64, 5)), jax.random.normal(keys[3], (64, 1))
    init, step = zero1(loss_fn, optim.adamw(lr=1e-2), mesh)
    params, state = jax.device_put(params, jax.NamedSharding(mesh, P())), init(params)
    for _ in range(20):
        params, state, loss = step(params, state, batch)
        print(f"loss {loss:.4f}")
    print(f"a device has {state.slots.exp_avg['in']['kernel'].addressable_shards[0].data.size} of 165")

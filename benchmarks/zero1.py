"""The collectives of a data-parallel AdamW step and their bytes: replicated, optax with `out_shardings`, ZeRO-1.

`python -m benchmarks.zero1 [--devices 8 256]` compiles each for so many virtual CPU devices, in a process for each
number, and prints a Markdown table. Nothing is run. The program is that of a CPU; `python -m benchmarks.gpu zero1` is
this table for GPUs, whose compiler joins the collectives of one kind. `--devices 4096` only lowers (ZeRO-1's
collectives are in the program before it is compiled, the other two's are not).
"""

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

KINDS = ("all-reduce", "reduce-scatter", "all-gather")
LAYERS, WIDTH, ROWS = 8, 256, 2  # rows of a batch on a device
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "f64": 8, "s32": 4, "pred": 1}
COMPILED_UP_TO = 1024


def payloads(hlo: str, devices: int) -> list[tuple[str, int]]:
    """The collectives of a compiled program: the kind of each, and the bytes of its whole arrays."""
    payloads = []
    for line in hlo.splitlines():
        found = re.search(
            r"= (.*?) (all-reduce|reduce-scatter|all-gather|collective-permute|all-to-all)(-start)?\(", line
        )
        if found:
            result, kind, starts = found.groups()
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
            if starts and kind in ("reduce-scatter", "all-gather"):
                shapes = shapes[len(shapes) // 2 :]  # one that runs beside others names its operands first
            size = sum(
                BYTES[dtype] * int(np.prod([int(n) for n in shape.split(",") if n] or [1])) for dtype, shape in shapes
            )
            payloads.append((kind, size * devices if kind == "reduce-scatter" else size))
    return payloads


def collectives(hlo: str, devices: int) -> dict[str, tuple[int, int]]:
    """How many collectives of each kind a compiled program has, and the bytes that each device sends in a ring."""
    number, sent = Counter[str](), Counter[str]()
    for kind, whole in payloads(hlo, devices):
        number[kind] += 1
        sent[kind] += whole * (devices - 1) * (2 if kind == "all-reduce" else 1) // devices
    return {kind: (number[kind], sent[kind]) for kind in KINDS}


def lowered_collectives(stablehlo: str) -> dict[str, int]:
    """How many of each kind are in a program before it is compiled."""
    return {kind: len(re.findall(rf'"stablehlo\.{kind.replace("-", "_")}"', stablehlo)) for kind in KINDS}


def loss_fn(params: Any, batch: Any) -> Any:
    import jax.numpy as jnp

    for kernel, bias in params:
        batch = jnp.tanh(batch @ kernel + bias)
    return jnp.mean(batch**2)


def programs(mesh: Any, devices: int) -> dict[str, Any]:
    """The step in each form, traced."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    import jaxopt_port as optim
    from examples.zero1 import AXIS, STATE, zero1

    def like(tree: Any, spec: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), tree)

    def divided(tree: Any) -> Any:
        """Rows over the axis where it divides them."""
        return jax.tree.map(
            lambda x: NamedSharding(mesh, P(AXIS) if x.ndim and x.shape[0] % devices == 0 else P()), tree
        )

    params = like(jax.eval_shape(lambda: [(jnp.ones((WIDTH, WIDTH)), jnp.ones(WIDTH))] * LAYERS), P())
    batch = like(jax.ShapeDtypeStruct((ROWS * devices, WIDTH), jnp.float32), P(AXIS))
    ours, theirs = optim.adamw(), optax.adamw(1e-3)

    def plain(params: Any, state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        return *ours.step(grads, state, params), loss

    def with_optax(params: Any, state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = theirs.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    own_state, optax_state = jax.eval_shape(ours.init, params), jax.eval_shape(theirs.init, params)
    shardings = divided(optax_state)
    whole = NamedSharding(mesh, P())
    jitted = jax.jit(with_optax, out_shardings=(whole, shardings, whole))
    sharded_state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), optax_state, shardings
    )
    init, step = zero1(loss_fn, ours, mesh)
    zero1_state = jax.eval_shape(init, params)
    zero1_state = optim.OptState(*(like(part, spec) for part, spec in zip(zero1_state, STATE, strict=True)))
    flat_init, flat_step = zero1(loss_fn, optim.flat(ours), mesh)
    flat_state = optim.OptState(
        *(like(part, spec) for part, spec in zip(jax.eval_shape(flat_init, params), STATE, strict=True))
    )
    made: dict[str, Callable[[], Any]] = {
        "replicated": lambda: jax.jit(plain).trace(params, like(own_state, P()), batch),
        "optax, out_shardings": lambda: jitted.trace(params, sharded_state, batch),
        "ZeRO-1": lambda: step.trace(params, zero1_state, batch),
        "ZeRO-1, flat": lambda: flat_step.trace(params, flat_state, batch),
    }
    return {name: make() for name, make in made.items()}


def table(devices: int) -> None:
    import jax
    from jax.sharding import AbstractMesh, AxisType

    if devices > COMPILED_UP_TO:
        mesh = AbstractMesh((devices,), ("data",), axis_types=(AxisType.Auto,))
        for name, traced in programs(mesh, devices).items():
            found = lowered_collectives(traced.lower(lowering_platforms=("cuda",)).as_text())
            print(f"| {devices:,} | {name}, lowered | {' | '.join(str(found[kind]) for kind in KINDS)} | |", flush=True)
        return
    compiled_table(jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,)), devices)


def compiled_table(mesh: Any, devices: int) -> None:
    for name, traced in programs(mesh, devices).items():
        compiled = traced.lower().compile()
        found = collectives(compiled.as_text() or "", devices)
        cells = [f"{n} ({sent / 1e6:.2f} MB)" if n else "0" for n, sent in found.values()]
        arguments = compiled.memory_analysis().argument_size_in_bytes / 1e6
        print(f"| {devices:,} | {name} | {' | '.join(cells)} | {arguments:.2f} |", flush=True)


def print_head() -> None:
    size = LAYERS * (WIDTH + 1) * WIDTH * 4 / 1e6
    print(f"AdamW, {2 * LAYERS} arrays, {size:.2f} MB of parameters; bytes sent by a device.\n")
    print(f"| devices | step | {' | '.join(KINDS)} | a device's arguments, MB |\n|{'---|' * 6}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", type=int, default=[8, 256, 4096])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    arguments = parser.parse_args()
    if arguments.here:
        table(arguments.devices[0])
        return
    print_head()
    for devices in arguments.devices:
        flags = f"--xla_force_host_platform_device_count={devices if devices <= COMPILED_UP_TO else 1}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        command = [sys.executable, "-m", "benchmarks.zero1", "--here", "--devices", str(devices)]
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()

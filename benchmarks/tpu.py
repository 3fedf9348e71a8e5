"""Compiles a step of every optimizer and of `train` for a TPU topology, with no TPU: `pip install libtpu`,
`python -m benchmarks.tpu`.

`jax.export` only lowers; this goes through the TPU's own compiler, float64 scalars included. It prints a line an
optimizer. Nothing is run: values on TPU are not checked by it.
"""

import os
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU metadata server to ask

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxopt_port as optim
from tests.exact.compare import CLOSURES

TOPOLOGY = "v5e:2x2"
# Gradients of sparse_adam are BCOO, and step() of the closure optimizers needs a closure.
DENSE = {name: factory for name, factory in optim.optimizers.items() if name not in ("sparse_adam", *CLOSURES)}


def compile_train_step(sharding: NamedSharding) -> str:
    """The HLO of a step of `python -m train`."""
    from train.command_line import parse
    from train.start import start
    from train.step import make_step
    from train.training import make_training

    config = parse([])
    training = make_training(config)

    def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    with jax.enable_x64(True):  # without it the abstract state would lose its float64
        state = jax.eval_shape(lambda: start(config, training, 10))
        shapes = ((64, 32, 32, 3), jnp.uint8), ((64,), jnp.int32), ((), jnp.int32)
        batch = tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes)
        step: Any = make_step(training)
        return step.trace(*jax.tree.map(placed, (state, *batch))).lower().compile().as_text() or ""


def main() -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    sharding = NamedSharding(Mesh(devices[:1], "x"), PartitionSpec())
    params = {"w": jnp.ones((8, 128)), "v": jnp.ones((128, 8))}
    for name, factory in DENSE.items():
        optimizer = factory()
        state = optimizer.init(params)
        step = jax.jit(optimizer.step, in_shardings=sharding, out_shardings=sharding)
        compiled = step.trace(params, state, params).lower().compile()
        lines = len((compiled.as_text() or "").splitlines())
        print(f"{name}: compiled for {TOPOLOGY}, {lines} lines of HLO", flush=True)
    lines = len(compile_train_step(sharding).splitlines())
    print(f"the train step: compiled for {TOPOLOGY}, {lines} lines of HLO", flush=True)


if __name__ == "__main__":
    main()

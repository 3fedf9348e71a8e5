"""A state saved by two processes of two devices each, restored by one process of four, x64 off throughout."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_port as optim

OPTIONS = {"lr": 0.1, "betas": (0.7, 1 / 3), "weight_decay": 1e-30}  # numbers that a float32 does not hold


def problem():
    """An optimizer, the mesh over all devices, and parameters and gradients by rows over it."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    rng = np.random.default_rng(0)

    def place(x):
        return jax.make_array_from_callback(x.shape, rows, lambda index: x[index])

    arrays = [{"w": rng.normal(size=(8, 3)).astype(np.float32)} for _ in range(3)]
    params, *grads = (jax.tree.map(place, each) for each in arrays)
    return optim.adamw(**OPTIONS), params, grads


def targets(optimizer, params):
    """What to restore into, of shapes alone: the moments by rows, the scalars whole on every device."""
    rows = params["w"].sharding
    whole = NamedSharding(rows.mesh, PartitionSpec())

    def target(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows if x.ndim == 2 else whole)

    return jax.tree.map(target, (params, jax.eval_shape(optimizer.init, params)))


def save(folder: str, port: str, process: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
    optimizer, params, grads = problem()
    whole = NamedSharding(params["w"].sharding.mesh, PartitionSpec())
    shardings = jax.tree.map(lambda x: x.sharding, targets(optimizer, params))
    state = jax.jit(optimizer.init, out_shardings=shardings[1])(params)
    step = jax.jit(lambda p, s, g: optimizer.step(g, s, p), out_shardings=shardings)
    params, state = step(params, state, grads[0])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder) / "saved", (params, state))
        checkpointer.wait_until_finished()
    after, _ = step(params, state, grads[1])
    gathered = jax.jit(lambda x: x, out_shardings=whole)(after["w"])
    if process == "0":
        np.save(Path(folder) / "after.npy", np.asarray(gathered))


def restore(folder: str) -> None:
    assert not jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    optimizer, params, grads = problem()
    with ocp.StandardCheckpointer() as checkpointer:
        params, state = checkpointer.restore(Path(folder) / "saved", targets(optimizer, params))
    (hyper,) = optim.get_hyper(state)
    assert {name: hyper[name] for name in OPTIONS} == OPTIONS
    new, _ = jax.jit(optimizer.step)(grads[1], state, params)
    np.testing.assert_array_equal(np.asarray(new["w"]), np.load(Path(folder) / "after.npy"))


def start(devices: int, call: str, *args: str) -> subprocess.Popen[str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; from tests.test_processes import {call}; {call}(*sys.argv[1:])", *args],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_saved_by_two_processes_restored_by_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    both = [start(2, "save", str(tmp_path), port, process) for process in "01"]
    for process in both:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    one = start(4, "restore", str(tmp_path))
    output, _ = one.communicate(timeout=300)
    assert one.returncode == 0, output

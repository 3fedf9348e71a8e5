"""What XLA compiles for an NVIDIA H100, with no GPU: `pip install 'jax[cuda12]'`, `python -m benchmarks.gpu [WHAT]`.

`steps`: a step of AdamW and SGD (or others: `--optimizers`) by leaves and flat, and optax's: the buffers that go in and
out, the kernels and copies that the program launches, temporary bytes a parameter byte, seconds to compile. `train`:
the launches of a step of `python -m train` inside its scan, by batch size. `arithmetic`: the operations that round in
the machine code (PTX) of every elementwise optimizer's step, and of `exact`'s: `.rn` are IEEE's, `.approx` and `.full`
are not. `zero1`: `python -m benchmarks.zero1` for so many H100s, eight in a host.

XLA compiles for a described device as for one that is there, but for its choice between algorithms by timing them,
which is off here. Nothing is run: these are counts, not times.
"""

import argparse
import math
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": "cpu"}
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

import jaxopt_port as optim
from benchmarks import zero1
from benchmarks.contenders import OPTAX, OPTIONS, Shapes, is_elementwise, of_optax, ours
from benchmarks.shapes import MODELS, layout

# An H100 SXM, from NVIDIA's data sheet and CUDA's device query.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
PARTS = ("steps", "train", "arithmetic", "zero1")
BATCHES = (1, 64, 512)
DEVICES = (8, 256, 4096)
EXAMPLES = 50_000  # CIFAR-10's
ARRAYS = ("160 x 156k", "1,000 x 10k")
NO_LAUNCH = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "after-all", "iota"}
ROUNDING = re.compile(r"^\s+(?:@%\w+ )?((?:fma|mul|add|sub|div|sqrt|rcp|rsqrt|ex2|lg2)\.[\w.]*f(?:32|64))", re.M)
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%[\w.\-]+ = (?:\(.*?\)(?= [\w\-]+\()|\S+) ([\w\-]+)\(")


class Program(NamedTuple):
    """A compiled program, and what it took."""

    compiled: Any
    buffers: int  # in and out
    seconds: float

    def text(self) -> str:
        return self.compiled.as_text() or ""

    def temporary(self) -> int:
        return self.compiled.memory_analysis().temp_size_in_bytes


def described(hosts: int, a_host: int) -> Mesh:
    """GPUs that are not there."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x{hosts}x{a_host}")
    return Mesh(np.array(topology.devices), ("data",), axis_types=(AxisType.Auto,))


def compiled_for(
    place: Sharding, function: Callable[..., Any], arguments: Any, donated: Any = (), options: Any = None
) -> Program:
    """A function of abstract arguments, or a jitted one, compiled for a device."""
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=place), arguments)
    jitted: Any = function if hasattr(function, "lower") else jax.jit(function, donate_argnums=donated)
    lowered = jitted.trace(*placed).lower()
    begin = time.perf_counter()
    compiled = lowered.compile(options)
    seconds = time.perf_counter() - begin
    return Program(compiled, len(jax.tree.leaves(placed)) + len(jax.tree.leaves(lowered.out_info)), seconds)


def launches(text: str) -> Counter[str]:
    """How many instructions of each kind the program launches: in a loop's body, if it has one, else in all of it."""
    body = re.search(r" while\(.*body=(%[\w.\-]+)", text)
    start = f"\n{body[1]} (" if body else "\nENTRY "
    lines = text[text.index(start) :].split("\n}")[0].splitlines()
    found = (INSTRUCTION.match(re.sub(r"/\*[^*]*\*/", "", line)) for line in lines)
    return Counter(match[1] for match in found if match and match[1] not in NO_LAUNCH)


def forms(name: str) -> Iterator[tuple[str, Any]]:
    yield "leaves", ours(name, False)
    if is_elementwise(name):
        yield "flat", ours(name, True)
    if name in OPTAX:
        yield "optax", of_optax(name)


def compiled_step(place: Sharding, shapes: Shapes, init: Any, step: Any, options: Any = None) -> Program:
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    state = jax.eval_shape(init, params)
    return compiled_for(place, lambda p, s, g: step(g, s, p), (params, state, params), (0, 1), options)


def steps(place: Sharding, names: list[str]) -> None:
    head = ("optimizer, arrays", "form", "buffers", "kernels", "copies", "temporary", "compile, s")
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    trees = {arrays: layout(arrays, "sgd") for arrays in ARRAYS} | {name: make() for name, make in MODELS.items()}
    for arrays, shapes in trees.items():
        size = 4 * sum(map(math.prod, shapes))
        for name in names:
            for form, pair in forms(name):
                program = compiled_step(place, shapes, *pair)
                count = launches(program.text())
                copies = count.pop("copy", 0)
                cells = [f"{name}, {arrays}", form, f"{program.buffers:,}", f"{count.total():,}", f"{copies}"]
                cells += [f"{program.temporary() / size:.2f}", f"{program.seconds:.1f}"]
                print(f"| {' | '.join(cells)} |", flush=True)


def arithmetic(place: Sharding) -> None:
    print("| step | operations that round |\n|---|---|")
    for name in filter(is_elementwise, optim.optimizers):
        optimizer = optim.optimizers[name](**OPTIONS.get(name, {}))
        for form, each in {name: optimizer, f"exact({name})": optim.exact(optimizer)}.items():
            found = ", ".join(f"{number} {kind}" for kind, number in rounding(place, each).items())
            print(f"| {form} | {found} |", flush=True)


def rounding(place: Sharding, optimizer: optim.Optimizer) -> Counter[str]:
    with tempfile.TemporaryDirectory() as folder:
        compiled_step(place, [(4096,)], optimizer.init, optimizer.step, {"xla_dump_to": folder})
        text = "".join(path.read_text() for path in Path(folder).glob("*.ptx"))
    return Counter(sorted(ROUNDING.findall(text)))


def train_steps(place: Sharding, batch: int) -> Program:
    """A chunk of steps of `python -m train`, as it takes them on a GPU: in a scan."""
    from train.command_line import parse
    from train.loop import SCAN_STEPS, make_scan
    from train.start import start
    from train.training import make_training

    config = parse(["--batch-size", str(batch)])
    training = make_training(config)
    with jax.enable_x64(True):  # without it the abstract state would lose its float64
        state = jax.eval_shape(lambda: start(config, training, 10))
        shapes = ((EXAMPLES, 32, 32, 3), jnp.uint8), ((EXAMPLES,), jnp.int32)
        shapes += ((SCAN_STEPS, batch), jnp.int32), ((SCAN_STEPS,), jnp.int32)
        data = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        return compiled_for(place, make_scan(training), (state, *data))


def train(place: Sharding) -> None:
    print("| batch | launches a step | of what | temporary, MB | compile, s |\n|---|---|---|---|---|")
    for batch in BATCHES:
        program = train_steps(place, batch)
        count = launches(program.text())
        what = ", ".join(f"{number} {kind}" for kind, number in count.most_common())
        cells = [f"{batch}", f"{count.total()}", what, f"{program.temporary() / 1e6:.0f}", f"{program.seconds:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"{', '.join(PARTS)}; by default all")
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "sgd"])
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(PARTS):
        parser.error(f"there is no {unknown.pop()!r}: the parts are {', '.join(PARTS)}")
    what = arguments.what or PARTS
    place = NamedSharding(described(1, 1), PartitionSpec())
    if "steps" in what:
        steps(place, arguments.optimizers)
    if "train" in what:
        train(place)
    if "arithmetic" in what:
        arithmetic(place)
    if "zero1" in what:
        zero1.print_head()
        for devices in DEVICES:
            zero1.compiled_table(described(devices // 8, 8), devices)


if __name__ == "__main__":
    main()

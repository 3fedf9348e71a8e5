"""What a step costs: AdamW, float32, donated, run and compile time, on many small leaves and on one large one.

`python -m benchmarks.lift [--rounds N] [--layout 1000x10000 ...]` prints one Markdown table. Beside ours stand a jitted
identity over params, grads, m and v (what JAX's buffers alone cost), optax's AdamW and torch's fused one. All are timed
in one process, in turns, so that a noisy machine is noisy for all; what is printed is the median.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_port as optim

Tree = Any
Arrays = list[np.ndarray]
LAYOUTS = ((1000, 10_000), (160, 156_000), (1, 25_000_000))


class JaxStep:
    """A donated, jitted `step(grads, state, params) -> (params, state)`, compiled by its first call.

    Donated buffers are matched to results by shape, in order: params and state must go in as they come out, or every
    buffer lands in another's place and is copied (4 times slower here).
    """

    def __init__(self, params: Arrays, grads: Arrays, init: Callable[..., Any], step: Callable[..., Any]):
        self.params, self.grads = jax.tree.map(jnp.array, params), jax.tree.map(jnp.array, grads)
        self.state = init(self.params)
        self.step = jax.jit(lambda params, state, grads: step(grads, state, params), donate_argnums=(0, 1))
        start = time.perf_counter()
        self()
        self.compile_s = time.perf_counter() - start

    def __call__(self) -> None:
        self.params, self.state = self.step(self.params, self.state, self.grads)
        jax.block_until_ready((self.params, self.state))


class TorchStep:
    """torch's fused AdamW."""

    compile_s = float("nan")

    def __init__(self, params: Arrays, grads: Arrays):
        import torch

        tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(grad.copy())
        self.optimizer = torch.optim.AdamW(tensors, lr=1e-3, fused=True)

    def __call__(self) -> None:
        self.optimizer.step()


def identity(params: Arrays, grads: Arrays) -> JaxStep:
    def init(params: Tree) -> Tree:
        return jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)

    return JaxStep(params, grads, init, lambda grads, state, params: (params, state))


def ours(params: Arrays, grads: Arrays) -> JaxStep:
    optimizer = optim.adamw(lr=1e-3)
    return JaxStep(params, grads, optimizer.init, optimizer.step)


def with_optax(params: Arrays, grads: Arrays) -> JaxStep:
    optimizer = optax.adamw(1e-3, weight_decay=1e-2)

    def step(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return JaxStep(params, grads, optimizer.init, step)


CONTENDERS: dict[str, Callable[[Arrays, Arrays], JaxStep | TorchStep]] = {
    "identity": identity,
    "ours": ours,
    "optax": with_optax,
    "torch fused": TorchStep,
}


def measure(leaves: int, size: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds a step and seconds of compilation, for each contender."""
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(size, np.float32) for _ in range(leaves)] for _ in range(2))
    steps = {name: make(params, grads) for name, make in CONTENDERS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()  # warms the caches that the last contender emptied
            start = time.perf_counter()
            step()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: (statistics.median(times[name]), steps[name].compile_s) for name in steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--layout", nargs="*", default=[f"{n}x{size}" for n, size in LAYOUTS])
    arguments = parser.parse_args()
    names = list(CONTENDERS)
    print(f"| leaves x size | {' | '.join(f'{n}, ms' for n in names)} | ours / larger of identity and optax |", end="")
    print(" compile ours, s | compile optax, s |")
    print("|---" * (len(names) + 4) + "|")
    for layout in arguments.layout:
        leaves, size = map(int, layout.split("x"))
        row = measure(leaves, size, arguments.rounds)
        ratio = row["ours"][0] / max(row["identity"][0], row["optax"][0])
        print(f"| {leaves:,} x {size:,} | {' | '.join(f'{row[n][0]:.1f}' for n in names)} | {ratio:.2f} |", end="")
        print(f" {row['ours'][1]:.1f} | {row['optax'][1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()

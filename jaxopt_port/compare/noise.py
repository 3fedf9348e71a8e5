"""How much is off? The yardsticks: torch from itself where it was recorded, otherwise the port from itself.

Every bound is `floor + TIMES x yardstick`. The floors, relative L2 of a tensor, are those of float32 on one machine;
for a coarser arithmetic (bfloat16 or float16 layers, TF32 on a GPU) they grow as a quarter of its eps:

| what | floor |
|---|---|
| loss | 4e-6 |
| output of a layer, from torch's own input to it | 2e-6 |
| gradient of a parameter | 8e-6, and 1e-6 of the whole gradient's norm |
| update with torch's gradient and state, this library's optimizers | 3e-5 of the step, and 2 eps of the parameter |
| the same, others' optimizers | 5e-4 of the step |
| the same, Adafactor, and Muon (bfloat16 products) | 3e-4, 2e-2 of the step |

The yardstick is, tensor by tensor, torch's own step done again in float64 and with other threads (`r.redo`), or else
the port's own from numbers that are `NUDGE` eps apart. A rounding that decides a tie (max pooling, ReLU) moves a
gradient further; `TIE` eps and more draws show whether one does.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.compare.trace import Step, Trace

Tree = Any

TIMES = 4.0
LOSS, OUTPUT, GRADIENT, WHOLE, OPTAX = 4e-6, 2e-6, 8e-6, 1e-6, 5e-4
UPDATE = {"Muon": 2e-2, "Adafactor": 3e-4}
INEXACT = {"Muon": (2.0**-9, 3e-2), "Adafactor": (2.0**-23, 1e-4)}  # the rounding inside, and what it makes of a step
OURS = 3e-5
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
TF32 = 2.0**-10
NUDGE, DRAWS = 2.0, 2
TIE, TIE_DRAWS = 16.0, 8


def eps(trace: Trace) -> tuple[float, str]:
    """The eps of the coarsest arithmetic that torch used, and what it is."""
    dtypes = {each["dtype"] for each in trace.parameters} & EPS.keys()
    for step in trace.steps:
        if step.full:
            dtypes |= {dtype for name, dtype, _ in step.frame.header["arrays"] if name.startswith("output/")}
    coarsest = max(dtypes & EPS.keys() or {"float32"}, key=EPS.__getitem__)
    tf32 = trace.start.header["tf32"]
    if tf32 and any(tf32.values()) and EPS[coarsest] < TF32:
        return TF32, "TF32"
    return EPS[coarsest], coarsest


def nudged(tree: Tree, seed: int, size: float) -> Tree:
    """Every number up to so many eps of float32 off, at random."""

    def nudge(path: Any, x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        x = np.asarray(x)
        draw = np.random.default_rng([seed, len(path), x.size]).uniform(-1, 1, x.shape)
        return jnp.asarray(x * (1 + draw * size * 2.0**-23), x.dtype)

    return jax.tree_util.tree_map_with_path(nudge, tree)


def shaken(old: Tree, new: Tree, sizes: Tree, seed: int) -> Tree:
    """A step that is off by so much of itself, at random, as that of an optimizer that computes in bfloat16."""
    draws = np.random.default_rng(seed)

    def shake(a: Any, b: Any, size: float) -> Any:
        if not size:
            return b
        draw = draws.uniform(-1, 1, b.shape) * 3**0.5 * size
        return jnp.asarray(np.asarray(b) + (np.asarray(b) - np.asarray(a)) * draw, b.dtype)

    return jax.tree.map(shake, old, new, sizes)


def torch_from_itself(step: Step, quantity: str) -> dict[str, float]:
    """The relative L2 distance of torch's reruns, the larger, by tensor; empty where there are none."""
    found: dict[str, float] = {}
    for apart in (step.redo or {}).values():
        for name, (l2, _) in apart.get(quantity, {}).items():
            found[name] = max(found.get(name, 0.0), l2)
    return found


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The L2 norm of a - b, in float64; infinite where it is none."""
    wide = np.complex128 if np.iscomplexobj(a) or np.iscomplexobj(b) else np.float64
    with np.errstate(invalid="ignore"):  # of two infinities
        found = float(np.linalg.norm((np.asarray(a, wide) - np.asarray(b, wide)).ravel()))
    return found if np.isfinite(found) else float("inf")


def norm(a: np.ndarray) -> float:
    return distance(a, np.zeros((), np.float64))


def total(arrays: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(norm(x) ** 2 for x in arrays.values())))

"""What is compared: torch's own configurations and a few more, with their parameters and gradients."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tests import oracle
from tests.exact.compare import EXACT

SHAPES: Sequence[tuple[int, ...]] = ((4, 6), (37,), (), (2, 3, 5, 5))
SHAPES_OF: Mapping[str, Sequence[tuple[int, ...]]] = {
    "muon": ((4, 6), (7, 3), (5, 5)),  # matrices only
    "sparse_adam": ((37,), (4, 3, 5)),  # no scalars
}
DTYPES: Mapping[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "complex64": np.complex64,
    "bfloat16": ml_dtypes.bfloat16,
}


class Case(NamedTuple):
    """One comparison.

    Args:
      optimizer: our name for it.
      label: what is special, for people.
      kwargs: torch's keyword arguments.
      dtype: of the parameters.
      steps: how many.
      second: the options of a second group, which gets every other parameter.
      schedule: hyper-parameters to set before a step, in every group.
      extremes: infinite, not-a-number and denormal values and negative zeros among parameters and gradients.
      flush_denormal: have torch take denormals as zeros, which XLA on CPU always does.
      x64: whether `jax_enable_x64` is on.
    """

    optimizer: str
    label: str
    kwargs: Mapping[str, Any]
    dtype: str
    steps: int
    second: Mapping[str, Any] | None = None
    schedule: Callable[[int], Mapping[str, Any]] | None = None
    extremes: bool = False
    flush_denormal: bool = False
    x64: bool = False


def cases(name: str, dtype: str, steps: int, long: int) -> Iterator[Case]:
    """Every configuration in torch's optim_db, then what optim_db leaves out, for the plain and the richest of them.

    For complex64 and bfloat16 the richest alone.
    """
    known = [(label, _tensors_as(name, dtype, kwargs)) for label, kwargs in oracle.configurations(name)]
    plain, (best, rich) = known[0][1], max(reversed(known), key=lambda each: len(each[1]))
    make = functools.partial(Case, name, dtype=dtype, steps=steps, x64=dtype == "float64")
    if dtype not in EXACT:
        yield make(best, rich)
        return
    for label, kwargs in known:
        yield make(label, kwargs)
    yield make(f"{long} steps", rich, steps=long, flush_denormal=True)  # NAdam's mu_product becomes denormal
    yield make("two groups", plain, second=rich)
    yield make("changing hyper-parameters", rich, schedule=_warm_up(name, rich))
    extreme = functools.partial(make, extremes=True, flush_denormal=True)
    yield extreme("extreme values", plain)
    yield extreme("extreme values, richest", rich)
    if "weight_decay" in rich:
        yield extreme("extreme values, no weight decay", {**rich, "weight_decay": 0.0})
    if (name, dtype) == ("adam", "float32"):
        yield make("jax_enable_x64", plain, x64=True)
    if name == "sgd":
        late: Mapping[int, Mapping[str, Any]] = {0: {"momentum": 0.0}, 4: {"momentum": 0.9}, 50: {"momentum": 0.5}}
        yield make("momentum from step 4", {"momentum": 0.9, "dampening": 0.5}, schedule=lambda i: late.get(i, {}))


def _tensors_as(name: str, dtype: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Tensor hyper-parameters, of the same value, in float64 where torch would compute with them in float32.

    Muon's `1 - lr * weight_decay` is 1e-8 off then, beside float64 parameters, and SparseAdam's step size a last bit.
    """
    wide = dtype == "float64" or name == "sparse_adam"
    return {k: v.double() if wide and hasattr(v, "double") else v for k, v in kwargs.items()}


def _warm_up(name: str, kwargs: Mapping[str, Any]) -> Callable[[int], Mapping[str, Any]]:
    """A linear warm-up of the learning rate, then decay; betas cycle where there are some, as under OneCycleLR."""
    defaults = oracle.torch_class(name)([oracle.torch.zeros(1, 1)]).defaults
    given = oracle.options({**defaults, **kwargs})

    def at(step: int) -> Mapping[str, Any]:
        values = {"lr": given["lr"] * min((step + 1) / 5, 0.99**step)}
        return {**values, "betas": (0.85 + step % 10 / 100, given["betas"][1])} if "betas" in given else values

    return at


def parameters(case: Case) -> list[np.ndarray]:
    params = [
        _draw(np.random.default_rng([3, i]), s, case.dtype) for i, s in enumerate(SHAPES_OF.get(case.optimizer, SHAPES))
    ]
    if case.extremes:
        for p in params:
            for at, value in enumerate((np.inf, -np.inf, -0.0, denormal(p.dtype), np.nan)[: p.size - 1]):
                p.reshape(-1)[at] = value
    return params


@functools.lru_cache(8192)
def gradients(optimizer: str, dtype: str, extremes: bool, sparse: bool, step: int) -> list[np.ndarray | None]:
    """Gradients of mixed magnitude, with torch's pattern of None: step 2 all, steps 3 and 4 parameter 1."""
    grads: list[np.ndarray | None] = []
    for i, shape in enumerate(SHAPES_OF.get(optimizer, SHAPES)):
        rng = np.random.default_rng([7, i, step])
        magnitude = 10.0 ** rng.integers(-6, 3, shape)
        g = _draw(rng, shape, "complex64" if dtype == "complex64" else "float64") * magnitude
        g = np.asarray(g).astype(DTYPES[dtype])
        if sparse:
            g[rng.random(shape[0]) < 0.4] = 0
        elif shape and step % 3 == 0:
            g[..., -1] = 0
        if extremes:
            _make_extreme(g, step)
        grads.append(None if step == 2 or (i == 1 and step in (3, 4)) else g)
    return grads


def denormal(dtype: Any) -> float:
    return float(ml_dtypes.finfo(dtype).tiny) / 64


def _make_extreme(g: np.ndarray, step: int) -> None:
    flat = g.reshape(-1)
    if flat.size > 5:
        flat[:2], flat[2:4] = -0.0, denormal(g.dtype)
        flat[-1] = -0.0
        if flat.size > 30 and step in (6, 9):
            flat[20], flat[21] = (np.inf, np.nan) if step == 6 else (np.nan, -np.inf)
    elif flat.size > 1:
        flat[1:3] = -0.0


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    real = np.asarray(rng.standard_normal(shape))
    return np.asarray(real + 1j * rng.standard_normal(shape) if dtype == "complex64" else real).astype(DTYPES[dtype])

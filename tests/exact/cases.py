"""What is compared: torch's own configurations and a few more, with their parameters and gradients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tests import oracle

SHAPES: Sequence[tuple[int, ...]] = ((4, 6), (37,), (), (2, 3, 5, 5))
SHAPES_OF: Mapping[str, Sequence[tuple[int, ...]]] = {
    "muon": ((4, 6), (6, 4), (5, 5), (3, 37)),  # matrices only
    "sparse_adam": ((4, 6), (37,), (7, 1), (2, 3, 5, 5)),  # no scalars
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
    x64: bool = False


def cases(name: str, dtype: str, steps: int, long: int) -> Iterator[Case]:
    """Every configuration in torch's optim_db, then what optim_db leaves out, for the plain and the richest of them."""
    x64 = dtype == "float64"
    known = oracle.configurations(name)
    plain, rich = known[0][1], known[-1][1]
    for label, kwargs in known:
        yield Case(name, label, kwargs, dtype, steps, x64=x64)
    yield Case(name, f"{long} steps", rich, dtype, long, x64=x64)
    yield Case(name, "two groups", plain, dtype, steps, second=rich, x64=x64)
    yield Case(name, "changing hyper-parameters", rich, dtype, steps, schedule=_warm_up(name, rich), x64=x64)
    yield Case(name, "extreme values", plain, dtype, steps, extremes=True, x64=x64)
    yield Case(name, "extreme values, richest", rich, dtype, steps, extremes=True, x64=x64)
    if "weight_decay" in rich:
        without = {**rich, "weight_decay": 0.0}
        yield Case(name, "extreme values, no weight decay", without, dtype, steps, extremes=True, x64=x64)
    if dtype == "float32":
        yield Case(name, "jax_enable_x64", plain, dtype, steps, x64=True)
    if name == "sgd":
        late: Mapping[int, Mapping[str, Any]] = {0: {"momentum": 0.0}, 4: {"momentum": 0.9}, 50: {"momentum": 0.5}}
        kwargs = {"momentum": 0.9, "dampening": 0.5}
        yield Case(name, "momentum from step 4", kwargs, dtype, steps, schedule=lambda i: late.get(i, {}), x64=x64)


def _warm_up(name: str, kwargs: Mapping[str, Any]) -> Callable[[int], Mapping[str, Any]]:
    """A linear warm-up of the learning rate, then decay; betas cycle where there are some, as under OneCycleLR."""
    defaults = oracle.torch_class(name)([oracle.torch.zeros(1, 1)]).defaults  # pyright: ignore[reportCallIssue]
    given = oracle.options({**defaults, **kwargs})

    def at(step: int) -> Mapping[str, Any]:
        values = {"lr": given["lr"] * min((step + 1) / 5, 0.99**step)}
        return {**values, "betas": (0.85 + step % 10 / 100, given["betas"][1])} if "betas" in given else values

    return at


def parameters(case: Case) -> list[np.ndarray]:
    params = [_draw(np.random.default_rng([3, i]), s, case.dtype) for i, s in enumerate(_shapes(case))]
    if case.extremes:
        for p in params:
            for at, value in enumerate((np.inf, -np.inf, -0.0, 1e-40, np.nan)[: max(p.size - 1, 0)]):
                p.reshape(-1)[at] = value
    return params


def gradients(case: Case, step: int, sparse: bool) -> list[np.ndarray | None]:
    """Gradients of mixed magnitude, with torch's pattern of None: step 2 all, steps 3 and 4 parameter 1."""
    grads: list[np.ndarray | None] = []
    for i, shape in enumerate(_shapes(case)):
        rng = np.random.default_rng([7, i, step])
        g = _draw(rng, shape, case.dtype) * np.asarray(10.0 ** rng.integers(-6, 3, shape)).astype(DTYPES[case.dtype])
        g = np.asarray(g).astype(DTYPES[case.dtype])
        if sparse:
            g[rng.random(shape[0]) < 0.4] = 0
        elif shape and step % 3 == 0:
            g[..., -1] = 0
        if case.extremes:
            _make_extreme(g, step)
        grads.append(None if step == 2 or (i == 1 and step in (3, 4)) else g)
    return grads


def _make_extreme(g: np.ndarray, step: int) -> None:
    flat = g.reshape(-1)
    if flat.size > 5:
        flat[:2], flat[2:4] = -0.0, 1e-40
        flat[-1] = -0.0
        if flat.size > 30 and step in (6, 9):
            flat[20], flat[21] = (np.inf, np.nan) if step == 6 else (np.nan, -np.inf)
    elif flat.size > 1:
        flat[1:3] = -0.0


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    real = np.asarray(rng.standard_normal(shape))
    return (real + 1j * rng.standard_normal(shape) if dtype == "complex64" else real).astype(DTYPES[dtype])


def _shapes(case: Case) -> Sequence[tuple[int, ...]]:
    return SHAPES_OF.get(case.optimizer, SHAPES)

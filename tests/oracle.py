"""torch's side of the comparisons: its optimizers, driven with NumPy arrays."""

import copy
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

IMPLEMENTATIONS = ("foreach", "fused", "capturable", "differentiable")  # not options of the mathematics


def torch_class(name: str) -> Any:
    """torch's class for our name: `sparse_adam` -> `SparseAdam`."""
    wanted = name.replace("_", "")
    return next(c for n, c in vars(torch.optim).items() if n.lower() == wanted and isinstance(c, type))


def optimizer_info(name: str) -> Any:
    """What torch's own tests know of an optimizer. (Slow to import, so only where it is needed.)"""
    from torch.testing._internal.common_optimizers import optim_db

    return next(info for info in optim_db if info.optim_cls is torch_class(name))


def configurations(name: str) -> list[tuple[str, dict[str, Any]]]:
    """torch's own CPU configurations: a description, and the keyword arguments."""
    inputs = optimizer_info(name).optim_inputs_func(device="cpu")
    return [
        (each.desc, {k: v for k, v in copy.deepcopy(each.kwargs).items() if k not in IMPLEMENTATIONS})
        for each in inputs
    ]


def options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """torch's keyword arguments as ours: a number for a tensor."""
    return {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}


def since(major: int, minor: int) -> None:
    """Skip a test of what torch does only since this version."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (major, minor):
        pytest.skip(f"torch {torch.__version__} does this otherwise than {major}.{minor}")


def one_thread() -> None:
    """One thread, and one call into MKL's vector library, whose first call can race (pytorch issue 188792)."""
    torch.set_num_threads(1)
    torch.ones(64).sqrt()


def ieee_sqrt() -> None:
    """Replace torch's square root, which goes through MKL and can be 1 ulp off, by the IEEE one."""

    def sqrt(self: torch.Tensor) -> torch.Tensor:
        if self.dtype in (torch.bfloat16, torch.float16):
            return sqrt(self.float()).to(self.dtype)
        return torch.from_numpy(np.asarray(np.sqrt(self.detach().numpy())))

    torch.Tensor.sqrt = sqrt  # pyright: ignore[reportAttributeAccessIssue]
    torch.Tensor.sqrt_ = lambda self: self.copy_(sqrt(self))  # pyright: ignore[reportAttributeAccessIssue]


def to_torch(x: np.ndarray) -> torch.Tensor:
    """A copy as a tensor; bfloat16 too."""
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(x.copy())


def to_numpy(x: Any) -> np.ndarray:
    """A tensor, or a number out of an optimizer's state, as a copy."""
    if not isinstance(x, torch.Tensor):
        return np.asarray(x)
    x = x.detach()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return x.numpy().copy()


def sparse_rows(g: torch.Tensor) -> torch.Tensor:
    """`g.to_sparse(1)`, which takes 18 ms for 100 rows: the rows that are not all zero."""
    rows = g.reshape(len(g), g[:1].numel()).any(1).nonzero()[:, 0]
    return torch.sparse_coo_tensor(rows[None], g[rows], g.shape, is_coalesced=True, check_invariants=False)


class Torch:
    """One of torch's optimizers, single-tensor path, with its parameters.

    Args:
      name: our name for it.
      params: the parameters' first values.
      groups: the indices of each parameter group's parameters.
      kwargs: for each group its keyword arguments, those of the first also the optimizer's own.
      sparse: hand gradients over as sparse tensors.
      flush_denormal: take denormal numbers as zeros in a step, as XLA on CPU always does.
    """

    def __init__(
        self,
        name: str,
        params: Sequence[np.ndarray],
        groups: Sequence[Sequence[int]],
        kwargs: Sequence[Mapping[str, Any]],
        sparse: bool = False,
        flush_denormal: bool = False,
    ):
        cls = torch_class(name)
        self.params = [torch.nn.Parameter(to_torch(p)) for p in params]
        self.sparse, self.flush_denormal = sparse, flush_denormal
        extra = {"foreach": False} if "foreach" in inspect.signature(cls).parameters else {}
        tensors = [{"params": [self.params[i] for i in inside]} for inside in groups]
        merged = [dict(t, **(k if at else {})) for at, (t, k) in enumerate(zip(tensors, kwargs, strict=True))]
        self.optimizer = cls(merged, **copy.deepcopy(dict(kwargs[0])), **extra)

    def set(self, values: Mapping[str, Any]) -> None:
        """`group[name] = value` in every group."""
        for group in self.optimizer.param_groups:
            group.update(values)

    def step(self, grads: Sequence[np.ndarray | None]) -> None:
        for p, g in zip(self.params, grads, strict=True):
            grad = None if g is None else to_torch(g)
            p.grad = sparse_rows(grad) if grad is not None and self.sparse else grad
        torch.set_flush_denormal(self.flush_denormal)
        try:
            self.optimizer.step()
        finally:
            torch.set_flush_denormal(False)

    def values(self, index: int) -> dict[str, np.ndarray]:
        """A parameter, under the name "", and its state by torch's names, empty where torch has none yet."""
        p = self.params[index]
        state = self.optimizer.state.get(p, {})
        return {"": to_numpy(p), **{k: to_numpy(v) for k, v in state.items() if v is not None}}


def trajectory(name: str, kwargs: Mapping[str, Any], start: np.ndarray, grads: np.ndarray, sparse: bool) -> np.ndarray:
    """The parameter after a step with each of the gradients."""
    run = Torch(name, [start], [[0]], [kwargs], sparse)
    for g in grads:
        run.step([g])
    return run.values(0)[""]


def problem(dtype: str, steps: int, sparse: bool) -> tuple[np.ndarray, np.ndarray]:
    """10,000 parameters and their gradients."""
    rng = np.random.default_rng(11)
    start, grads = rng.standard_normal((100, 100)), rng.standard_normal((steps, 100, 100))
    if sparse:
        grads[rng.random((steps, 100)) < 0.5] = 0
    return start.astype(dtype), grads.astype(dtype)


def main() -> None:
    """Reads arguments of `trajectory` and `problem` as JSON, and saves what the trajectories end in."""
    one_thread()
    ends = {}
    for name, kwargs, dtype, steps, sparse in json.load(sys.stdin):
        ends[f"{name}{kwargs}{dtype}"] = trajectory(name, kwargs, *problem(dtype, steps, sparse), sparse)
    np.savez(sys.argv[1], **ends)


if __name__ == "__main__":
    main()

"""torch's optimizers on a CPU, each of whose operations NumPy does as torch 2.13's CUDA kernel does it.

torch/_inductor/lowering.py says how `addcmul`, `addcdiv` and `add(alpha=)` are fused there, BinaryDivTrueKernel.cu that
a division by a number is a product with its reciprocal, Lerp.h which form `lerp` has. No GPU is needed, none is tested.
"""

from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

f32 = np.float32


def fma(a: Any, b: Any, c: Any) -> np.ndarray:
    """`a * b + c` of float32, rounded once: through float64 rounded to odd. Tests check it against the C library's."""
    product, c = np.float64(f32(a)) * np.float64(f32(b)), np.float64(f32(c))
    s = np.atleast_1d(product + c)
    part = s - product
    error = (product - (s - part)) + (c - part)
    even = s.view(np.int64) & 1 == 0
    moved = np.where((error != 0) & even, np.nextafter(s, np.where(error > 0, np.inf, -np.inf)), s)
    return moved.astype(f32).reshape(np.broadcast_shapes(np.shape(product), np.shape(c)))


def add(x: Any, y: Any, alpha: Any = 1) -> Any:
    return fma(alpha, y, x)


def sub(x: Any, y: Any, alpha: Any = 1) -> Any:
    return fma(-alpha, y, x)


def addcmul(x: Any, y: Any, z: Any, value: Any = 1) -> Any:
    return fma(y, z, x) if f32(value) == 1 else fma(value, y * z, x)


def addcdiv(x: Any, y: Any, z: Any, value: Any = 1) -> Any:
    return fma(value, y / z, x)


def lerp(x: Any, y: Any, weight: Any) -> Any:
    return fma(weight, y - x, x) if abs(f32(weight)) < 0.5 else fma(-(y - x), f32(1) - f32(weight), y)


def div(x: Any, y: Any) -> Any:
    return x * (f32(1) / f32(y)) if np.ndim(y) == 0 and np.ndim(x) else x / y


KERNELS = {
    "add": add,
    "addcdiv": addcdiv,
    "addcmul": addcmul,
    "div": div,
    "lerp": lerp,
    "reciprocal": lambda x: f32(1) / x,
    "sqrt": np.sqrt,
    "sub": sub,
}
ROUNDED_AS_ANYWHERE = {
    "_local_scalar_dense",
    "_to_copy",
    "abs",
    "alias",
    "amax",
    "cat",
    "clamp",
    "clone",
    "copy",
    "detach",
    "empty_like",
    "eq",
    "fill",
    "full_like",
    "gt",
    "index_put",
    "lift_fresh",
    "lt",
    "maximum",
    "mul",
    "ne",
    "neg",
    "ones",
    "sign",
    "unsqueeze",
    "view",
    "where",
    "zero",
    "zeros",
    "zeros_like",
}


class Cuda(TorchDispatchMode):
    """torch's operations as its CUDA kernels do them, in NumPy."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        operation = name.removesuffix("_")
        if operation not in KERNELS:
            assert operation in ROUNDED_AS_ANYWHERE or operation.startswith("profiler::"), name
            return func(*args, **(kwargs or {}))
        given = [x.numpy() if isinstance(x, torch.Tensor) else x for x in args]
        result = torch.from_numpy(np.asarray(KERNELS[operation](*given, **(kwargs or {})), f32))
        return args[0].copy_(result) if name.endswith("_") else result


def in_torch(name: str, options: dict[str, Any], given: list[np.ndarray], steps: int) -> tuple[np.ndarray, Any]:
    kind = {"adamw": "AdamW", "nadam": "NAdam", "radam": "RAdam", "rmsprop": "RMSprop", "sgd": "SGD", "asgd": "ASGD"}
    p = torch.tensor(given[0])
    optimizer = getattr(torch.optim, kind.get(name, name.capitalize()))([p], foreach=False, **options)
    for g in given[1 : steps + 1]:
        p.grad = torch.tensor(g)
        with Cuda():
            optimizer.step()
    return p.numpy(), optimizer.state[p]

"""State dicts with tensors, as torch has them, and with arrays, as we do."""

from typing import Any

import numpy as np
import torch

from tests import oracle


def arrays(x: Any) -> Any:
    """A state dict with arrays for tensors."""
    if isinstance(x, dict):
        return {key: arrays(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(map(arrays, x))
    return oracle.to_numpy(x) if isinstance(x, torch.Tensor) else x


def tensors(x: Any) -> Any:
    """A state dict with tensors for arrays, as `torch.load` gives it."""
    if isinstance(x, dict):
        return {key: tensors(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(map(tensors, x))
    return oracle.to_torch(x) if isinstance(x, np.ndarray) else x

"""Arrays out of whatever holds one: NumPy's, JAX's, lists and numbers, and torch's tensors, with no torch imported."""

from typing import Any

import numpy as np

from jaxopt_port.torch_interop.files.pt_types import DTYPES


def as_array(x: Any) -> np.ndarray:
    """`np.asarray(x)`, of torch's tensors too: on any device, with gradients, in bfloat16 and float8.

    Args:
      x: an array, a tensor, a number or nested lists of numbers.

    Returns:
      The array; ml_dtypes has the element types that NumPy does not.

    Example:
      >>> as_array([1.0, 2.0])
      array([1., 2.])
    """
    if not hasattr(x, "detach"):
        return np.asarray(x)
    dtype = DTYPES.get(str(x.dtype))
    if dtype is not None and dtype.isbuiltin == 2:  # ml_dtypes': every value of it is one of float32
        return x.float().numpy(force=True).astype(dtype)
    return x.numpy(force=True)

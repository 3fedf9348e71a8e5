"""NumPy's numbers and arrays as they are pickled: `best_accuracy` of a training script, the state of `numpy.random`."""

from typing import Any

import numpy as np

from jaxopt_port.torch_interop.files.pt_types import PtFileError

MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # before NumPy 2, and since
CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")


class ElementType:
    """A dtype, whose order of bytes follows after it was made, when others may refer to it."""

    def __init__(self, code: Any, _align: Any = False, _copy: Any = True):
        if type(code) is not str or code not in CODES:
            raise PtFileError(f"NumPy's type {code!r} is not one of numbers")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        """What a pickle says of it after making it: a version, the order, nothing else for numbers."""
        if state[1] not in ("<", ">", "|") or state[2:5] != (None, None, None):
            raise PtFileError("NumPy's type of numbers has a part that it should not have")
        self.dtype = self.dtype.newbyteorder(state[1])


def number(element: Any, data: Any) -> Any:
    """A NumPy number."""
    return _view(element, (), False, data)[()]


def empty(_kind: Any, _shape: Any, _code: Any) -> np.ndarray:
    """The array that `fill` fills."""
    return np.empty(0, np.int8)


def fill(array: np.ndarray, state: Any) -> None:
    """What a pickle says of an array after making it: a version, the shape, the type, the order of axes, the bytes."""
    _version, shape, element, fortran, data = state
    view = _view(element, shape, fortran, data)
    array.__setstate__((1, view.shape, view.dtype, fortran, data))  # in place, for those that refer to it


def _view(element: Any, shape: Any, fortran: Any, data: Any) -> np.ndarray:
    if type(element) is not ElementType or type(shape) is not tuple or type(fortran) is not bool:
        raise PtFileError("a NumPy array without a type or a shape")
    if type(data) is not bytes:
        raise PtFileError("a NumPy array without its bytes")
    array = np.ndarray(shape, element.dtype, data, order="F" if fortran else "C")
    if array.nbytes != len(data):
        raise PtFileError(f"a NumPy array of {array.nbytes} bytes has {len(data)}")
    if array.dtype == np.bool_ and max(data, default=0) > 1:
        raise PtFileError("a NumPy array holds a bool that is neither 0 nor 1")
    return array

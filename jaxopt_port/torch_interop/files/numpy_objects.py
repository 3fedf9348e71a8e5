"""NumPy's numbers, strings, arrays and dtypes, pickled: a script's `best_accuracy`, `numpy.random`'s state."""

import re
from typing import Any

import numpy as np

from jaxopt_port.torch_interop.files.pt_types import PtFileError
from jaxopt_port.torch_interop.files.unknown import Unknown

MODULES = ("numpy.core", "numpy._core")  # before NumPy 2, and since
CODES = re.compile(r"[biu]1|[iuf][248]|c8|c16|[US][0-9]{1,8}")


class Unfinished:
    """A dtype or an array as the file makes it first. What it is follows at once."""

    def __init__(self, dtype: np.dtype | None = None):
        self.dtype = dtype  # None for an array
        self.memo: list[int] = []  # where the pickle keeps it

    def finish(self, state: Any) -> Any:
        """The dtype or the array."""
        return _array(state) if self.dtype is None else _ordered(self.dtype, state)


def element_type(code: Any, _align: Any = False, _copy: Any = True) -> Unfinished | Unknown:
    """A dtype of numbers or of texts, whose order of bytes follows; any other is not known."""
    if type(code) is str and CODES.fullmatch(code):
        return Unfinished(np.dtype(code))
    return Unknown("numpy", "dtype", (code, _align, _copy))


def number(element: Any, data: Any = None) -> Any:
    """A NumPy number or string."""
    if isinstance(element, Unknown):
        return Unknown("numpy", "generic", (element, data))
    return _view(element, (), False, data)[()]


def array(kind: Any, shape: Any, code: Any) -> Unfinished | Unknown:
    """The array that `Unfinished.finish` makes; one of a subclass is not known."""
    if isinstance(kind, Unknown) and kind.full != "numpy.ndarray":
        return Unknown(kind.module, kind.name, (shape, code))
    return Unfinished()


def from_buffer(data: Any, element: Any, shape: Any, order: Any) -> Any:
    """A whole array, as it is pickled since protocol 5."""
    if isinstance(element, Unknown):
        return Unknown("numpy", "ndarray", (), state=(data, element, shape, order))
    view = _view(element, shape, order == "F", bytes(data) if type(data) is bytearray else data)
    return view.astype(view.dtype.newbyteorder("="), order=order)


def _ordered(dtype: np.dtype, state: Any) -> np.dtype:
    """What a pickle says of a dtype after making it: a version, the order, for texts the size, else nothing."""
    size = dtype.itemsize if dtype.kind in "US" else -1
    if state[1] not in ("<", ">", "|") or state[2:5] != (None, None, None) or state[5] != size:
        raise PtFileError("NumPy's type has a part that it should not have")
    return dtype.newbyteorder(state[1])


def _array(state: Any) -> Any:
    """What a pickle says of an array after making it: a version, the shape, the type, the order of axes, the bytes."""
    _version, shape, element, fortran, data = state
    if isinstance(element, Unknown):
        return Unknown("numpy", "ndarray", (), state=state)
    view = _view(element, shape, fortran, data)
    return view.astype(view.dtype.newbyteorder("="), order="F" if fortran else "C")  # a copy that may be written to


def _view(element: Any, shape: Any, fortran: Any, data: Any) -> np.ndarray:
    if not isinstance(element, np.dtype) or type(shape) is not tuple or type(fortran) is not bool:
        raise PtFileError("a NumPy array without a type or a shape")
    data = data.encode() if type(data) is str else data  # Python 2 has one type for both
    if type(data) is not bytes:
        raise PtFileError("a NumPy array without its bytes")
    if not element.itemsize and shape:
        raise PtFileError("a NumPy array of elements without a size")
    array = np.ndarray(shape, element, data, order="F" if fortran else "C")
    if array.nbytes != len(data):
        raise PtFileError(f"a NumPy array of {array.nbytes} bytes has {len(data)}")
    if array.dtype == np.bool_ and max(data, default=0) > 1:
        raise PtFileError("a NumPy array holds a bool that is neither 0 nor 1")
    if array.dtype.kind == "U" and np.frombuffer(data, array.dtype.byteorder + "u4").max(initial=0) > 0x10FFFF:
        raise PtFileError("a NumPy array holds a text that is none")
    return array

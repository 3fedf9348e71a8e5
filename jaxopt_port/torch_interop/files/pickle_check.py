"""What was read is bounded in depth and size, and is plain data, or says where it is not."""

import argparse
import collections
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxopt_port.torch_interop.files.numpy_objects import Unfinished
from jaxopt_port.torch_interop.files.pt_types import MAX_DEPTH, PtFileError
from jaxopt_port.torch_interop.files.unknown import Unknown

MAX_SHARING = 100  # items a byte of the pickle may stand for, where one container is used in many places
KEEP = 'load(path, unknown="keep") reads the rest, with a placeholder for it'
ADVICE = {  # by the beginning of the name
    "torch._utils._rebuild_tensor_v": "a tensor that is lazily conjugated or negated: "
    "x.resolve_conj().resolve_neg() is plain",
    "torch._utils._rebuild_sparse": "a sparse tensor: x.to_dense() is plain",
    "torch._utils._rebuild_qtensor": "a quantized tensor: x.dequantize() and x.int_repr() are plain",
    "torch._utils._rebuild_nested": "a nested tensor: list(x.unbind()) is plain",
    "torch._utils._rebuild_meta": "a tensor without values, on the device `meta`",
    "torch.distributed": "a part of what is spread over many processes: "
    "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions("
    "full_state_dict=True)) gives the whole, and get_optimizer_state_dict",
    "torch.nn.modules": "a whole module: module.state_dict() is plain",
}


def check(value: Any, size: int, keep_unknown: bool) -> Any:
    """The value that `PickleReader` read.

    Args:
      value: of the reader.
      size: of the pickle in bytes.
      keep_unknown: whether an `Unknown` may stand in it.

    Raises:
      PtFileError: containers are too deep, contain themselves, or are used so often that the whole is far larger than
        the file; an object is unfinished, or an `Unknown` that may not be.
    """
    walk = _Walk(MAX_SHARING * size)
    walk.visit(value, 0)
    if walk.unknown and not keep_unknown:
        where, what = next(_unknown(value, "", set()))
        raise PtFileError(f"{where or 'the object'} is {_described(what)}. {KEEP}")
    for each in walk.unknown:  # it grows: a placeholder may contain others, and through them itself
        for part in (each.args, each.kwargs, each.state, each.items):
            walk.visit(part, 0)
    return value


def _described(x: Unknown) -> str:
    what = f"{x.full}, which is not plain data" if x.args is not None else f"{x.full} itself, a class or a function"
    advice = next((text for name, text in ADVICE.items() if x.full.startswith(name)), None)
    return f"{what} ({advice})" if advice else what


class _Walk:
    """Bounds how deep an object is and how many items it has when each container is counted wherever it is used."""

    def __init__(self, max_items: int):
        self._max_items = max_items
        self._seen: dict[int, tuple[int, int]] = {}  # of each container the height and the items
        self._seen_unknown: set[int] = set()
        self.unknown: list[Unknown] = []

    def visit(self, value: Any, depth: int) -> tuple[int, int]:
        if isinstance(value, Unfinished):
            raise PtFileError("a NumPy array or type is not whole")
        if isinstance(value, Unknown):
            if id(value) not in self._seen_unknown:
                self._seen_unknown.add(id(value))
                self.unknown.append(value)
            return 0, 1
        if id(value) not in self._seen:
            inside = [each for _, each in _inside(value)]
            if not inside:
                return 0, 1
            if depth >= MAX_DEPTH:
                raise PtFileError(f"containers are nested more than {MAX_DEPTH} deep, or one contains itself")
            visited = [self.visit(each, depth + 1) for each in inside]
            height = 1 + max(height for height, _ in visited)
            self._seen[id(value)] = height, 1 + sum(items for _, items in visited)
        height, items = self._seen[id(value)]
        if depth + height > MAX_DEPTH:
            raise PtFileError(f"containers are nested more than {MAX_DEPTH} deep")
        if items > self._max_items:
            raise PtFileError("one container is used so often that the whole is far larger than the file")
        return height, items


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """The items of a container, each with how Python would name it; none of anything else."""
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str | int | float | bytes):
                yield ", of which a key", key
            yield f'["{key}"]' if isinstance(key, str) else f"[{key!r:.99}]", each
    elif isinstance(value, list | tuple | collections.deque):
        for index, each in enumerate(value):
            yield f"[{index}]", each
    elif isinstance(value, set | frozenset):
        for each in value:
            yield ", of which an item", each
    if isinstance(value, collections.OrderedDict | argparse.Namespace):
        for name, each in vars(value).items():
            yield f".{name}", each


def _unknown(value: Any, where: str, seen: set[int]) -> Iterator[tuple[str, Unknown]]:
    """The placeholders in a value, with where they stand."""
    if isinstance(value, Unknown):
        yield where, value
    elif id(value) not in seen and not isinstance(value, np.ndarray):
        seen.add(id(value))
        for name, each in _inside(value):
            yield from _unknown(each, where + name, seen)

"""Slots: what an optimizer keeps beside the parameters, as trees like theirs, and one parameter's at a time.

A state has the rule's NamedTuple with a tree like the parameters in each field, as optax's states have, so that
`optax.tree.map_params`, `optax.tree.get` and whatever gives shardings by parameter find them. A rule has the NamedTuple
with one array in each field. This file turns one into the other, and knows the boxes around the arrays.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_port.checks import flatten_like
from jaxopt_port.param_groups import is_box, leaf_paths

Tree = Any


def boxes_of(params: Tree) -> tuple[list[Any], Any]:
    """The leaves of the parameters with the boxes around them (nnx variables, partitioned linen), and their tree."""
    return jax.tree.flatten(params, is_leaf=is_box)


def as_trees(kind: type[Any], slots: Sequence[Any], fields: Sequence[str], params: Tree) -> Any:
    """A NamedTuple of trees from a NamedTuple of arrays, or a None, for each parameter.

    Args:
      kind: the NamedTuple.
      slots: for each leaf.
      fields: those that some group has; the others are None for the whole tree.
      params: the parameters, whose boxes the arrays of their shape get.
    """
    boxes, treedef = boxes_of(params)

    def tree(name: str) -> Tree:
        arrays = [None if slot is None else getattr(slot, name) for slot in slots]
        return treedef.unflatten(_boxed(box, x) for box, x in zip(boxes, arrays, strict=True))

    return kind(**{name: tree(name) if name in fields else None for name in kind._fields})


def as_leaves(slots: Any, params: Tree) -> list[Any]:
    """For each leaf of the parameters its NamedTuple of arrays, without boxes."""
    return [type(slots)(*(_unboxed(x) for x in row)) for row in _rows(slots, params)]


def with_leaves(slots: Any, new: Sequence[Any], params: Tree) -> Any:
    """`slots` with other arrays, in the boxes of the old: a NamedTuple for each leaf, None for one that stays."""
    _, treedef = boxes_of(params)
    rows = [
        row if leaf is None else [_like(old, x) for old, x in zip(row, leaf, strict=True)]
        for row, leaf in zip(_rows(slots, params), new, strict=True)
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(slots)
    trees = [None if old is None else treedef.unflatten(column) for old, column in zip(slots, columns, strict=True)]
    return type(slots)(*trees)


def _rows(slots: Any, params: Tree) -> list[tuple[Any, ...]]:
    boxes, treedef = boxes_of(params)
    absent = [None] * len(boxes)
    names = type(slots)._fields
    columns = [
        absent if tree is None else flatten_like(treedef, tree, f"{name!r} in the optimizer state")
        for name, tree in zip(names, slots, strict=True)
    ]
    return list(zip(*columns, strict=True)) if names else [()] * len(boxes)


def _boxed(box: Any, x: Any) -> Any:
    if x is None or not is_box(box):
        return x
    (p,), treedef = jax.tree.flatten(box)
    return treedef.unflatten([x]) if x.shape == jnp.shape(p) else x


def _unboxed(x: Any) -> Any:
    return jax.tree.leaves(x)[0] if is_box(x) else x


def _like(old: Any, new: Any) -> Any:
    return jax.tree.structure(old).unflatten([] if new is None else [new])


def in_words(slot: Any) -> str:
    """A slot's arrays, in words."""
    arrays = {name: x for name, x in zip(slot._fields, slot, strict=True) if x is not None}
    return f"{type(slot).__name__}({', '.join(f'{name}{list(jnp.shape(x))}' for name, x in arrays.items())})"


def check_slot(params: Tree, index: int, slot: str, expected: str) -> None:
    """That a parameter's state has the arrays that `init` makes, both as `in_words` has them."""
    if slot != expected:
        raise ValueError(
            f"the state of parameter {leaf_paths(params)[index]!r} is {slot}, and should be {expected}: it was made "
            "for another optimizer, another parameter, or with other options (amsgrad, centered, momentum, ...)"
        )

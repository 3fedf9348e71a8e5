"""torch's modules and flax's: which array is which, and how it lies there.

Example:
  >>> import jax.numpy as jnp, numpy as np
  >>> from jaxopt_port.torch_interop import layout
  >>> weights = {"fc.weight": np.array([[1.0, 2.0]]), "fc.bias": np.array([3.0])}    # torch's state_dict()
  >>> params = {"Dense_0": {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}}      # flax's init()
  >>> mapping = layout.infer(weights, params)
  >>> print(mapping)
  fc.weight [1, 2] = Dense_0/kernel [2, 1] linear
  fc.bias   [1]    = Dense_0/bias   [1]    same
  >>> layout.to_flax(mapping, weights, params)["Dense_0"]["kernel"].tolist()
  [[1.0], [2.0]]
"""

from collections.abc import Mapping as Dict
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.param_groups import is_box, leaf_paths
from jaxopt_port.scalars import float64
from jaxopt_port.torch_interop.array_layout import Kind as Kind
from jaxopt_port.torch_interop.array_layout import Layout as Layout
from jaxopt_port.torch_interop.array_layout import Shape
from jaxopt_port.torch_interop.array_layout import convolution as convolution
from jaxopt_port.torch_interop.array_layout import flattened as flattened
from jaxopt_port.torch_interop.array_layout import from_heads as from_heads
from jaxopt_port.torch_interop.array_layout import linear as linear
from jaxopt_port.torch_interop.array_layout import same as same
from jaxopt_port.torch_interop.array_layout import to_heads as to_heads
from jaxopt_port.torch_interop.array_layout import transposed_convolution as transposed_convolution
from jaxopt_port.torch_interop.as_array import as_array
from jaxopt_port.torch_interop.module_pairs import Entry as Entry
from jaxopt_port.torch_interop.module_pairs import Pairing, flax_modules, torch_modules
from jaxopt_port.torch_interop.module_pairs import Source as Source

Tree = Any
COLLECTIONS = ("params", "batch_stats")
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Mapping:
    """Which array of torch's is which of flax's. `print(mapping)` shows it.

    Args:
      entries: in torch's order, that of `module.state_dict()`.
    """

    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        rows = [
            (
                e.source.name + (f" part {e.source.part + 1} of {e.source.parts}" if e.source.parts > 1 else ""),
                str(list(e.layout.torch)),
                e.path,
                str(list(e.layout.flax)),
                e.layout.name,
            )
            for e in self.entries
        ]
        widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
        return "\n".join(
            "{} {} = {} {} {}".format(*(text.ljust(width) for text, width in zip(row, widths, strict=True))).rstrip()
            for row in rows
        )

    def by_name(self) -> dict[str, list[Entry]]:
        """The entries of each of torch's arrays, in torch's order."""
        entries: dict[str, list[Entry]] = {}
        for entry in self.entries:
            entries.setdefault(entry.source.name, []).append(entry)
        return entries


def infer(
    torch: Dict[str, Any],
    flax: Tree,
    pairs: Dict[str, str] | None = None,
    layouts: Dict[str, Kind] | None = None,
) -> Mapping:
    """Find which array of torch's is which of flax's, from names and shapes.

    Layers are paired that have the same name (`layers.0.norm`, `layers_0/norm`), that are the only ones of their
    shapes, or that have equal shapes and names whose numbers run alike (`net.0`, `net.2` and `Dense_0`, `Dense_1`).
    Nothing is guessed: what is left over, or could be two things, is an error that lists it.

    Known are Linear, Conv1d, Conv2d, Conv3d, their transposes, BatchNorm, LayerNorm, GroupNorm, RMSNorm, Embedding,
    MultiheadAttention and bare parameters; in flax linen and nnx. torch's `num_batches_tracked` has no counterpart, and
    statistics are left out where `flax` has none.

    Args:
      torch: torch's `module.state_dict()`: arrays, or their shapes, by name, in torch's order. Leave out what flax does
        not have twice, a weight that is tied to another.
      flax: the parameters, `{"params": ..., "batch_stats": ...}`, or an nnx state with both; arrays or shapes
        (`jax.eval_shape`).
      pairs: torch's layers and flax's, `{"down.0": "Block_0/Conv_2"}`, to be taken as they are.
      layouts: how an array lies, where shapes do not tell: `{"fc.weight": layout.flattened(64, 4, 4)}` for the first
        linear layer after a convolution, `{"fc.weight": layout.linear}` where the flax network puts channels first
        before it flattens; `{"up.weight": layout.transposed_convolution}`.

    Returns:
      The mapping.

    Raises:
      ValueError: an array without a counterpart, and one that could be several things, with all of them.
    """
    layouts = layouts or {}
    shapes = {name: _shape(name, value) for name, value in torch.items() if not name.endswith("_extra_state")}
    flax_shapes = {path: tuple(leaf.shape) for path, leaf in _leaves(flax)}
    if not any(path.endswith(("/mean", "/var")) for path in flax_shapes):
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith(STATISTICS)}
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
    theirs = torch_modules(shapes)
    attention = any("query.weight" in module.arrays for module in theirs)
    pairing = Pairing(theirs, flax_modules(flax_shapes, attention), layouts)
    _check_known(shapes, pairing, pairs or {}, layouts)
    for torch_name, flax_name in (pairs or {}).items():
        pairing.pair(torch_name, flax_name)
    pairing.by_name()
    pairing.by_shape()
    order = {name: at for at, name in enumerate(shapes)}
    ways = sorted(
        (way for pair in pairing.found for way in pair), key=lambda way: (order[way[0].source.name], way[0].source.part)
    )
    _check(pairing, ways, layouts)
    return Mapping(tuple(way[0] for way in ways))


def to_flax(mapping: Mapping, torch: Dict[str, Any], flax: Tree) -> Tree:
    """torch's weights as flax has them.

    A `running_var` is taken as it is: in evaluation it is the same. In training torch averages the unbiased variance of
    a batch and flax the biased one: see `unbiased_var`.

    Args:
      mapping: from `infer`.
      torch: torch's `module.state_dict()`.
      flax: the tree to fill, as given to `infer`, or a part of it. Its dtypes are kept.

    Returns:
      A tree like `flax`.

    Raises:
      ValueError: an array that `torch` lacks, or of another shape than in the mapping; a complex one for a real leaf.
    """
    entries = {entry.path: entry for entry in mapping.entries}
    boxes, treedef = jax.tree.flatten(flax, is_leaf=is_box)
    new = []
    for (path, leaf), box in zip(_leaves(flax), boxes, strict=True):
        if path not in entries:
            raise ValueError(f"{path!r} is not in the mapping: infer it with the whole tree")
        array = flax_array(entries[path], torch)
        if np.iscomplexobj(array) and not jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(f"{entries[path].source.name!r} is {array.dtype}, {path!r} in flax is {leaf.dtype}")
        with float64():
            new.append(jax.tree.structure(box).unflatten([jnp.array(array.astype(leaf.dtype), leaf.dtype)]))
    return treedef.unflatten(new)


def to_torch(mapping: Mapping, flax: Tree) -> dict[str, np.ndarray]:
    """flax's weights as torch has them: for `module.load_state_dict`, after `torch.from_numpy` for each.

    `num_batches_tracked` is left out, which torch accepts. For a running variance see `unbiased_var`.

    Args:
      mapping: from `infer`.
      flax: a tree as given to `infer`, or its parameters alone.

    Returns:
      Arrays by torch's names, in torch's order: those of which `flax` has all parts.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in _leaves(flax)}
    unknown = leaves.keys() - {entry.path for entry in mapping.entries}
    if unknown:
        raise ValueError(f"not in the mapping: {', '.join(sorted(unknown))}. Infer it with the whole tree")
    return {
        name: torch_array(entries, [leaves[entry.path] for entry in entries])
        for name, entries in mapping.by_name().items()
        if all(entry.path in leaves for entry in entries)
    }


def unbiased_var(before: jax.Array, after: jax.Array, count: int, momentum: float = 0.9) -> jax.Array:
    r"""torch's `running_var` after a training step, of what flax's BatchNorm makes of it.

    .. math:: v + (v' - \mu v) (n / (n - 1) - 1), \quad v' = \mu v + (1 - \mu) \sigma^2

    Args:
      before: flax's `var` before the step, :math:`v`.
      after: the `var` that flax's BatchNorm returned, :math:`v'`.
      count: how many values a channel's statistics are taken over, :math:`n`: batch x height x width.
      momentum: flax's, :math:`\mu`: 1 less torch's.

    Returns:
      The variance to carry on with, in place of `after`.

    Example:
      >>> import jax.numpy as jnp
      >>> print(unbiased_var(jnp.array(1.0), jnp.array(1.25), count=2))
      1.6

    Source: torch.nn.BatchNorm2d, which divides by n - 1 for the running variance and by n to normalize.
    """
    return after + (after - momentum * before) / (count - 1)


def flax_array(entry: Entry, torch: Dict[str, Any]) -> np.ndarray:
    """The array of an entry out of torch's."""
    source, layout = entry.source, entry.layout
    if source.name not in torch:
        raise ValueError(f"{source.name!r}, which is {entry.path!r} in flax, is missing")
    array = as_array(torch[source.name])
    if array.shape != torch_shape([entry]):
        raise ValueError(f"{source.name!r} is {list(array.shape)}, in the mapping {list(torch_shape([entry]))}")
    return layout.to_flax(np.split(array, source.parts)[source.part] if source.parts > 1 else array)


def torch_array(entries: list[Entry], arrays: list[np.ndarray]) -> np.ndarray:
    """torch's array of the arrays of its entries."""
    parts = [entry.layout.to_torch(array) for entry, array in zip(entries, arrays, strict=True)]
    return parts[0].copy() if len(parts) == 1 else np.concatenate(parts)


def torch_shape(entries: list[Entry]) -> Shape:
    """The shape of torch's array, of any of its entries."""
    source, shape = entries[0].source, entries[0].layout.torch
    return shape if source.parts == 1 else (source.parts * shape[0], *shape[1:])


def _leaves(tree: Tree) -> list[tuple[str, Any]]:
    """The paths and arrays of a tree, without linen's names of collections."""
    leaves = list(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))
    if all(path.startswith(tuple(f"{name}/" for name in COLLECTIONS)) for path, _ in leaves):
        leaves = [(path.partition("/")[2], leaf) for path, leaf in leaves]
    return leaves


def _shape(name: str, value: Any) -> Shape:
    shape = getattr(value, "shape", value)
    if not isinstance(shape, tuple | list):
        raise ValueError(
            f"{name!r} is no array but a {type(value).__name__}: pass module.state_dict(), such as checkpoint['model']"
        )
    return tuple(shape)


def _check_known(shapes: Dict[str, Shape], pairing: Pairing, pairs: Dict[str, str], layouts: Dict[str, Kind]) -> None:
    for what, names, known in (
        ("pairs", pairs, pairing.torch),
        ("pairs", pairs.values(), pairing.flax),
        ("layouts", layouts, shapes),
    ):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"{what} names {', '.join(unknown)}, known are: {', '.join(known)}")


def _check(pairing: Pairing, ways: list[list[Entry]], layouts: Dict[str, Kind]) -> None:
    """Raise for everything that is left over or could be several things."""
    wrong = [
        f"{way[0].source.name} {list(way[0].layout.torch)} could be any of: "
        f"{', '.join(entry.layout.name for entry in way)}; say which: layouts={{{way[0].source.name!r}: ...}}"
        for way in ways
        if len(way) > 1
    ]
    wrong += _unflattened([way[0] for way in ways], layouts)
    wrong += _left_over("torch", pairing.torch.values()) + _left_over("flax", pairing.flax.values())
    if wrong:
        raise ValueError("torch's arrays cannot be told in flax's tree:\n  " + "\n  ".join(wrong))


def _left_over(side: str, modules: Any) -> list[str]:
    advice = "has no counterpart that could not be another as well; name the pair: pairs={torch's layer: flax's}"
    return [f"{side}'s {module} {advice}" for module in modules]


def _unflattened(entries: list[Entry], layouts: Dict[str, Kind]) -> list[str]:
    """Linear layers that follow a convolution and of which nobody said in which order its output was flattened."""
    wrong, channels = [], 0
    for entry in entries:
        name, layout = entry.source.name, entry.layout
        if "convolution" in layout.name:
            channels = layout.flax[-1]
        elif "linear" in layout.name:
            inputs = layout.torch[1]
            if channels and inputs > channels and inputs % channels == 0 and name not in layouts:
                wrong.append(
                    f"{name} {list(layout.torch)} follows a convolution with {channels} channels, which torch flattens "
                    f"channels first: say layouts={{{name!r}: layout.flattened({channels}, HEIGHT, WIDTH)}} with "
                    f"HEIGHT x WIDTH = {inputs // channels}, or layout.linear where the flax network transposes first"
                )
            channels = 0
    return wrong

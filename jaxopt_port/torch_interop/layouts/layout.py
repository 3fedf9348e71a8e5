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

import re
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.optimizer import described
from jaxopt_port.param_groups import is_box, leaf_paths
from jaxopt_port.scalars import float64
from jaxopt_port.torch_interop.files.as_array import as_array
from jaxopt_port.torch_interop.layouts.array_layout import Kind as Kind
from jaxopt_port.torch_interop.layouts.array_layout import Layout as Layout
from jaxopt_port.torch_interop.layouts.array_layout import Shape
from jaxopt_port.torch_interop.layouts.array_layout import Source as Source
from jaxopt_port.torch_interop.layouts.array_layout import convolution as convolution
from jaxopt_port.torch_interop.layouts.array_layout import (
    equinox_transposed_convolution as equinox_transposed_convolution,
)
from jaxopt_port.torch_interop.layouts.array_layout import flattened as flattened
from jaxopt_port.torch_interop.layouts.array_layout import from_heads as from_heads
from jaxopt_port.torch_interop.layouts.array_layout import linear as linear
from jaxopt_port.torch_interop.layouts.array_layout import same as same
from jaxopt_port.torch_interop.layouts.array_layout import to_heads as to_heads
from jaxopt_port.torch_interop.layouts.array_layout import transposed_convolution as transposed_convolution
from jaxopt_port.torch_interop.layouts.module_pairs import Entry as Entry
from jaxopt_port.torch_interop.layouts.module_pairs import (
    Pairing,
    flax_modules,
    same_names,
    shortened,
    torch_modules,
)
from jaxopt_port.torch_interop.layouts.unpaired import check_paired

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
                " + ".join(
                    each.name + (f" part {each.part + 1} of {each.parts}" if each.parts > 1 else "")
                    for each in (e.source, e.plus)
                    if each is not None
                ),
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
            for source in (entry.source, entry.plus):
                if source is not None:
                    entries.setdefault(source.name, []).append(entry)
        return entries


def infer(
    torch: Dict[str, Any],
    flax: Tree,
    pairs: Dict[str, str] | None = None,
    layouts: Dict[str, Kind] | None = None,
) -> Mapping:
    r"""Find which array of torch's is which of flax's, from names and shapes.

    A tree with torch's own names and shapes is paired name by name. Layers are paired that have the same name
    (`layers.0.norm`, `layers_0/norm`), that are the only ones of their shapes, or that have equal
    shapes and names whose numbers run alike (`net.0`, `net.2` and `Dense_0`, `Dense_1`). What all of torch's names
    begin with and flax's do not (`module.`, `_orig_mod.`, `model.`) does not count. Nothing is guessed: what is left
    over, or could be two things, is an error that lists it. The linear layers that take a flattened convolution are
    looked for in torch's order of modules, from each convolution to the next; where `torch` may have been sorted, every
    one is asked about that has inputs enough.

    Known are Linear, Conv1d, Conv2d, Conv3d, their transposes, BatchNorm, LayerNorm, GroupNorm, RMSNorm, Embedding,
    MultiheadAttention, LSTM, GRU, RNN and bare parameters; in flax linen, nnx and, but for GRU's biases and running
    statistics, equinox. A recurrent layer is one for each of its layers and directions, `rnn.l0`, `rnn.l0_reverse`;
    where its cell has one bias for torch's two, it gets their sum, and on the way back torch's second is zero. torch's
    `num_batches_tracked` has no counterpart, statistics are left out where `flax` has none, and so is what flax has
    beside floating-point numbers: the keys and counts of nnx's random streams.

    Args:
      torch: torch's `module.state_dict()`: arrays, or their shapes, by name, in torch's order. Leave out what flax does
        not have twice, a weight that is tied to another.
      flax: the parameters, `{"params": ..., "batch_stats": ...}`, an nnx state with both, or an equinox model; arrays
        or shapes (`jax.eval_shape`).
      pairs: torch's layers and flax's, `{"down.0": "Block_0/Conv_2"}`, to be taken as they are. Torch's names here and
        in `layouts` may go without what all begin with.
      layouts: how an array lies, where shapes do not tell: `{"fc.weight": layout.flattened(64, 4, 4)}` for the linear
        layers that take a flattened convolution, `{"fc.weight": layout.linear}` where the flax network puts channels
        first before it flattens; `{"up.weight": layout.transposed_convolution}`; `layout.same` for a weight that lies
        as flax's kernel, `{r".*\.c_(attn|proj|fc)\.weight": layout.same}` for HuggingFace's Conv1D. Keys are names, or
        regular expressions that match the whole of them.

    Returns:
      The mapping.

    Raises:
      TypeError: a module in place of its state dict.
      ValueError: an array without a counterpart, and one that could be several things, with all of them; a name in
        `pairs` or `layouts` that does not exist.

    Example:
      >>> params = {"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> print(infer({"fc.weight": (3, 2), "fc.bias": (3,)}, params))
      fc.weight [3, 2] = head/kernel [2, 3] linear
      fc.bias   [3]    = head/bias   [3]    same
    """
    if not hasattr(torch, "items"):
        raise TypeError(
            f"infer(torch, flax) needs torch's weights by name, module.state_dict(), not {described(torch)}"
        )
    shapes = {name: _shape(name, value) for name, value in torch.items() if not name.endswith("_extra_state")}
    leaves = jax.tree.leaves(flax)
    flax_shapes = {path: tuple(leaves[at].shape) for path, at in weight_leaves(flax).items()}
    if not any(path.endswith(("/mean", "/var", *STATISTICS)) for path in flax_shapes):
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith(STATISTICS)}
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
    order = {name: at for at, name in enumerate(shapes)}
    identical = [] if pairs or layouts or _has_fields(flax) else _identical(shapes, flax_shapes)
    for entry in identical:
        del shapes[entry.source.name], flax_shapes[entry.path]
    theirs = torch_modules(shapes)
    kinds = _known("layouts", layouts or {}, shapes, patterns=True)
    pairing = Pairing(theirs, flax_modules(flax_shapes, theirs), kinds)
    given = _known("pairs", pairs or {}, pairing.torch)
    _check_known("pairs", [name for name in given.values() if name not in pairing.flax], pairing.flax)
    for torch_name, flax_name in given.items():
        pairing.pair(torch_name, flax_name)
    pairing.by_name()
    pairing.by_shape()
    ways = [[entry] for entry in identical] + [way for pair in pairing.found for way in pair]
    ways.sort(key=lambda way: (order[way[0].source.name], way[0].source.part))
    check_paired(pairing, ways, torch)
    return Mapping(tuple(way[0] for way in ways))


def _has_fields(tree: Tree) -> bool:
    """Whether a tree has objects in it, as equinox's modules, whose layouts may be others under the same names."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_box)
    return any(isinstance(key, jax.tree_util.GetAttrKey) for path, _ in paths for key in path)


def _identical(torch: Dict[str, Shape], flax: Dict[str, Shape]) -> list[Entry]:
    """The arrays of a tree with torch's own names and shapes; none where one side has other names, or layouts, too."""
    paths = {path.replace("/", "."): path for path in flax}
    names = {name: paths[same_name] for name, same_name in same_names(torch, paths).items()}
    found = [
        Entry(Source(name, torch[name]), path, layout)
        for name, path in names.items()
        if (layout := same(torch[name], flax[path])) is not None
    ]
    return found if len(found) in (len(torch), len(flax)) else []


def to_flax(mapping: Mapping, torch: Dict[str, Any], flax: Tree) -> Tree:
    """torch's weights as flax has them.

    A `running_var` is taken as it is: in evaluation it is the same. In training torch averages the unbiased variance of
    a batch and flax the biased one: see `unbiased_var`.

    Args:
      mapping: from `infer`.
      torch: torch's `module.state_dict()`.
      flax: the tree to fill, as given to `infer`, or a part of it. Its dtypes are kept.

    Returns:
      A tree like `flax`, with the keys and counts of random streams as they are.

    Raises:
      ValueError: an array that `torch` lacks, or of another shape than in the mapping; one of integers, and a complex
        one for a real leaf.

    Example:
      >>> params = {"head": {"kernel": jnp.zeros((2, 1))}}
      >>> weights = {"fc.weight": np.array([[1.0, 2.0]])}
      >>> to_flax(infer(weights, params), weights, params)["head"]["kernel"]
      Array([[1.],
             [2.]], dtype=float32)
    """
    entries = {entry.path: entry for entry in mapping.entries}
    boxes, treedef = jax.tree.flatten(flax, is_leaf=is_box)
    leaves = jax.tree.leaves(flax)
    for path, at in weight_leaves(flax).items():
        leaf = leaves[at]
        if path not in entries:
            raise ValueError(f"{path!r} is not in the mapping: infer it with the whole tree")
        array = flax_array(entries[path], torch)
        integers = not jnp.issubdtype(array.dtype, jnp.inexact)
        if integers or (np.iscomplexobj(array) and not jnp.issubdtype(leaf.dtype, jnp.complexfloating)):
            raise ValueError(
                f"{entries[path].source.name!r} is {array.dtype}, {path!r} in flax is {leaf.dtype}: cast one of them"
            )
        with float64():
            new = jnp.array(array.astype(leaf.dtype), leaf.dtype)
        boxes[at] = jax.tree.structure(boxes[at]).unflatten([new])
    return treedef.unflatten(boxes)


def to_torch(mapping: Mapping, flax: Tree, tied: Dict[str, str] | None = None) -> dict[str, np.ndarray]:
    """flax's weights as torch has them: for `module.load_state_dict`, after `torch.from_numpy` for each.

    `num_batches_tracked` is left out, which torch accepts. For a running variance see `unbiased_var`.

    Args:
      mapping: from `infer`.
      flax: a tree as given to `infer`, or its parameters alone.
      tied: torch's names that the mapping does not have and the ones that they are tied to,
        `{"lm_head.weight": "embedding.weight"}`: they get the same numbers.

    Returns:
      Arrays by torch's names, in torch's order, then what is tied: those of which `flax` has all parts.

    Raises:
      ValueError: a leaf that is not in the mapping; in `tied` a name that is, or one tied to a name that is not there.

    Example:
      >>> params = {"head": {"kernel": jnp.array([[1.0], [2.0]])}}
      >>> to_torch(infer({"fc.weight": (1, 2)}, params), params)
      {'fc.weight': array([[1., 2.]], dtype=float32)}
    """
    all_leaves = jax.tree.leaves(flax)
    leaves = {path: np.asarray(all_leaves[at]) for path, at in weight_leaves(flax).items()}
    unknown = leaves.keys() - {entry.path for entry in mapping.entries}
    if unknown:
        raise ValueError(f"not in the mapping: {', '.join(sorted(unknown))}. Infer it with the whole tree")
    by_name = mapping.by_name()
    arrays = {
        name: torch_array(name, entries, [leaves[entry.path] for entry in entries])
        for name, entries in by_name.items()
        if all(entry.path in leaves for entry in entries)
    }
    tied = tied or {}
    _check_known("tied", [name for name in tied.values() if name not in arrays], arrays)
    twice = [name for name in tied if name in by_name]
    if twice:
        raise ValueError(f"tied names {', '.join(twice)}, of which the mapping has an array of its own")
    return arrays | {name: arrays[other].copy() for name, other in tied.items()}


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
    array = _part_in_flax(entry, entry.source, torch)
    return array if entry.plus is None else array + _part_in_flax(entry, entry.plus, torch)


def _part_in_flax(entry: Entry, source: Source, torch: Dict[str, Any]) -> np.ndarray:
    if source.name not in torch:
        raise ValueError(f"{source.name!r}, which is {entry.path!r} in flax, is missing: pass the whole state dict")
    array = as_array(torch[source.name])
    if array.shape != torch_shape([entry]):
        raise ValueError(
            f"{source.name!r} is {list(array.shape)}, in the mapping {list(torch_shape([entry]))}: infer the mapping "
            "from this state dict"
        )
    return entry.layout.to_flax(np.split(array, source.parts)[source.part] if source.parts > 1 else array)


def torch_array(name: str, entries: Sequence[Entry], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """torch's array of the arrays of its entries; zero where it is what is added to another of torch's."""
    parts: dict[int, np.ndarray] = {}
    for entry, array in zip(entries, arrays, strict=True):
        moved = entry.layout.to_torch(array)
        if entry.plus is not None and entry.plus.name == name:
            parts[entry.plus.part] = np.zeros_like(moved)
        else:
            parts[entry.source.part] = moved
    return parts[0].copy() if len(parts) == 1 else np.concatenate([parts[part] for part in sorted(parts)])


def torch_shape(entries: list[Entry]) -> Shape:
    """The shape of torch's array, of any of its entries."""
    source, shape = entries[0].source, entries[0].layout.torch
    return shape if source.parts == 1 else (source.parts * shape[0], *shape[1:])


def weight_leaves(tree: Tree) -> dict[str, int]:
    """Which leaf is the array of each path in a mapping, of all that can be torch's: floating-point numbers."""
    paths, leaves = leaf_paths(tree), jax.tree.leaves(tree)
    if all(path.startswith(tuple(f"{name}/" for name in COLLECTIONS)) for path in paths):  # linen's variables
        paths = [path.partition("/")[2] for path in paths]
    return {
        path: i
        for i, path in enumerate(paths)
        if hasattr(leaves[i], "dtype") and jnp.issubdtype(leaves[i].dtype, np.inexact)
    }


def _shape(name: str, value: Any) -> Shape:
    shape = getattr(value, "shape", value)
    if not isinstance(shape, tuple | list):
        raise ValueError(
            f"{name!r} is no array but a {type(value).__name__}: pass module.state_dict(), such as checkpoint['model']"
        )
    return tuple(shape)


def _known(what: str, given: Dict[str, Any], known: Iterable[str], patterns: bool = False) -> dict[str, Any]:
    """What the user gave, by the names in full.

    Raises:
      ValueError: a name that does not exist.
    """
    full = {short: name for names in reversed(shortened(known)) for short, name in names.items()}
    full |= {name: name for name in full.values()}
    found, unknown = {}, []
    for key, value in given.items():
        names = [full[key]] if key in full else _matching(key, full) if patterns else []
        found |= dict.fromkeys(names, value)
        unknown += [] if names else [key]
    _check_known(what, unknown, known)
    return found


def _check_known(what: str, unknown: list[str], known: Iterable[str]) -> None:
    if unknown:
        raise ValueError(f"{what} names {', '.join(unknown)}, known are: {', '.join(known)}")


def _matching(pattern: str, full: Dict[str, str]) -> list[str]:
    """The names that a regular expression matches, short or in full; none where it is not one."""
    try:
        return [name for short, name in full.items() if re.fullmatch(pattern, short)]
    except re.error:
        return []

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

import hashlib
import re
from collections.abc import Iterable
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
from jaxopt_port.torch_interop.files.as_array import as_array
from jaxopt_port.torch_interop.module_pairs import Entry as Entry
from jaxopt_port.torch_interop.module_pairs import Module, Pairing, fits, flax_modules, shortened, torch_modules
from jaxopt_port.torch_interop.module_pairs import Source as Source

Tree = Any
COLLECTIONS = ("params", "batch_stats")
STATISTICS = ("running_mean", "running_var")
LISTED = 4  # layers that an error lists of those that one may be


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
    r"""Find which array of torch's is which of flax's, from names and shapes.

    Layers are paired that have the same name (`layers.0.norm`, `layers_0/norm`), that are the only ones of their
    shapes, or that have equal shapes and names whose numbers run alike (`net.0`, `net.2` and `Dense_0`, `Dense_1`).
    What all of torch's names begin with and flax's do not (`module.`, `_orig_mod.`, `model.`) does not count. Nothing
    is guessed: what is left over, or could be two things, is an error that lists it. The linear layers that take a
    flattened convolution are looked for in torch's order of modules, from each convolution to the next.

    Known are Linear, Conv1d, Conv2d, Conv3d, their transposes, BatchNorm, LayerNorm, GroupNorm, RMSNorm, Embedding,
    MultiheadAttention and bare parameters; in flax linen and nnx. torch's `num_batches_tracked` has no counterpart,
    statistics are left out where `flax` has none, and so is what flax has beside floating-point numbers: the keys and
    counts of nnx's random streams.

    Args:
      torch: torch's `module.state_dict()`: arrays, or their shapes, by name, in torch's order. Leave out what flax does
        not have twice, a weight that is tied to another.
      flax: the parameters, `{"params": ..., "batch_stats": ...}`, or an nnx state with both; arrays or shapes
        (`jax.eval_shape`).
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
      ValueError: an array without a counterpart, and one that could be several things, with all of them; a name in
        `pairs` or `layouts` that does not exist.
    """
    shapes = {name: _shape(name, value) for name, value in torch.items() if not name.endswith("_extra_state")}
    leaves = jax.tree.leaves(flax)
    flax_shapes = {path: tuple(leaves[at].shape) for path, at in weight_leaves(flax).items()}
    if not any(path.endswith(("/mean", "/var")) for path in flax_shapes):
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith(STATISTICS)}
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
    theirs = torch_modules(shapes)
    attention = any("query.weight" in module.arrays for module in theirs)
    kinds = _known("layouts", layouts or {}, shapes, patterns=True)
    pairing = Pairing(theirs, flax_modules(flax_shapes, attention), kinds)
    given = _known("pairs", pairs or {}, pairing.torch)
    _check_known("pairs", [name for name in given.values() if name not in pairing.flax], pairing.flax)
    for torch_name, flax_name in given.items():
        pairing.pair(torch_name, flax_name)
    pairing.by_name()
    pairing.by_shape()
    order = {name: at for at, name in enumerate(shapes)}
    ways = sorted(
        (way for pair in pairing.found for way in pair), key=lambda way: (order[way[0].source.name], way[0].source.part)
    )
    _check(pairing, ways, torch)
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
      A tree like `flax`, with the keys and counts of random streams as they are.

    Raises:
      ValueError: an array that `torch` lacks, or of another shape than in the mapping; a complex one for a real leaf.
    """
    entries = {entry.path: entry for entry in mapping.entries}
    boxes, treedef = jax.tree.flatten(flax, is_leaf=is_box)
    leaves = jax.tree.leaves(flax)
    for path, at in weight_leaves(flax).items():
        leaf = leaves[at]
        if path not in entries:
            raise ValueError(f"{path!r} is not in the mapping: infer it with the whole tree")
        array = flax_array(entries[path], torch)
        if np.iscomplexobj(array) and not jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(f"{entries[path].source.name!r} is {array.dtype}, {path!r} in flax is {leaf.dtype}")
        with float64():
            new = jnp.array(array.astype(leaf.dtype), leaf.dtype)
        boxes[at] = jax.tree.structure(boxes[at]).unflatten([new])
    return treedef.unflatten(boxes)


def to_torch(mapping: Mapping, flax: Tree) -> dict[str, np.ndarray]:
    """flax's weights as torch has them: for `module.load_state_dict`, after `torch.from_numpy` for each.

    `num_batches_tracked` is left out, which torch accepts. For a running variance see `unbiased_var`.

    Args:
      mapping: from `infer`.
      flax: a tree as given to `infer`, or its parameters alone.

    Returns:
      Arrays by torch's names, in torch's order: those of which `flax` has all parts.
    """
    all_leaves = jax.tree.leaves(flax)
    leaves = {path: np.asarray(all_leaves[at]) for path, at in weight_leaves(flax).items()}
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


def weight_leaves(tree: Tree) -> dict[str, int]:
    """Which leaf is the array of each path in a mapping, of all that can be torch's: floating-point numbers."""
    paths, leaves = leaf_paths(tree), jax.tree.leaves(tree)
    if all(path.startswith(tuple(f"{name}/" for name in COLLECTIONS)) for path in paths):  # linen's variables
        paths = [path.partition("/")[2] for path in paths]
    return {path: i for i, path in enumerate(paths) if jnp.issubdtype(leaves[i].dtype, np.inexact)}


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


def _check(pairing: Pairing, ways: list[list[Entry]], torch: Dict[str, Any]) -> None:
    """Raise for everything that is left over or could be several things."""
    wrong = [
        f"{way[0].source.name} {list(way[0].layout.torch)} could be any of: "
        f"{' or '.join(entry.layout.name for entry in way)}; say which: layouts={{{way[0].source.name!r}: ...}}"
        for way in ways
        if len(way) > 1
    ]
    wrong += _unflattened([way[0] for way in ways], pairing.layouts)
    twins = _twins(torch) if pairing.torch else {}
    wrong += [_left_over_torch(module, pairing, twins) for module in pairing.torch.values()]
    wrong += [
        f"flax's {module} has no counterpart: nothing that is left in torch fits it"
        for module in pairing.flax.values()
        if not any(pairing.can_be(name, module.name) for name in pairing.torch)
    ]
    if wrong:
        raise ValueError("torch's arrays cannot be told in flax's tree:\n  " + "\n  ".join(wrong))


def _left_over_torch(module: Module, pairing: Pairing, twins: Dict[str, str]) -> str:
    """Why a layer of torch's was not paired, and what to do."""
    names = dict.fromkeys(source.name for source in module.arrays.values())
    tied = "".join(f"; {name} has the numbers of {twins[name]}" for name in names if name in twins)
    could_be = [str(other) for name, other in pairing.flax.items() if pairing.can_be(module.name, name)]
    if could_be:
        more = f" or {len(could_be) - LISTED} others" if len(could_be) > LISTED else ""
        return (
            f"torch's {module} could be flax's {' or '.join(could_be[:LISTED])}{more}: name the pair, "
            f"pairs={{{module.name!r}: flax's layer}}{f'{tied}: leave out what is tied' if tied else ''}"
        )
    weights = [source.name for source in module.arrays.values() if len(source.shape) > 1]
    for kind in (same, convolution, transposed_convolution):
        layouts = {**pairing.layouts, **dict.fromkeys(weights, kind)}
        if any(fits(module, other, layouts) for other in pairing.flax.values()):
            said = ", ".join(f"{name!r}: layout.{kind.__name__}" for name in weights)
            return f"torch's {module} fits a layer of flax's only with layouts={{{said}}}: say so if it lies like that"
    asked = [name for name in weights if name in pairing.layouts]
    advice = (
        f" with the layout given for {', '.join(asked)}" if asked else f"{tied}; leave out of `torch` what flax lacks"
    )
    return f"torch's {module} has no counterpart: nothing that is left in flax fits it{advice}"


def _twins(torch: Dict[str, Any]) -> dict[str, str]:
    """Of each weight that has the numbers of another, which is tied to it, that other."""
    found: dict[Any, list[str]] = {}
    for name, x in torch.items():
        if len(getattr(x, "shape", ())) > 1:
            found.setdefault((tuple(x.shape), hashlib.sha256(as_array(x).tobytes()).digest()), []).append(name)
    alike = [names for names in found.values() if len(names) > 1]
    return {name: next(other for other in names if other != name) for names in alike for name in names}


def _unflattened(entries: list[Entry], layouts: Dict[str, Kind]) -> list[str]:
    """Linear layers that take a flattened convolution and of which nobody said in which order it was flattened.

    They are the first after a convolution, if it has enough inputs, and others with as many, as a network's heads are.
    """
    wrong, channels, width = [], 0, None
    for entry in entries:
        name, layout = entry.source.name, entry.layout
        if "convolution" in layout.name:
            channels, width = layout.flax[-1], None
        elif "linear" in layout.name:
            inputs = layout.torch[1]
            if width is None:
                width = inputs if channels and inputs > channels and inputs % channels == 0 else 0
            if inputs == width and name not in layouts:
                wrong.append(
                    f"{name} {list(layout.torch)} follows a convolution with {channels} channels, which torch flattens "
                    f"channels first: say layouts={{{name!r}: layout.flattened({channels}, HEIGHT, WIDTH)}} with "
                    f"HEIGHT x WIDTH = {inputs // channels}, or layout.linear where the flax network transposes first "
                    "or the layer takes something else"
                )
    return wrong

"""Which of torch's modules is which of flax's: from their names, and from the shapes of what they hold."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jaxopt_port.torch_interop import array_layout
from jaxopt_port.torch_interop.array_layout import Kind, Layout, Shape

# flax's name of an array and torch's; any other array has the same name in both
TORCH_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
PROJECTIONS = ("query", "key", "value")


class Source(NamedTuple):
    """An array of torch's, or the part of one that is an array in flax."""

    name: str
    shape: Shape  # of the part
    part: int = 0
    parts: int = 1  # equal parts along the first axis


class Entry(NamedTuple):
    """One array in both.

    Args:
      source: torch's name, or which part of it.
      path: flax's `/`-joined path.
      layout: how it moves.
    """

    source: Source
    path: str
    layout: Layout


class Module(NamedTuple):
    """The arrays that belong to one layer: torch's `Source`s or flax's shapes, by torch's name within the layer."""

    name: str
    arrays: Mapping[str, Source]  # of flax's side `Source.name` is the path

    def __str__(self) -> str:
        arrays = (f"{array.name} {list(array.shape)}" for array in self.arrays.values())
        return f"{self.name!r} ({', '.join(arrays)})"

    @property
    def signature(self) -> tuple[tuple[str, Shape], ...]:
        return tuple(sorted((name, array.shape) for name, array in self.arrays.items()))


def torch_modules(shapes: Mapping[str, Shape]) -> list[Module]:
    """torch's layers in order, those of a MultiheadAttention as one with a query, a key, a value and an output."""
    modules: dict[str, dict[str, Source]] = {}
    attention = {name.rpartition(".")[0] for name in shapes if name.endswith(("in_proj_weight", "q_proj_weight"))}
    for name, shape in shapes.items():
        layer, _, array = name.rpartition(".")
        parent, _, last = layer.rpartition(".")
        if layer in attention:
            modules.setdefault(layer, {}).update(_projections(name, array, shape))
        elif last == "out_proj" and parent in attention:
            modules.setdefault(parent, {})[f"out.{array}"] = Source(name, shape)
        elif array in ("weight", "bias", "running_mean", "running_var"):
            modules.setdefault(layer, {})[array] = Source(name, shape)
        else:
            modules[name] = {array: Source(name, shape)}
    return [Module(name, arrays) for name, arrays in modules.items()]


def _projections(name: str, array: str, shape: Shape) -> dict[str, Source]:
    """What an array of MultiheadAttention holds of its three projections."""
    if array in ("in_proj_weight", "in_proj_bias"):
        part, kind = (shape[0] // 3, *shape[1:]), array.removeprefix("in_proj_")
        return {f"{which}.{kind}": Source(name, part, i, 3) for i, which in enumerate(PROJECTIONS)}
    for which in PROJECTIONS:
        if array == f"{which[0]}_proj_weight":
            return {f"{which}.weight": Source(name, shape)}
    return {array: Source(name, shape)}


def flax_modules(shapes: Mapping[str, Shape], attention: bool) -> list[Module]:
    """flax's layers; where torch has a MultiheadAttention, the four layers of an attention as one."""
    modules: dict[str, dict[str, Source]] = {}
    layers = {path.rpartition("/")[0] for path in shapes}
    for path, shape in shapes.items():
        layer, _, array = path.rpartition("/")
        parent, _, last = layer.rpartition("/")
        known = {f"{parent}/{which}".removeprefix("/") for which in (*PROJECTIONS, "out")}
        name = TORCH_NAMES.get(array, array)
        if attention and known <= layers and layer in known:
            modules.setdefault(parent, {})[f"{last}.{name}"] = Source(path, shape)
        elif array in TORCH_NAMES or array == "bias":
            modules.setdefault(layer, {})[name] = Source(path, shape)
        else:
            modules[path] = {name: Source(path, shape)}
    return [Module(name, arrays) for name, arrays in modules.items()]


def fits(torch: Module, flax: Module, layouts: Mapping[str, Kind]) -> list[list[Entry]]:
    """For each array the ways in which it can be the same in both; empty where the layers cannot be the same."""
    if torch.arrays.keys() != flax.arrays.keys():
        return []
    ways = []
    for name, source in torch.arrays.items():
        path, shape = flax.arrays[name].name, flax.arrays[name].shape
        asked = [layouts[source.name]] if source.name in layouts else _kinds(path, len(shape))
        found = _found(asked, source.shape, shape)
        if len(found) > 1:  # a square convolution, and flax's name does not say which kind: torch's may
            found = _found(_convolutions(torch.name), source.shape, shape)
        ways.append([Entry(source, path, layout) for layout in found])
    return ways if all(ways) else []


def _found(kinds: Iterable[Kind], torch: Shape, flax: Shape) -> list[Layout]:
    return [layout for kind in kinds if (layout := kind(torch, flax)) is not None]


def _kinds(path: str, ndim: int) -> list[Kind]:
    """The layouts that an array of flax's may have, from its name and its number of axes."""
    layer, _, array = path.rpartition("/")
    last = layer.rpartition("/")[2]
    if array == "bias":
        return [array_layout.same, array_layout.to_heads]
    if array != "kernel":
        return [array_layout.same]
    if ndim == 2:
        return [array_layout.linear]
    if last in (*PROJECTIONS, "out") and ndim == 3:
        return [array_layout.from_heads if last == "out" else array_layout.to_heads, *_convolutions(last)]
    return _convolutions(last)


def _convolutions(layer: str) -> list[Kind]:
    """The kinds of convolution that a layer of this name may be."""
    name = re.split(r"[./]", layer)[-1].lower()
    if re.search("transpose|deconv", name):
        return [array_layout.transposed_convolution]
    return [array_layout.convolution, *([] if "conv" in name else [array_layout.transposed_convolution])]


class Pairing:
    """Pairs layers as long as there is evidence for a pair: the name, the only shapes, numbers that run alike."""

    def __init__(self, torch: Sequence[Module], flax: Sequence[Module], layouts: Mapping[str, Kind]):
        self.torch = {module.name: module for module in torch}
        self.flax = {module.name: module for module in flax}
        self.layouts = layouts
        self.found: list[list[list[Entry]]] = []  # of each pair the ways in which its arrays fit
        self._known: dict[object, bool] = {}

    def pair(self, torch_name: str, flax_name: str) -> None:
        torch, flax = self.torch.pop(torch_name), self.flax.pop(flax_name)
        found = fits(torch, flax, self.layouts)
        if not found:
            raise ValueError(f"torch's {torch} cannot be flax's {flax}")
        self.found.append(found)

    def can_be(self, torch_name: str, flax_name: str) -> bool:
        torch, flax = self.torch[torch_name], self.flax[flax_name]
        mine = any(source.name in self.layouts for source in torch.arrays.values())
        of_flax = tuple((*each, *_hint(array.name)) for each, array in zip(flax.signature, _ordered(flax), strict=True))
        key = (torch_name if mine else torch.signature, of_flax)
        if key not in self._known:
            self._known[key] = bool(fits(torch, flax, self.layouts))
        return self._known[key]

    def by_name(self) -> None:
        """Layers of the same name: `layers.0.norm` and `layers_0/norm`."""
        named = {_letters(name): name for name in self.flax}
        for name in list(self.torch):
            other = named.get(_letters(name))
            if other is not None and self.can_be(name, other):
                self.pair(name, other)

    def by_shape(self) -> None:
        """The only ones of their shapes, and those of equal shapes whose names are numbered alike."""
        while True:
            pairs = [pair for signature in self._signatures() for pair in self._of(signature)]
            for torch, flax in pairs:
                if torch in self.torch and flax in self.flax:
                    self.pair(torch, flax)
            if not pairs:
                return

    def _signatures(self) -> list[object]:
        return list(dict.fromkeys(module.signature for module in self.torch.values()))

    def _of(self, signature: object) -> list[tuple[str, str]]:
        torch = [name for name, module in self.torch.items() if module.signature == signature]
        flax = [name for name in self.flax if self.can_be(torch[0], name)]
        if len(torch) == len(flax) == 1:
            return [(torch[0], flax[0])]
        theirs, ours = _numbered(torch), _numbered(flax)
        alike = {
            key: [other for other in ours if ours[other].keys() == theirs[key].keys()] for key in theirs
        }  # the names with their numbers left out, and those that run through the same numbers
        return [
            (name, ours[others[0]][at])
            for key, others in alike.items()
            if len(others) == 1 and sum(others[0] in each for each in alike.values()) == 1
            for at, name in theirs[key].items()
            if self.can_be(name, ours[others[0]][at])
        ]


def _ordered(module: Module) -> list[Source]:
    return [module.arrays[name] for name, _ in module.signature]


def _hint(path: str) -> tuple[object, ...]:
    """What `_kinds` makes of a path."""
    return tuple(kind.__name__ for ndim in (3, 4) for kind in _kinds(path, ndim))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _numbered(names: Iterable[str]) -> dict[str, dict[tuple[int, ...], str]]:
    """Names by their text without numbers, then by the ranks of their numbers among those of the same text."""
    texts: dict[str, list[tuple[tuple[int, ...], str]]] = {}
    for name in names:
        texts.setdefault(re.sub(r"\d+", "#", name), []).append((tuple(map(int, re.findall(r"\d+", name))), name))
    ranked: dict[str, dict[tuple[int, ...], str]] = {}
    for text, found in texts.items():
        columns = [sorted(set(column)) for column in zip(*(numbers for numbers, _ in found), strict=True)]
        varying = [i for i, column in enumerate(columns) if len(column) > 1]
        ranked[text] = {tuple(columns[i].index(numbers[i]) for i in varying): name for numbers, name in found}
    return ranked

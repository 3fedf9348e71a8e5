"""Which of torch's modules is which of flax's: from their names, and from the shapes of what they hold."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jaxopt_port.torch_interop.layouts import array_layout, recurrent
from jaxopt_port.torch_interop.layouts.array_layout import Kind, Layout, Shape, Source

# flax's name of an array and torch's; any other array has the same name in both
TORCH_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
PROJECTIONS = ("query", "key", "value")
# the layers of an attention, by flax's names and by equinox's
ATTENTIONS = (
    {**{name: name for name in PROJECTIONS}, "out": "out"},
    {**{f"{name}_proj": name for name in PROJECTIONS}, "output_proj": "out"},
)
# modules that only hold another, wherever they are: of torch.compile, FSDP and activation checkpointing
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class Entry(NamedTuple):
    """One array in both.

    Args:
      source: torch's name, or which part of it.
      path: flax's `/`-joined path.
      layout: how it moves.
      plus: what is added to it in flax: the second bias of a recurrent layer.
    """

    source: Source
    path: str
    layout: Layout
    plus: Source | None = None


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


def shortened(names: Iterable[str]) -> list[dict[str, str]]:
    """torch's names by what is left of them: without wrappers, then without one, two, ... parts that all begin with.

    So names can be compared whose beginnings differ, as `module.`, `_orig_mod.` and `model.` make them.

    Example:
      >>> shortened(["module.fc.weight", "module.fc.bias"])[1]
      {'fc.weight': 'module.fc.weight', 'fc.bias': 'module.fc.bias'}
    """
    parts = {name: [part for part in name.split(".") if part not in WRAPPERS] for name in names}
    columns = list(zip(*parts.values(), strict=False))
    common = next((at for at, column in enumerate(columns) if len(set(column)) > 1), len(columns))
    return [{".".join(each[start:]): name for name, each in parts.items()} for start in range(common + 1)]


def same_names(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Which of `known` each of `names` is, where all of the ones may have a beginning that the others have not.

    Example:
      >>> same_names(["module.fc.weight"], ["fc.weight", "fc.bias"])
      {'module.fc.weight': 'fc.weight'}
    """
    theirs, ours = shortened(names), shortened(known)
    sides = [*((each, ours[0]) for each in theirs), *((theirs[0], each) for each in ours)]
    theirs, ours = max(sides, key=lambda pair: len(pair[0].keys() & pair[1].keys()))
    return {name: ours[short] for short, name in theirs.items() if short in ours}


def torch_modules(shapes: Mapping[str, Shape]) -> list[Module]:
    """torch's layers in order, those of a MultiheadAttention as one with a query, a key, a value and an output.

    A recurrent layer is one for each of its layers and directions: `rnn.l0`, `rnn.l0_reverse`.
    """
    modules: dict[str, dict[str, Source]] = {}
    attention = {name.rpartition(".")[0] for name in shapes if name.endswith(("in_proj_weight", "q_proj_weight"))}
    for name, shape in shapes.items():
        layer, _, array = name.rpartition(".")
        parent, _, last = layer.rpartition(".")
        recurrent_layer = recurrent.layer_and_array(name)
        if recurrent_layer is not None:
            modules.setdefault(recurrent_layer[0], {})[recurrent_layer[1]] = Source(name, shape)
        elif layer in attention:
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


def flax_modules(shapes: Mapping[str, Shape], theirs: Sequence[Module]) -> list[Module]:
    """flax's layers; where torch has a MultiheadAttention or a recurrent layer, the layers of such a one as one."""
    composites: list[Mapping[str, str]] = []
    if any("query.weight" in module.arrays for module in theirs):
        composites += ATTENTIONS
    if any("weight_ih" in module.arrays for module in theirs):
        composites += [{name: name for name in cell} for cell in recurrent.CELLS]
    children: dict[str, set[str]] = {}
    for path in shapes:
        parent, _, last = path.rpartition("/")[0].rpartition("/")
        children.setdefault(parent, set()).add(last)
    whole = {
        parent: composite for parent, names in children.items() for composite in composites if composite.keys() <= names
    }
    modules: dict[str, dict[str, Source]] = {}
    for path, shape in shapes.items():
        layer, _, array = path.rpartition("/")
        parent, _, last = layer.rpartition("/")
        name = TORCH_NAMES.get(array, array)
        recurrent_layer = recurrent.layer_and_array(path.replace("/", "."))
        if last in whole.get(parent, {}):
            modules.setdefault(parent, {})[f"{whole[parent][last]}.{name}"] = Source(path, shape)
        elif recurrent_layer is not None:  # torch's own names, or equinox's
            modules.setdefault(recurrent_layer[0].replace(".", "/"), {})[recurrent_layer[1]] = Source(path, shape)
        elif array in (*TORCH_NAMES, *TORCH_NAMES.values(), "bias"):
            modules.setdefault(layer, {})[name] = Source(path, shape)
        else:
            modules[path] = {name: Source(path, shape)}
    return [Module(name, arrays) for name, arrays in modules.items()]


def fits(torch: Module, flax: Module, layouts: Mapping[str, Kind]) -> list[list[Entry]]:
    """For each array the ways in which it can be the same in both; empty where the layers cannot be the same."""
    sources = recurrent.cell(torch.arrays, flax.arrays)
    if not sources and torch.arrays.keys() == flax.arrays.keys():
        sources = {name: (source, None) for name, source in torch.arrays.items()}
    ways = []
    for name, (source, plus) in sources.items():
        path, shape = flax.arrays[name].name, flax.arrays[name].shape
        asked = [layouts[source.name]] if source.name in layouts else _kinds(path, len(shape), layouts)
        found = _found(asked, source.shape, shape)
        if len(found) > 1 and len(source.shape) > 2:
            found = _told_by_names(found, torch.name, path)
        ways.append([Entry(source, path, layout, plus) for layout in found])
    return ways if all(ways) else []


def _found(kinds: Iterable[Kind], torch: Shape, flax: Shape) -> list[Layout]:
    return [layout for kind in kinds if (layout := kind(torch, flax)) is not None]


def _kinds(path: str, ndim: int, layouts: Mapping[str, Kind]) -> list[Kind]:
    """The layouts that an array of flax's or equinox's may have, from its name and its number of axes."""
    layer, _, array = path.rpartition("/")
    last = layer.rpartition("/")[2]
    if array == "bias":
        return [array_layout.same, array_layout.to_heads, array_layout.bias_of_channels]
    if array == "weight" and ndim > 2:  # equinox's
        return [array_layout.same, array_layout.equinox_transposed_convolution]
    if array != "kernel":
        return [array_layout.same]
    if ndim == 2:  # where one weight lies as flax's does (HuggingFace's Conv1D), any other may
        return [array_layout.linear, *([array_layout.same] if array_layout.same in layouts.values() else [])]
    convolutions = [array_layout.convolution, array_layout.transposed_convolution]
    if last in (*PROJECTIONS, "out") and ndim == 3:
        return [array_layout.from_heads if last == "out" else array_layout.to_heads, *convolutions]
    return convolutions


def _told_by_names(found: list[Layout], torch: str, path: str) -> list[Layout]:
    """Which convolution a square one is: as flax names its class, as one name says, or as both do."""
    layer = path.rpartition("/")[0]
    theirs, ours = _convolution(torch), _convolution(layer)
    if re.search(r"(^|/)Conv_\d+$", layer):  # the class, which torch's name may contradict
        said = "" if theirs == "transposed" else "plain"
    else:
        said = "transposed" if "transposed" in (theirs, ours) else theirs if theirs == ours else ""
    return [layout for layout in found if ("transposed" in layout.name) == (said == "transposed")] if said else found


def _convolution(name: str) -> str:
    """What the name of a layer says of which convolution it is."""
    last = re.split(r"[./]", name)[-1].lower()
    if re.search(r"transpos|deconv|trans_?conv|(^|_)t_?conv|conv_?t(rans)?(?![a-z])", last):
        return "transposed"
    up = re.search(r"(^|[./_])(up|dec|gen)", name.lower())
    return "plain" if re.search(r"(^|_)conv(?![a-z])", last) and not up else ""


class Pairing:
    """Pairs layers as long as there is evidence for a pair: the name, the only shapes, numbers that run alike.

    Args:
      torch: torch's layers.
      flax: flax's.
      layouts: how arrays lie, by torch's names, where that was said.
    """

    def __init__(self, torch: Sequence[Module], flax: Sequence[Module], layouts: Mapping[str, Kind]):
        self.torch = {module.name: module for module in torch}
        self.flax = {module.name: module for module in flax}
        self.layouts = layouts
        self.found: list[list[list[Entry]]] = []  # of each pair the ways in which its arrays fit
        self._known: dict[object, bool] = {}
        texts = {_text(name) for name in self.flax}
        like_flax = max(shortened(self.torch), key=lambda names: len(texts & set(map(_text, names))))
        self._short = {name: short for short, name in like_flax.items()}

    def pair(self, torch_name: str, flax_name: str) -> None:
        """Take two layers for the same.

        Raises:
          ValueError: their arrays do not fit.
        """
        torch, flax = self.torch.pop(torch_name), self.flax.pop(flax_name)
        found = fits(torch, flax, self.layouts)
        if not found:
            raise ValueError(
                f"torch's {torch} cannot be flax's {flax}: name another pair, or say by layouts={{...}} how an array "
                "lies"
            )
        self.found.append(found)

    def can_be(self, torch_name: str, flax_name: str) -> bool:
        """Whether the arrays of two layers fit."""
        torch, flax = self.torch[torch_name], self.flax[flax_name]
        mine = any(source.name in self.layouts for source in torch.arrays.values())
        of_flax = tuple((*each, *_hint(array.name)) for each, array in zip(flax.signature, _ordered(flax), strict=True))
        key = (torch_name if mine else torch.signature, of_flax)
        if key not in self._known:
            self._known[key] = bool(fits(torch, flax, self.layouts))
        return self._known[key]

    def by_name(self) -> None:
        """Layers of the same name: `layers.0.norm` and `layers_0/norm`.

        Those whose names differ in their numbers only are paired where both sides have the same numbers: `conv1`,
        `conv2` and `Conv_0`, `Conv_1` are numbered from different beginnings.
        """
        theirs, ours = self._families(self.torch), _families({name: name for name in self.flax})
        for text, family in theirs.items():
            if text in ours and ours[text].keys() == family.keys():
                for numbers, name in family.items():
                    if self.can_be(name, ours[text][numbers]):
                        self.pair(name, ours[text][numbers])

    def by_shape(self) -> None:
        """The only ones of their shapes, and those of equal shapes whose names are numbered alike."""
        while True:
            pairs = [pair for signature in self._signatures() for pair in self._of(signature)]
            for torch, flax in pairs:
                if torch in self.torch and flax in self.flax:
                    self.pair(torch, flax)
            if not pairs:
                return

    def _families(self, names: Iterable[str]) -> dict[str, dict[tuple[int, ...], str]]:
        return _families({self._short[name]: name for name in names})

    def _signatures(self) -> list[object]:
        return list(dict.fromkeys(module.signature for module in self.torch.values()))

    def _of(self, signature: object) -> list[tuple[str, str]]:
        torch = [name for name, module in self.torch.items() if module.signature == signature]
        flax = [name for name in self.flax if self.can_be(torch[0], name)]
        if len(torch) == len(flax) == 1:
            return [(torch[0], flax[0])]
        theirs = {text: _ranked(family) for text, family in self._families(torch).items()}
        ours = {text: _ranked(family) for text, family in _families({name: name for name in flax}).items()}
        same = {text for text in theirs.keys() & ours.keys() if theirs[text].keys() == ours[text].keys()}
        alike = {
            text: [
                other
                for other in ours
                if (other == text if text in same else other not in same) and ours[other].keys() == theirs[text].keys()
            ]
            for text in theirs
        }  # the families that run through the same ranks; of the same text, if there is one
        return [
            (name, ours[others[0]][at])
            for text, others in alike.items()
            if len(others) == 1 and sum(others[0] in each for each in alike.values()) == 1
            for at, name in theirs[text].items()
            if self.can_be(name, ours[others[0]][at])
        ]


def _ordered(module: Module) -> list[Source]:
    return [module.arrays[name] for name, _ in module.signature]


def _hint(path: str) -> tuple[object, ...]:
    """What `_kinds` makes of a path."""
    return tuple(kind.__name__ for ndim in (3, 4) for kind in _kinds(path, ndim, {}))


def _text(name: str) -> str:
    """The letters of a name, with # for each number: `layers.10.norm` and `layers_10/Norm` are both `layers#norm`."""
    return re.sub("[^a-z#]", "", re.sub(r"\d+", "#", name.lower()))


def _families(names: Mapping[str, str]) -> dict[str, dict[tuple[int, ...], str]]:
    """Names by the texts and numbers of their keys, but not those that have both in common."""
    families: dict[str, dict[tuple[int, ...], list[str]]] = {}
    for key, name in names.items():
        numbers = tuple(map(int, re.findall(r"\d+", key)))
        families.setdefault(_text(key), {}).setdefault(numbers, []).append(name)
    return {
        text: {numbers: found[0] for numbers, found in family.items() if len(found) == 1}
        for text, family in families.items()
    }


def _ranked(family: Mapping[tuple[int, ...], str]) -> dict[tuple[int, ...], str]:
    """Names by the ranks of their numbers among those of the family, without the numbers that are all the same."""
    columns = [sorted(set(column)) for column in zip(*family, strict=True)]
    varying = [i for i, column in enumerate(columns) if len(column) > 1]
    return {tuple(columns[i].index(numbers[i]) for i in varying): name for numbers, name in family.items()}

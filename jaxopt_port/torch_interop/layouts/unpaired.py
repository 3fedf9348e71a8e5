"""What `infer` asks: of layers that found no other, that could be several things, or that may take a flattened one."""

import hashlib
from collections.abc import Mapping
from typing import Any

from jaxopt_port.torch_interop.files.as_array import as_array
from jaxopt_port.torch_interop.layouts.array_layout import Kind, convolution, linear, same, transposed_convolution
from jaxopt_port.torch_interop.layouts.module_order import differ_in_numbers, in_order_of_modules
from jaxopt_port.torch_interop.layouts.module_pairs import Entry, Module, Pairing, fits

KINDS = {  # what a user writes for a layout of this name
    **{kind.__name__: kind.__name__ for kind in (same, linear, convolution)},
    "to heads": "to_heads",
    "from heads": "from_heads",
    "transposed convolution, mirrored": "transposed_convolution",
    "equinox's transposed convolution, mirrored": "equinox_transposed_convolution",
}
LISTED = 4  # layers that an error lists of those that one may be


def check_paired(pairing: Pairing, ways: list[list[Entry]], torch: Mapping[str, Any]) -> None:
    """See whether every layer has found its own, and how it lies.

    Raises:
      ValueError: with everything that is left over, or could be several things, and what to say of it.
    """
    wrong = [
        f"{way[0].source.name} {list(way[0].layout.torch)} could be any of: "
        f"{' or '.join(entry.layout.name for entry in way)}; say which: "
        + " or ".join(f"layouts={{{entry.source.name!r}: layout.{KINDS[entry.layout.name]}}}" for entry in way)
        for way in ways
        if len(way) > 1
    ]
    wrong += _unflattened([way[0] for way in ways], pairing.layouts, list(torch))
    twins = _twins(torch) if pairing.torch else {}
    wrong += [_left_over_torch(module, pairing, twins) for module in pairing.torch.values()]
    wrong += [
        f"flax's {module} has no counterpart: nothing that is left in torch fits it"
        for module in pairing.flax.values()
        if not any(pairing.can_be(name, module.name) for name in pairing.torch)
    ]
    if wrong:
        raise ValueError("torch's arrays cannot be told in flax's tree:\n  " + "\n  ".join(wrong))


def _left_over_torch(module: Module, pairing: Pairing, twins: Mapping[str, str]) -> str:
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
    if asked:
        advice = f" with the layout given for {', '.join(asked)}"
    elif tied:
        both = {name: twins[name] for name in names if name in twins}
        advice = f"{tied}: if it is tied, leave it out of `torch`, and on the way back say to_torch(..., tied={both})"
    else:
        advice = "; leave out of `torch` what flax lacks"
    return f"torch's {module} has no counterpart: nothing that is left in flax fits it{advice}"


def _twins(torch: Mapping[str, Any]) -> dict[str, str]:
    """Of each weight that has the numbers of another, which is tied to it, that other."""
    found: dict[Any, list[str]] = {}
    for name, x in torch.items():
        if len(getattr(x, "shape", ())) > 1:
            found.setdefault((tuple(x.shape), hashlib.sha256(as_array(x).tobytes()).digest()), []).append(name)
    alike = [names for names in found.values() if len(names) > 1]
    return {name: next(other for other in names if other != name) for names in alike for name in names}


def _unflattened(entries: list[Entry], layouts: Mapping[str, Kind], names: list[str]) -> list[str]:
    """Linear layers that take a flattened convolution and of which nobody said in which order it was flattened.

    They are the first after a convolution, if it has enough inputs, and others with as many, as a network's heads are.
    Where `names`, torch's, are not in the order of its modules, or a layer is before all convolutions, it may be any
    with enough inputs, but for those that follow a layer like them with as many outputs.
    """
    layers = [entry for entry in entries if "convolution" in entry.layout.name or "linear" in entry.layout.name]
    everything = {entry.layout.flax[-1] for entry in layers if "convolution" in entry.layout.name}
    in_order = in_order_of_modules(names)
    wrong: list[str] = []
    channels, width, before = 0, None, None  # of the last convolution; of what takes it flattened; the layer before
    for entry in layers:
        name, layout = entry.source.name, entry.layout
        if "convolution" in layout.name:
            channels, width, before = layout.flax[-1], None, None
            continue
        inputs = layout.torch[1]
        after_one = in_order and channels > 0
        if after_one:
            if width is None:
                width = inputs if _flattens(inputs, channels) else 0
            may_be = [channels] if inputs == width else []
        else:
            fed = (
                before is not None and before.layout.torch[0] == inputs and differ_in_numbers(before.source.name, name)
            )
            may_be = [] if fed else sorted(each for each in everything if _flattens(inputs, each))
        before = entry
        if may_be and name not in layouts:
            said = " or ".join(
                f"layouts={{{name!r}: layout.flattened({each}, HEIGHT, WIDTH)}} with HEIGHT x WIDTH = {inputs // each}"
                for each in may_be
            )
            wrong.append(
                f"{name} {list(layout.torch)} {'follows' if after_one else 'may follow'} a convolution with "
                f"{' or '.join(map(str, may_be))} channels, which torch flattens channels first: say {said}, or "
                "layout.linear where the flax network transposes first or the layer takes something else"
            )
    return wrong


def _flattens(inputs: int, channels: int) -> bool:
    return inputs > channels and inputs % channels == 0

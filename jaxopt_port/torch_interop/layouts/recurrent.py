"""torch's LSTM, GRU and RNN, which have all gates in one array and two biases, as flax's and equinox's cells have them.

A cell that has one bias has the sum of torch's two.
"""

import re
from collections.abc import Collection, Mapping

from jaxopt_port.torch_interop.layouts.array_layout import Source

GATES = {4: "ifgo", 3: "rzn", 1: ""}  # of LSTM, GRU and RNN, by their number, in torch's order
CELLS = (
    frozenset(("ii", "if", "ig", "io", "hi", "hf", "hg", "ho")),
    frozenset(("ii", "if_", "ig", "io", "hi", "hf", "hg", "ho")),  # nnx
    frozenset(("ir", "iz", "in", "hr", "hz", "hn")),
    frozenset(("i", "h")),
    frozenset(("dense_i", "dense_h")),  # nnx, all gates in one array
)
ARRAYS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of a layer in torch, and of a cell in equinox


def layer_and_array(name: str) -> tuple[str, str] | None:
    """One layer and direction, and its array, out of torch's name; None where it is not one of these.

    Example:
      >>> layer_and_array("encoder.rnn.weight_ih_l0_reverse"), layer_and_array("cell.bias_hh")
      (('encoder.rnn.l0_reverse', 'weight_ih'), ('cell', 'bias_hh'))
    """
    found = re.fullmatch(r"(?:(.+)\.)?((?:weight|bias)_(?:ih|hh))(?:_(l\d+(?:_reverse)?))?", name)
    return None if found is None else (".".join(filter(None, (found[1], found[3]))), found[2])


def cell(torch: Mapping[str, Source], names: Collection[str]) -> dict[str, tuple[Source, Source | None]]:
    """What the arrays of a cell are of torch's: one, or the sum of two; empty where they are none of them.

    Args:
      torch: the arrays of one of torch's layers.
      names: of the cell's arrays.
    """
    if not {"weight_ih", "weight_hh"} <= torch.keys():
        return {}
    rows, hidden = torch["weight_hh"].shape
    gates = GATES.get(rows // hidden)
    found = {name: _sources(name, gates, torch) for name in names} if gates is not None else {}
    known = {name: both for name, both in found.items() if both is not None}
    used = {source.name for both in known.values() for source in both if source is not None}
    return known if len(known) == len(names) and len(used) == len(torch) else {}


def _sources(name: str, gates: str, torch: Mapping[str, Source]) -> tuple[Source, Source | None] | None:
    """The same of one array: `ii.weight` of a gate, `dense_h.bias` of all, `weight_ih` and `bias` of equinox."""
    found = re.fullmatch(r"(?:(?:dense_)?([ih])([a-z]?)_?\.)?(weight|bias)(?:_([ih])h)?", name)
    if found is None:
        return None
    side, gate, array = found[1] or found[4], found[2] or "", found[3]
    if array == "weight" or found[4] or gate == "n":  # a GRU multiplies what comes from before, with a bias of its own
        names = [f"{array}_{side}h"]
    elif gates == "rzn" and not gate:
        return None
    else:
        names = ["bias_ih", "bias_hh"]
    if gate not in gates or not torch.keys() >= set(names):
        return None
    parts = [_part(torch[each], gates.index(gate), len(gates)) if gate else torch[each] for each in names]
    return parts[0], parts[1] if len(parts) > 1 else None


def _part(whole: Source, part: int, parts: int) -> Source:
    return Source(whole.name, (whole.shape[0] // parts, *whole.shape[1:]), part, parts)

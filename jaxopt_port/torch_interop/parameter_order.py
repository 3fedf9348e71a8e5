"""Which of our parameters is which of torch's: torch numbers them group by group, in the order of the user's lists."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_port.param_groups import leaf_paths
from jaxopt_port.torch_interop import layout
from jaxopt_port.torch_interop.array_layout import Shape
from jaxopt_port.torch_interop.module_pairs import Entry, Source, same_names

SCALARS = ("step", "eta", "mu", "mu_product")  # of a state: what says nothing of the parameter's shape
MANY = 1000  # beginnings of orders that are looked at
NAMES = 'state_dict["param_groups"][0]["param_names"] = '


class Parameter(NamedTuple):
    """One of torch's parameters.

    Args:
      name: torch's, or the path where there is no mapping.
      shape: torch's.
      leaves: which leaves of ours hold it: one, or one for each part.
      entries: how each of them lies in it.
    """

    name: str
    shape: Shape
    leaves: tuple[int, ...]
    entries: tuple[Entry, ...]


def parameters(params: Any, mapping: "layout.Mapping | None") -> list[Parameter]:
    """All parameters in the order of torch's `module.parameters()`; without a mapping in that of the leaves.

    Args:
      params: a tree of parameters; with a mapping one as given to `layout.infer`, without its statistics and random
        streams.
      mapping: from `layout.infer`.

    Raises:
      ValueError: a parameter that is not in the mapping, or not with all its parts in `params`.
    """
    if mapping is None:
        paths = leaf_paths(params)
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
        same = [layout.same(shape, shape) for shape in shapes]
        entries = [Entry(Source(p, s), p, one) for p, s, one in zip(paths, shapes, same, strict=True) if one]
        return [Parameter(e.path, e.layout.torch, (i,), (e,)) for i, e in enumerate(entries)]
    at, found = layout.weight_leaves(params), []
    mapped = {entry.path for entry in mapping.entries}
    missing = [path for path in at if path not in mapped]
    if missing:
        raise ValueError(f"parameters that are not in the mapping: {', '.join(missing)}")
    for name, entries in mapping.by_name().items():
        if name.endswith(layout.STATISTICS):
            continue
        here = [entry.path in at for entry in entries]
        if any(here) and not all(here):
            raise ValueError(f"{name!r} of torch's is {', '.join(e.path for e in entries)}: params has not all of them")
        if all(here):
            leaves = tuple(at[entry.path] for entry in entries)
            found.append(Parameter(name, layout.torch_shape(entries), leaves, tuple(entries)))
    return found


def by_group(state_dict: Mapping[str, Any], known: Sequence[Parameter], named: bool) -> list[list[Parameter]]:
    """The parameters of each of torch's groups, in the order of torch's ids.

    They are known by names, `param_names` or `params` themselves where these are strings, or as the only way to share
    them out, in order, that fits the shapes of the states.

    Args:
      state_dict: torch's.
      known: all parameters, in order.
      named: whether the names have to be those of `known`; they are not used where they are not.

    Raises:
      ValueError: too many or too few parameters, an unknown name or one listed twice, shapes that do not fit or fit in
        two ways.
    """
    groups = state_dict["param_groups"]
    names = _names(groups)
    if names is not None:
        by_name = {parameter.name: parameter for parameter in known}
        full = same_names([name for each in names for name in each], by_name)
        unknown = [name for each in names for name in each if name not in full]
        if not unknown:
            return [[by_name[full[name]] for name in each] for each in names]
        if named:
            raise ValueError(
                f"param_names that are not in the mapping: {', '.join(unknown)}. It has {', '.join(by_name)}"
            )
    sizes = [len(group["params"]) for group in groups]
    left_out = len(known) - sum(sizes)
    if len(groups) == 1 and not left_out:
        return [list(known)]
    shapes = [[state_shape(state_dict["state"].get(i)) for i in group["params"]] for group in groups]
    try:
        return _share_out(known, [*shapes, [None] * left_out])[:-1]
    except ValueError as error:
        if not left_out:
            raise
        raise ValueError(
            f"loaded state dict contains {sum(sizes)} parameters, params {len(known)}: "
            f"{', '.join(p.name for p in known)}. Give params those that torch's optimizer had, or the state dict "
            f"names: {NAMES}[name for name, p in model.named_parameters() if p.requires_grad]. {error}"
        ) from None


def _names(groups: Sequence[Mapping[str, Any]]) -> list[list[str]] | None:
    """The names of each group's parameters, if all groups have them."""
    names: list[list[str]] = [
        list(group["params"] if all(isinstance(i, str) for i in group["params"]) else group.get("param_names") or ())
        for group in groups
    ]
    if any(group["params"] and not each for group, each in zip(groups, names, strict=True)):
        return None
    for number, (group, each) in enumerate(zip(groups, names, strict=True)):
        if len(each) != len(group["params"]):
            raise ValueError(
                f"parameter group {number} of the state dict has {len(each)} param_names for {len(group['params'])} "
                "params: give it one for each"
            )
    counts = Counter(name for each in names for name in each)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"param_names that are in the state dict more than once: {', '.join(twice)}")
    return names


def state_shape(state: Mapping[str, Any] | None) -> Shape | None:
    """The shape of the parameter that a state belongs to, None where it does not tell."""
    state = state or {}
    if "row_var" in state:
        return (*np.shape(state["row_var"])[:-1], np.shape(state["col_var"])[-1])
    return next((np.shape(x) for name, x in state.items() if name not in SCALARS and x is not None), None)


def _share_out(known: Sequence[Parameter], shapes: list[list[Shape | None]]) -> list[list[Parameter]]:
    """Share the parameters out among the groups, in order, where their shapes allow it in one way only."""
    # after each parameter, for how many every group may have by then: in how many ways, and the last one's group
    ways: list[dict[tuple[int, ...], tuple[int, int]]] = [{(0,) * len(shapes): (1, 0)}]
    for parameter in known:
        now: dict[tuple[int, ...], tuple[int, int]] = {}
        for taken, (count, _) in ways[-1].items():
            for group, wanted in enumerate(shapes):
                if taken[group] < len(wanted) and wanted[taken[group]] in (None, parameter.shape):
                    then = (*taken[:group], taken[group] + 1, *taken[group + 1 :])
                    now[then] = (now.get(then, (0, 0))[0] + count, group)
        if len(now) > MANY:
            raise ValueError(
                "loaded state dict does not say which parameters are in which of its groups, and there are too many "
                f"ways to look at them all: give each its names, {NAMES}[...]"
            )
        ways.append(now)
    full = tuple(map(len, shapes))
    count = ways[-1].get(full, (0, 0))[0]
    if not count:
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the parameters: in no order have they the "
            f"shapes of its states. The parameters: {', '.join(f'{p.name} {list(p.shape)}' for p in known)}"
        )
    if count > 1:
        raise ValueError(
            "loaded state dict does not say which parameters are in which of its groups, and their shapes allow more "
            f"than one way: give each its names, {NAMES}[...], of: {', '.join(p.name for p in known)}"
        )
    found: list[list[Parameter]] = [[] for _ in shapes]
    for parameter, way in zip(reversed(known), reversed(ways), strict=False):
        group = way[full][1]
        found[group].insert(0, parameter)
        full = (*full[:group], full[group] - 1, *full[group + 1 :])
    return found

"""Which of our parameters is which of torch's: torch numbers them group by group, in the order of the user's lists."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_port.param_groups import leaf_paths
from jaxopt_port.torch_interop.layouts import layout
from jaxopt_port.torch_interop.layouts.array_layout import Shape
from jaxopt_port.torch_interop.layouts.module_order import in_doubt, is_sorted
from jaxopt_port.torch_interop.layouts.module_pairs import Entry, Source, same_names

SCALARS = ("step", "eta", "mu", "mu_product")  # of a state: what says nothing of the parameter's shape
MANY = 1000  # ends of orders that are looked at
GIVE_NAMES = 'Give each group its names: state_dict["param_groups"][0]["param_names"] = [...]'
SAY_ORDER = (
    "Say torch's order: param_names=[name for name, _ in model.named_parameters()], or the names in "
    "model.state_dict() as a .pt file has them"
)


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


class Order(NamedTuple):
    """All parameters in the order in which torch numbers them, as far as it is known.

    Args:
      parameters: in that order.
      names: everything that is in that order, statistics and what is not trained too.
      said: whether somebody said so.
      left_out: the parameters that were not named then.
    """

    parameters: list[Parameter]
    names: list[str]
    said: bool
    left_out: list[Parameter]

    def check(self, inside: Iterable[Parameter], by_shape: bool = True) -> None:
        """See whether the order of some of the parameters is known.

        Args:
          inside: the parameters.
          by_shape: whether shapes tell them apart, so that the order of equal ones is what counts.

        Raises:
          ValueError: the order might be one that a sort has made.
        """
        alike: dict[Shape | None, list[str]] = {}
        for parameter in inside:
            alike.setdefault(parameter.shape if by_shape else None, []).append(parameter.name)
        for names in alike.values():
            pair = None if self.said else in_doubt(names, self.names)
            if pair is not None:
                raise ValueError(
                    f"which of torch's parameters comes first, {pair[0]!r} or {pair[1]!r}? torch numbers them in the "
                    "order of its modules, and these may have been sorted, as JAX and safetensors sort the keys of "
                    f"dicts. {SAY_ORDER}"
                )


def parameters(params: Any, mapping: "layout.Mapping | None", param_names: Iterable[str] | None) -> Order:
    """The parameters in the order of torch's `module.parameters()`.

    Args:
      params: a tree of parameters; with a mapping one as given to `layout.infer`, without its statistics and random
        streams.
      mapping: from `layout.infer`. Its order is taken for torch's; without it that of the leaves.
      param_names: torch's names in torch's order, or paths in `params`; other names do not matter, and parameters that
        are not named are left out.

    Raises:
      ValueError: a parameter that is not in the mapping, or not with all its parts in `params`.
    """
    found = _of_leaves(params) if mapping is None else _of_mapping(params, mapping)
    if param_names is None:
        return Order(found, [p.name for p in found] if mapping is None else list(mapping.by_name()), False, [])
    by_name = {parameter.name.replace("/", "."): parameter for parameter in found}
    names = [name.replace("/", ".") for name in param_names]
    full = same_names(names, by_name)
    named = [by_name.pop(name) for name in dict.fromkeys(full[name] for name in names if name in full)]
    return Order(named, [], True, list(by_name.values()))


def _of_leaves(params: Any) -> list[Parameter]:
    paths = leaf_paths(params)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    same = [layout.same(shape, shape) for shape in shapes]
    entries = [Entry(Source(p, s), p, one) for p, s, one in zip(paths, shapes, same, strict=True) if one]
    return [Parameter(e.path, e.layout.torch, (i,), (e,)) for i, e in enumerate(entries)]


def _of_mapping(params: Any, mapping: "layout.Mapping") -> list[Parameter]:
    at, found = layout.weight_leaves(params), []
    mapped = {entry.path for entry in mapping.entries}
    missing = [path for path in at if path not in mapped]
    if missing:
        raise ValueError(f"parameters that are not in the mapping: {', '.join(missing)}")
    for name, entries in mapping.by_name().items():
        if name.endswith(layout.STATISTICS):
            continue
        sums = [entry.path for entry in entries if entry.plus is not None and entry.path in at]
        if sums:
            raise ValueError(
                f"{sums[0]!r} is the sum of two biases of torch's, of which its optimizer steps each: the state cannot "
                "be carried over, only weights can. A cell can: with arrays weight_ih, weight_hh, bias_ih, bias_hh"
            )
        here = [entry.path in at for entry in entries]
        if any(here) and not all(here):
            raise ValueError(f"{name!r} of torch's is {', '.join(e.path for e in entries)}: params has not all of them")
        if all(here):
            leaves = tuple(at[entry.path] for entry in entries)
            found.append(Parameter(name, layout.torch_shape(entries), leaves, tuple(entries)))
    return found


def by_group(state_dict: Mapping[str, Any], order: Order, named: bool, flat: bool) -> list[list[Parameter]]:
    """The parameters of each of torch's groups, in the order of torch's ids.

    They are known by names, `param_names` or `params` themselves where these are strings, or as the only way to share
    them out, in order, that fits the shapes of the states; or as the way in which the groups follow one another.

    Args:
      state_dict: torch's.
      order: all parameters.
      named: whether the names have to be those of the parameters; they are not used where they are not.
      flat: whether the state is a vector over all of them.

    Raises:
      ValueError: too many or too few parameters, an unknown name or one listed twice, shapes that do not fit or fit in
        two ways; an order that may not be torch's.
    """
    groups, known = state_dict["param_groups"], order.parameters
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
    shapes = [[state_shape(state_dict["state"].get(i)) for i in group["params"]] for group in groups]
    if len(groups) == 1 and not left_out:
        found, only = [list(known)], True
    else:
        found, only = _by_shapes(order, shapes)
    if not only:
        for inside in found:
            order.check(inside)
        spans = "; ".join(" to ".join(dict.fromkeys((inside[0].name, inside[-1].name))) for inside in found if inside)
        warnings.warn(
            "the state dict does not say which parameters are in which of its groups, and their shapes allow more than "
            f"one way: they are taken to follow one another, {spans}. {GIVE_NAMES}",
            stacklevel=3,
        )
    elif len(groups) > 1 or left_out or any(state_dict["state"].values()):
        used = {parameter.shape for inside in found for parameter in inside}
        order.check((parameter for parameter in known if flat or parameter.shape in used), by_shape=not flat)
    return found


def _by_shapes(order: Order, shapes: list[list[Shape | None]]) -> tuple[list[list[Parameter]], bool]:
    """The parameters of each group, and whether it is the only way that fits the shapes of the states."""
    known = order.parameters
    left_out = len(known) - sum(map(len, shapes))
    ways, found = _ways(known, [*shapes, [None] * left_out])
    if ways == 1:
        return found[: len(shapes)], True
    ends = list(accumulate(map(len, shapes)))
    found = [list(known[end - len(each) : end]) for end, each in zip(ends, shapes, strict=True)]
    pairs = zip(known, chain.from_iterable(shapes), strict=False)
    if ways and not left_out and all(shape in (None, parameter.shape) for parameter, shape in pairs):
        return found, False
    remedy = GIVE_NAMES if ways or order.said or not is_sorted(order.names) else SAY_ORDER
    raise ValueError(
        (
            f"loaded state dict contains {len(known) - left_out} parameters, params {len(known)}: say which torch's "
            "optimizer had, param_names=[name for name, p in model.named_parameters() if p.requires_grad]. "
            if left_out
            else "loaded state dict contains a parameter group that doesn't match the parameters. "
        )
        + ("Several ways to share them out have" if ways else "In no order have they")
        + f" the shapes of its states. {'' if left_out else f'{remedy}. '}"
        f"The parameters: {', '.join(f'{p.name} {list(p.shape)}' for p in known)}"
    )


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


def _ways(known: Sequence[Parameter], shapes: list[list[Shape | None]]) -> tuple[int, list[list[Parameter]]]:
    """In how many ways the groups can get the parameters, in order, as their shapes allow: 0, 1 or 2, and one way."""
    # from the last parameter on: how many of theirs the groups may have before it, if they are to get all
    before = [{tuple(map(len, shapes))}]
    for parameter in reversed(known):
        before.append(
            {
                (*have[:group], have[group] - 1, *have[group + 1 :])
                for have in before[-1]
                for group, wanted in enumerate(shapes)
                if have[group] and wanted[have[group] - 1] in (None, parameter.shape)
            }
        )
        if len(before[-1]) > MANY:
            return 2, []
    have, ways = (0,) * len(shapes), 1
    if have not in before.pop():
        return 0, []
    found: list[list[Parameter]] = [[] for _ in shapes]
    for parameter in known:
        after = before.pop()
        one_more = [(*have[:group], have[group] + 1, *have[group + 1 :]) for group in range(len(shapes))]
        into = [
            group
            for group, wanted in enumerate(shapes)
            if one_more[group] in after and wanted[have[group]] in (None, parameter.shape)
        ]
        ways = max(ways, min(len(into), 2))
        found[into[0]].append(parameter)
        have = one_more[into[0]]
    return ways, found

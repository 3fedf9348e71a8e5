"""Parameter groups: which leaf steps with which options. The only file that knows paths and boxes.

Group 0 is the default group, empty or not. Then come the `ParamGroup`s in order; a leaf belongs to the first that
matches it. Groups that were added during a run come last in that order, but take what they match.
"""

import re
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

Which = str | Sequence[str] | Callable[[str, Any], bool]


class ParamGroup:
    """The options of some parameters, as torch's `{"params": [...], "lr": ...}`.

    Args:
      which: which parameters: a regular expression that matches the whole of a `/`-joined path (`"encoder/.*"`), a
        list of such paths (as they are, not patterns), or a predicate `(path, leaf) -> bool`.
      frozen: leave these parameters as they are, and keep no state for them.
      **options: any option of the optimizer, in place of the optimizer's own.

    Raises:
      TypeError: a `which` that is none of the three.
      ValueError: a pattern that is not a regular expression; a path listed twice.

    Example:
      >>> ParamGroup(r".*/bias", weight_decay=0.0)
      ParamGroup('.*/bias', weight_decay=0.0)
      >>> ParamGroup(lambda path, leaf: leaf.ndim >= 2, lr=0.1)  # doctest: +ELLIPSIS
      ParamGroup(<function ...>, lr=0.1)
    """

    def __init__(self, which: Which, *, frozen: bool = False, **options: Any):
        if isinstance(which, str):
            try:
                re.compile(which)
            except re.error as error:
                raise ValueError(f"ParamGroup pattern {which!r} is not a regular expression: {error}") from None
        elif not callable(which):
            if not isinstance(which, Sequence) or not all(isinstance(path, str) for path in which):
                raise TypeError(
                    "ParamGroup needs a pattern, a list of paths or a function (path, leaf) -> bool that says which "
                    f"parameters, as in ParamGroup('.*/bias', lr=0.1), not {reprlib.repr(which)}"
                )
            which = tuple(which)
            twice = _twice(which)
            if twice:
                raise ValueError(f"a parameter group with duplicate parameters: {', '.join(twice)}")
        self.which = which
        self.listed: frozenset[str] = frozenset(which) if isinstance(which, tuple) else frozenset()
        self.frozen = frozen
        self.options: Mapping[str, Any] = options

    def __repr__(self) -> str:
        options = {**({"frozen": True} if self.frozen else {}), **self.options}
        return f"ParamGroup({', '.join([repr(self.which), *(f'{k}={v!r}' for k, v in options.items())])})"

    def matches(self, path: str, leaf: Any) -> bool:
        """Whether a parameter with this path is one of the group's, if no group before it has it."""
        if isinstance(self.which, str):
            return re.fullmatch(self.which, path) is not None
        if callable(self.which):
            return bool(self.which(path, leaf))
        return path in self.listed


def _twice(paths: Sequence[str]) -> list[str]:
    return sorted(path for path, count in Counter(paths).items() if count > 1)


def leaf_paths(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """The `/`-joined path of every leaf, the same for a plain tree and for boxes around its leaves.

    nnx variables and partitioned linen parameters are boxes that hold a value in an attribute: its name is dropped.

    Example:
      >>> leaf_paths({"dense": {"bias": 1, "kernel": 2}, "scale": [3]})
      ['dense/bias', 'dense/kernel', 'scale/0']
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf or is_box)
    return ["/".join(map(_key, path)) for path, _ in paths]


def is_box(x: Any) -> bool:
    """Whether `x` is an nnx variable or a flax.core.meta.AxisMetadata (nn.Partitioned, ...) around one array."""
    return (hasattr(type(x), "get_raw_value") or hasattr(type(x), "unbox")) and len(jax.tree.leaves(x)) == 1


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def check_groups(param_groups: Any) -> tuple[ParamGroup, ...]:
    """The groups as a tuple.

    Raises:
      TypeError: it is not a sequence of `ParamGroup`s.
      ValueError: a path is listed twice.
    """
    if not isinstance(param_groups, Sequence) or not all(isinstance(group, ParamGroup) for group in param_groups):
        raise TypeError(
            f"param_groups must be a list of ParamGroups, not {reprlib.repr(param_groups)}: write [ParamGroup(which, "
            "lr=...)], where `which` tells the parameters by their paths"
        )
    listed = [path for group in param_groups if isinstance(group.which, tuple) for path in group.which]
    twice = _twice(listed)
    if twice:
        raise ValueError(f"some parameters appear in more than one parameter group: {', '.join(twice)}")
    return tuple(param_groups)


def assign(groups: Sequence[ParamGroup], params: Any, added: Sequence[ParamGroup] = ()) -> list[int]:
    """The group of every leaf of `params`: 0 for the default group, then by `groups` and `added`, from 1.

    Those that were added match before the others, the last first. They may list paths that others list.

    Raises:
      ValueError: a group matches no leaf at all, or only such as are in groups before it; a listed path does not exist.
    """
    leaves = jax.tree.leaves(params)
    every = (*groups, *added)
    if not every or not leaves:
        return [0] * len(leaves)
    paths = leaf_paths(params)
    shared = _twice(paths)
    if shared:
        raise ValueError(
            f"two parameters have the path {shared[0]!r}, as of {{'a/b': ...}} and {{'a': {{'b': ...}}}}: groups tell "
            "parameters by their paths; rename one"
        )
    matched = [[group.matches(path, leaf) for path, leaf in zip(paths, leaves, strict=True)] for group in every]
    for group, own in zip(every, matched, strict=True):
        _check_matches_something(group, paths, any(own))
    order = [*reversed(range(len(groups), len(every))), *range(len(groups))]
    members = [next((i + 1 for i in order if matched[i][at]), 0) for at in range(len(leaves))]
    for i, group in enumerate(groups):
        taken = {members[at]: paths[at] for at, own in enumerate(matched[i]) if own}
        if max(taken) <= i:
            earlier, path = next(iter(taken.items()))
            raise ValueError(
                f"some parameters appear in more than one parameter group: {group} gets none, since {path!r} and all "
                f"else that it matches is in groups before it, such as {groups[earlier - 1]}, and the first match wins"
            )
    return members


def _check_matches_something(group: ParamGroup, paths: list[str], any_matched: bool) -> None:
    known = f"The paths are: {', '.join(paths)}"
    if isinstance(group.which, tuple):
        known_paths = set(paths)
        missing = [path for path in group.which if path not in known_paths]
        if missing:
            raise ValueError(f"{group} names paths that do not exist: {', '.join(missing)}. {known}")
    if not any_matched:
        regular = " (a pattern is a regular expression for the whole path)" if isinstance(group.which, str) else ""
        raise ValueError(f"{group} matches no parameter{regular}. {known}")

"""Whether names are in the order of torch's modules, or may be in one that a sort has made.

JAX sorts the keys of dicts, and so does safetensors; torch numbers parameters in the order in which modules were made.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise


def is_sorted(names: Iterable[str]) -> bool:
    """Whether names are as a sort puts them: as strings, or part by part as JAX sorts nested dicts.

    Example:
      >>> is_sorted(["0.bias", "0.weight", "10.bias", "2.bias"]), is_sorted(["0.weight", "0.bias"])
      (True, False)
    """
    names = list(names)
    return names in (sorted(names), sorted(names, key=_parts))


def in_doubt(names: Sequence[str], everything: Iterable[str]) -> tuple[str, str] | None:
    """Two neighbours of which nothing says that torch has the first one first; None where there are none.

    Something says so where a sort would have put them the other way round; where they differ in numbers only and these
    go up; and where `everything` is not sorted.

    Args:
      names: in the order that is looked at.
      everything: the names that they are part of, in order.

    Example:
      >>> in_doubt(["layers.9.weight", "layers.10.weight"], everything=["layers.9.weight", "layers.10.weight"])
      >>> in_doubt(["10.weight", "2.weight"], everything=["10.weight", "2.weight"])
      ('10.weight', '2.weight')
      >>> in_doubt(["key", "query"], everything=["key", "query"])
      ('key', 'query')
    """
    by_a_sort = is_sorted(everything)

    def doubtful(one: str, other: str) -> bool:
        if _parts(one) > _parts(other):
            return False
        return not differ_in_numbers(one, other) if _text(one) == _text(other) else by_a_sort

    return next((pair for pair in pairwise(names) if doubtful(*pair)), None)


def in_order_of_modules(names: Sequence[str]) -> bool:
    """Whether names are not sorted, and those that differ in their numbers are in the order of these.

    Example:
      >>> in_order_of_modules(["conv.weight", "conv.bias"]), in_order_of_modules(["2.weight", "2.bias", "0.weight"])
      (True, False)
    """
    families: dict[str, list[list[int]]] = {}
    for name in names:
        families.setdefault(_text(name), []).append(_numbers(name))
    return (len(families) < 2 or not is_sorted(names)) and all(family == sorted(family) for family in families.values())


def differ_in_numbers(one: str, other: str) -> bool:
    """Whether two names are the same but for numbers, which go up.

    Example:
      >>> differ_in_numbers("mlp.0.weight", "mlp.3.weight"), differ_in_numbers("fc_a", "fc_b")
      (True, False)
    """
    return _text(one) == _text(other) and _numbers(one) < _numbers(other)


def _parts(name: str) -> list[str]:
    return re.split(r"[./]", name)


def _text(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]

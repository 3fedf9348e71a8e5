"""KEY=VALUE: what `--option` and `--scheduler-option` say, as keyword arguments of a factory."""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from train.errors import UsageError

Factory = Callable[..., Any]

# Parameters of a factory that have a flag of their own, or that torch has not.
NO_OPTIONS = ("lr", "param_groups", "factored_axes", "weight_dimension_numbers")


def keywords(flag: str, owner: str, texts: Sequence[str], factory: Factory) -> dict[str, Any]:
    """The keyword arguments of a factory.

    Args:
      flag: where the texts come from, for messages.
      owner: the factory's name, for messages.
      texts: each KEY=VALUE, with a Python literal or a word; of the same key the last counts.
      factory: its signature says what there is, and what a value has to look like.

    Raises:
      UsageError: there is no such option, or it takes no such value.
    """
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(factory).parameters.items()
        if name not in NO_OPTIONS
    }
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, written = text.partition("=")
        if not equals:
            raise UsageError(f"{flag} {text}: write KEY=VALUE, such as {next(iter(known))}=VALUE")
        if key not in known:
            raise UsageError(f"{flag} {text}: {owner} has no such option; it has {', '.join(known)}")
        value = _literal(written)
        if not _alike(value, known[key]):
            raise UsageError(f"{flag} {text}: {_remedy(key, known[key])}")
        options[key] = value
    return options


def written(options: Mapping[str, Any]) -> str:
    """Options as a user writes them."""
    return " ".join(f"{key}={value}" for key, value in options.items()) or "no options"


def _literal(text: str) -> Any:
    """The value of a Python literal, lists as tuples, and of anything else the text itself."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value


def _alike(value: Any, default: Any) -> bool:
    """Whether an option with this default could have the value: a number for a number, two for two."""
    if isinstance(default, tuple):
        return (
            isinstance(value, tuple)
            and len(value) == len(default)
            and all(_alike(one, other) for one, other in zip(value, default, strict=True))
        )
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return default is not inspect.Parameter.empty or not isinstance(value, str)


def _remedy(key: str, default: Any) -> str:
    if isinstance(default, tuple):
        return f"{key} takes {len(default)} numbers, such as {key}={','.join(map(str, default))}"
    if isinstance(default, bool):
        return f"{key} is True or False, such as {key}={default}"
    if default is inspect.Parameter.empty:
        return f"{key} takes a number, or some, such as {key}=10 or {key}=10,20"
    return f"{key} takes a number, such as {key}={default}"

"""What stands in a file for an object that is not plain data."""

import reprlib
from typing import Any


class Unknown:
    """A placeholder for an object, a class or a function of a file: what the pickle says of it. Nothing of it was run.

    Two are equal where they are the same object. `jax.tree` takes one for a leaf.

    Attributes:
      module: where its class, or the function that made it, comes from: `"omegaconf.dictconfig"`.
      name: of the class or function: `"DictConfig"`.
      args: what the file calls it with, a tuple; None for a class or a function itself.
      kwargs: the same by name.
      state: its attributes, most often a dict; None where it has none.
      items: what was appended to it, or `(key, value)` pairs where it is a kind of dict.

    Example:
      >>> Unknown("omegaconf.dictconfig", "DictConfig", (), state={"_content": {"lr": 0.1}})
      Unknown(omegaconf.dictconfig.DictConfig, args=(), state={'_content': {'lr': 0.1}})
    """

    __slots__ = ("args", "items", "kwargs", "module", "name", "state")

    def __init__(
        self,
        module: str,
        name: str,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        state: Any = None,
    ):
        self.module = module
        self.name = name
        self.args = args
        self.kwargs = kwargs or {}
        self.state = state
        self.items: list[Any] = []

    @property
    def full(self) -> str:
        """Module and name."""
        return f"{self.module}.{self.name}"

    def __repr__(self) -> str:
        parts = [] if self.args is None else [f"args={_short.repr(self.args)}"]
        parts += [f"{key}={_short.repr(x)}" for key in ("kwargs", "state", "items") if (x := getattr(self, key))]
        return f"Unknown({', '.join([self.full, *parts])})"


class _Short(reprlib.Repr):
    """Python's text of containers, cut where it is long, with nothing of another placeholder but its name."""

    def repr_instance(self, x: Any, level: int) -> str:
        return f"Unknown({x.full}, ...)" if isinstance(x, Unknown) else super().repr_instance(x, level)


_short = _Short()
_short.maxlevel = 4
_short.maxdict = _short.maxlist = _short.maxtuple = 8
_short.maxstring = _short.maxother = 60

"""Layer by layer: each of the port's from torch's own input to it, for models of flax's linen and nnx.

The output of every layer that has a counterpart in torch is taken down and torch's put in its place, so that nothing
accumulates: what is off is the layer itself, or the plain code before it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.compare.trace import Arrays

Swap = Callable[[str, str, Any, Any], Any]  # path, class, arguments, output -> output


class Layer(NamedTuple):
    """A call of a layer: ours and torch's, each as ours lies; None where torch's was not recorded."""

    kind: str
    input: tuple[np.ndarray, np.ndarray] | None
    output: tuple[np.ndarray, np.ndarray]


def pairs(mapping: Any, given: Mapping[str, str] | None) -> dict[str, str]:
    """torch's module for each of flax's, by `/`-joined path: those of whom an array is paired, and what holds them."""
    found: dict[str, str] = {}
    for entry in mapping.entries:
        torch, flax = entry.source.name.split(".")[:-1], entry.path.split("/")[:-1]
        if entry.source.parts > 1:
            continue
        found.setdefault("/".join(flax), ".".join(torch))
    return {path: name for path, name in found.items() if path and name} | {
        flax: torch for torch, flax in (given or {}).items()
    }


def like_torch(ours: Any, torch: np.ndarray) -> np.ndarray | None:
    """torch's output as ours lies: channels last, batch first; None where it is something else."""
    shape = tuple(ours.shape)
    ways = [torch]
    if torch.ndim >= 3:
        ways += [np.moveaxis(torch, 1, -1), np.swapaxes(torch, 0, 1)]
    return next((x for x in ways if x.shape == shape), None)


def called(
    loss: Callable[..., Any], arguments: tuple[Any, ...], paired: Mapping[str, str], outputs: Arrays, inputs: Arrays
) -> dict[str, Layer]:
    """The port's layers by torch's names, in the order in which they are called.

    Args:
      loss: the port's.
      arguments: of it.
      paired: torch's modules, by flax's paths.
      outputs: torch's; a second call of a module is `name#1`.
      inputs: torch's.
    """
    kinds: dict[str, str] = {}
    torchs: dict[str, np.ndarray] = {}  # by the kind of array and torch's name, as ours lies

    def run(*arguments: Any) -> dict[str, jax.Array]:
        taken: dict[str, jax.Array] = {}
        calls: dict[str, int] = {}
        kinds.clear()

        def take(key: str, ours: Any, torch: np.ndarray | None) -> np.ndarray | None:
            other = None if torch is None or not hasattr(ours, "shape") else like_torch(ours, torch)
            if other is not None:
                taken[key], torchs[key] = ours, other
            return other

        def swap(path: str, kind: str, args: Any, output: Any) -> Any:
            name = paired.get(path)
            if name is None:
                return output
            key = f"{name}#{calls[name]}" if calls.get(name) else name
            calls[name] = calls.get(name, 0) + 1
            carry = isinstance(output, tuple) and len(output) == 2
            tensor = output[1] if carry else output
            other = take(f"output/{key}", tensor, outputs.get(key))
            if other is None:
                return output
            kinds[key] = kind
            take(f"input/{key}", next((x for x in args if hasattr(x, "shape")), None), inputs.get(key))
            forced = jnp.asarray(other, tensor.dtype)
            return (output[0], forced) if carry else forced

        with _linen(swap), _nnx(swap):
            loss(*arguments)
        return taken

    ours = {key: np.asarray(x) for key, x in jax.jit(run)(*arguments).items()}
    both = {key: (x, torchs[key]) for key, x in ours.items()}
    return {name: Layer(kind, both.get(f"input/{name}"), both[f"output/{name}"]) for name, kind in kinds.items()}


@contextmanager
def _linen(swap: Swap) -> Iterator[None]:
    try:
        from flax import linen
    except ImportError:
        yield
        return

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name not in ("__call__", "attend"):
            return output
        return swap("/".join(context.module.path), type(context.module).__name__, args, output)

    with linen.intercept_methods(intercept):
        yield


@contextmanager
def _nnx(swap: Swap) -> Iterator[None]:
    """`__call__` of every nnx class, while this lasts; names are the paths from the outermost module that is called."""
    try:
        from flax import nnx
    except ImportError:
        yield
        return
    paths: dict[int, str] = {}
    inside: list[int] = []  # the modules whose calls are under way

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if id(self) in inside:  # a call of the class that it extends
                return original(self, *args, **kwargs)
            if not inside:
                paths.clear()
                paths.update({id(m): "/".join(map(str, path)) for path, m in nnx.iter_modules(self)})
            inside.append(id(self))
            try:
                output = original(self, *args, **kwargs)
            finally:
                inside.pop()
            return swap(paths.get(id(self), ""), type(self).__name__, args, output)

        return call

    classes = [each for each in _subclasses(nnx.Module) if "__call__" in vars(each)]
    originals = [vars(each)["__call__"] for each in classes]
    for each, original in zip(classes, originals, strict=True):
        each.__call__ = wrapped(original)
    try:
        yield
    finally:
        for each, original in zip(classes, originals, strict=True):
            each.__call__ = original


def _subclasses(kind: type) -> set[type]:
    return {kind, *(x for sub in kind.__subclasses__() for x in _subclasses(sub))}

"""Layer by layer: each of the port's from torch's own input to it, for models of flax's linen and nnx.

The output of every layer that has a counterpart in torch is taken down and torch's put in its place, so that nothing
accumulates: what is off is the layer itself, or the plain code before it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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


def ways(ours: Any, torch: Any) -> list[Any]:
    """torch's array as ours may lie: the same, channels last, batch first; none where it is something else."""
    found = [torch, *([jnp.moveaxis(torch, 1, -1), jnp.swapaxes(torch, 0, 1)] if torch.ndim >= 3 else [])]
    return [x for x in found if x.shape == tuple(ours.shape)]


def nearest(ours: jax.Array, found: list[Any]) -> jax.Array:
    """The one of several of the same shape that is nearest to ours."""
    if len(found) == 1:
        return jnp.asarray(found[0])
    stacked = jnp.stack(found)
    apart = jnp.abs(stacked - ours).reshape(len(found), -1).sum(1)
    return stacked[jnp.argmin(jnp.where(jnp.isnan(apart), jnp.inf, apart))]


def called(
    loss: Callable[..., Any],
    arguments: tuple[Any, ...],
    paired: Mapping[str, str],
    outputs: Sequence[Arrays],
    inputs: Arrays,
) -> list[dict[str, Layer]]:
    """The port's layers by torch's names, in the order in which they are called.

    Args:
      loss: the port's.
      arguments: of it.
      paired: torch's modules, by flax's paths.
      outputs: torch's, once or more often; a second call of a module is `name#1`.
      inputs: torch's.

    Returns:
      The layers with each of `outputs`.
    """
    kinds: dict[str, str] = {}

    def run(arguments: tuple[Any, ...], outputs: Arrays, inputs: Arrays) -> dict[str, tuple[jax.Array, jax.Array]]:
        taken: dict[str, tuple[jax.Array, jax.Array]] = {}
        calls: dict[str, int] = {}
        kinds.clear()

        def take(key: str, ours: Any, torch: Any) -> jax.Array | None:
            found = [] if torch is None or not hasattr(ours, "shape") else ways(ours, torch)
            if not found:
                return None
            taken[key] = ours, nearest(ours, found)
            return taken[key][1]

        def swap(path: str, kind: str, args: Any, output: Any) -> Any:
            name = paired.get(path)
            if name is None:
                return output
            key = f"{name}#{calls[name]}" if calls.get(name) else name
            calls[name] = calls.get(name, 0) + 1
            carry = isinstance(output, tuple) and len(output) == 2
            tensor: Any = output[1] if carry else output
            other = take(f"output/{key}", tensor, outputs.get(key))
            if other is None:
                return output
            kinds[key] = kind
            take(f"input/{key}", next((x for x in args if hasattr(x, "shape")), None), inputs.get(key))
            forced = other.astype(tensor.dtype)
            return (output[0], forced) if carry else forced

        with _linen(swap), _nnx(swap):
            loss(*arguments)
        return taken

    jitted, found = jax.jit(run), []
    for each in outputs:
        both = {key: (np.asarray(a), np.asarray(b)) for key, (a, b) in jitted(arguments, each, inputs).items()}
        found.append({n: Layer(kind, both.get(f"input/{n}"), both[f"output/{n}"]) for n, kind in kinds.items()})
    return found


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

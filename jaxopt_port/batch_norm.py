"""BatchNorm's running statistics, taken anew: torch.optim.swa_utils.update_bn for Flax."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def update_bn(loader: Iterable[Any], model: Any, variables: Tree = None, **kwargs: Any) -> Tree:
    r"""BatchNorm's statistics of averaged weights: torch.optim.swa_utils.update_bn, for Flax.

    .. math:: \mu = \frac{1}{n} \sum_{i=1}^n \mu_i, \quad \sigma^2 = \frac{1}{n} \sum_{i=1}^n \sigma_i^2

    One pass over the loader with every BatchNorm in training mode, and its momentum at :math:`1 - 1/i` in batch
    :math:`i`: the mean over all batches, whatever its statistics were before. The variance of a batch is Flax's, not
    multiplied by torch's :math:`m / (m - 1)` for :math:`m` numbers a channel.

    Args:
      loader: batches; of a tuple or list the first element goes to the model.
      model: a linen module, or an nnx module that has the averaged weights, which is left as it is.
      variables: for linen, `{"params": averaged.params, "batch_stats": batch_stats}`.
      **kwargs: what the model's call takes in training, such as `train=True` for its dropout. BatchNorm is in training
        mode whatever a linen model's call says; so is an nnx model, but for layers that its call tells otherwise.

    Returns:
      For linen the new `batch_stats`; for nnx a copy of the model that has them.

    Raises:
      ImportError: Flax is not installed.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> model = nn.BatchNorm(use_running_average=False)
      >>> variables = model.init(jax.random.key(0), jnp.ones((1, 1)))
      >>> update_bn([jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [5.0]])], model, variables)
      {'mean': Array([3.5], dtype=float32), 'var': Array([0.5], dtype=float32)}

    Source: torch/optim/swa_utils.py.
    """
    return _update_nnx(loader, model, kwargs) if variables is None else _update_linen(loader, model, variables, kwargs)


def _update_linen(loader: Iterable[Any], model: Any, variables: Tree, kwargs: dict[str, Any]) -> Tree:
    import flax.linen as nn

    def with_momentum(momentum: Any) -> Callable[..., Any]:
        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            known = inspect.signature(call).parameters  # a subclass that has others calls BatchNorm's, which comes here
            if not isinstance(context.module, nn.BatchNorm) or "use_running_average" not in known:
                return call(*args, **kwargs)
            with _set(context.module, momentum=momentum, use_running_average=None):
                return call(*args[:1], **{**kwargs, "use_running_average": False})

        return intercept

    @jax.jit
    def step(variables: Tree, stats: Tree, x: Any, momentum: Any) -> Tree:
        with nn.intercept_methods(with_momentum(momentum)):
            _, new = model.apply({**variables, "batch_stats": stats}, x, mutable=["batch_stats"], **kwargs)
        return new["batch_stats"]

    stats = jax.tree_util.tree_map_with_path(_reset, variables.get("batch_stats", {}))
    return _pass(loader, partial(step, variables), stats)


def _update_nnx(loader: Iterable[Any], model: Any, kwargs: dict[str, Any]) -> Any:
    from flax import nnx

    graph, stats, rest = nnx.split(model, nnx.BatchStat, ...)

    @jax.jit
    def step(rest: Tree, stats: Tree, x: Any, momentum: Any) -> Tree:
        merged = nnx.merge(graph, stats, rest)
        merged.train()
        layers = [layer for _, layer in nnx.iter_modules(merged) if isinstance(layer, nnx.BatchNorm)]
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(_set(layer, momentum=momentum))
            merged(x, **kwargs)
        return nnx.state(merged, nnx.BatchStat)

    stats = _pass(loader, partial(step, rest), jax.tree_util.tree_map_with_path(_reset, stats))
    return nnx.merge(graph, stats, rest)


def _pass(loader: Iterable[Any], step: Callable[[Tree, Any, Any], Tree], stats: Tree) -> Tree:
    if not jax.tree.leaves(stats):
        return stats
    for number, batch in enumerate(loader, 1):
        x = batch[0] if isinstance(batch, list | tuple) else batch
        stats = step(stats, x, jnp.float32(1 - 1 / number))
    return stats


def _reset(path: Any, leaf: jax.Array) -> jax.Array:
    """What BatchNorm starts from. Other layers keep statistics of other names."""
    if "mean" in _names(path):
        return jnp.zeros_like(leaf)
    return jnp.ones_like(leaf) if "var" in _names(path) else leaf


def _names(path: Any) -> list[str]:
    """The name of a leaf, and that of the box it may be in."""
    return [str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path[-2:]]


@contextmanager
def _set(module: Any, **attributes: Any) -> Iterator[None]:
    """A layer with other attributes for a while; linen's are frozen."""
    before = {name: getattr(module, name) for name in attributes}
    for name, value in attributes.items():
        object.__setattr__(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)

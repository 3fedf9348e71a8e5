"""BatchNorm's running statistics, taken anew: torch.optim.swa_utils.update_bn for Flax."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def update_bn(
    loader: Iterable[Any], model: Any, variables: Tree = None, *, unbiased: bool = True, **kwargs: Any
) -> Tree:
    r"""BatchNorm's statistics of averaged weights: torch.optim.swa_utils.update_bn, for Flax.

    .. math:: \mu = \frac{1}{n} \sum_{i=1}^n \mu_i, \quad \sigma^2 = \frac{1}{n} \sum_{i=1}^n \sigma_i^2

    One pass over the loader with every BatchNorm in training mode, and its momentum at :math:`1 - 1/i` in batch
    :math:`i`: the mean over all batches, whatever its statistics were before. The variance of a batch is torch's
    unbiased one, Flax's times :math:`m / (m - 1)` for :math:`m` numbers a channel.

    Args:
      loader: batches; of a tuple or list the first element goes to the model.
      model: a linen module, or an nnx module that has the averaged weights, which is left as it is.
      variables: for linen, `{"params": averaged.params, "batch_stats": batch_stats}`.
      unbiased: False for the variance that Flax's BatchNorm takes in training, smaller by :math:`(m - 1) / m`.
      **kwargs: what the model's call takes in training, such as `train=True` for its dropout. BatchNorm is in training
        mode whatever a linen model's call says; so is an nnx model, but for layers that its call tells otherwise.

    Returns:
      For linen the new `batch_stats`; for nnx a copy of the model that has them.

    Raises:
      ImportError: Flax is not installed.
      TypeError: a linen module without its variables, or a model that is not Flax's.
      ValueError: one number a channel, of which there is no unbiased variance, in torch's words.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> model = nn.BatchNorm(use_running_average=False)
      >>> variables = model.init(jax.random.key(0), jnp.ones((1, 1)))
      >>> update_bn([jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [5.0]])], model, variables)
      {'mean': Array([3.5], dtype=float32), 'var': Array([1.], dtype=float32)}

    Source: torch/optim/swa_utils.py.
    """
    if find_spec("flax") is None:
        raise ImportError("update_bn takes models of flax, which is not installed: pip install flax")
    if variables is None:
        from flax import nnx

        if not isinstance(model, nnx.Module):
            raise TypeError(
                "update_bn takes an nnx module, or a linen module with its variables, update_bn(loader, model, "
                f'{{"params": averaged.params, "batch_stats": batch_stats}}), not a {type(model).__name__} alone'
            )
        return _update_nnx(loader, model, unbiased, kwargs)
    return _update_linen(loader, model, variables, unbiased, kwargs)


def _update_linen(loader: Iterable[Any], model: Any, variables: Tree, unbiased: bool, kwargs: dict[str, Any]) -> Tree:
    import flax.linen as nn

    def with_momentum(momentum: Any) -> Callable[..., Any]:
        corrected: list[Any] = []  # a subclass's call may be around BatchNorm's own, which comes here before it

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            known = inspect.signature(call).parameters  # a subclass that has others calls BatchNorm's, which comes here
            if not isinstance(context.module, nn.BatchNorm) or "use_running_average" not in known:
                return call(*args, **kwargs)
            layer, earlier = context.module, len(corrected)
            before = layer.get_variable("batch_stats", "var")
            with _set(layer, momentum=momentum, use_running_average=None):
                y = call(*args[:1], **{**kwargs, "use_running_average": False})
            if unbiased and not any(each is layer for each in corrected[earlier:]):
                correct = _correction(layer, args[0] if args else kwargs["x"], kwargs.get("mask"), momentum)
                after = jax.tree.map(correct, before, layer.get_variable("batch_stats", "var"))
                layer.put_variable("batch_stats", "var", after)
                corrected.append(layer)
            return y

        return intercept

    @jax.jit
    def step(variables: Tree, stats: Tree, x: Any, momentum: Any) -> Tree:
        with nn.intercept_methods(with_momentum(momentum)):
            _, new = model.apply({**variables, "batch_stats": stats}, x, mutable=["batch_stats"], **kwargs)
        return new["batch_stats"]

    stats = jax.tree_util.tree_map_with_path(_reset, variables.get("batch_stats", {}))
    return _pass(loader, partial(step, variables), stats)


def _update_nnx(loader: Iterable[Any], model: Any, unbiased: bool, kwargs: dict[str, Any]) -> Any:
    from flax import nnx

    graph, stats, rest = nnx.split(model, nnx.BatchStat, ...)

    @jax.jit
    def step(rest: Tree, stats: Tree, x: Any, momentum: Any) -> Tree:
        merged = nnx.merge(graph, stats, rest)
        merged.train()
        layers = [layer for _, layer in nnx.iter_modules(merged) if isinstance(layer, nnx.BatchNorm)]
        with ExitStack() as stack:
            for layer in layers:
                own = {"__class__": _unbiased_class(type(layer))} if unbiased else {}
                stack.enter_context(_set(layer, momentum=momentum, **own))
            merged(x, **kwargs)
        return nnx.state(merged, nnx.BatchStat)

    stats = _pass(loader, partial(step, rest), jax.tree_util.tree_map_with_path(_reset, stats))
    return nnx.merge(graph, stats, rest)


@cache
def _unbiased_class(layer_class: Any) -> Any:
    """nnx's BatchNorm, or a subclass of it, with torch's running variance. (nnx has nothing that intercepts a call.)"""

    class Unbiased(layer_class):
        def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            before = self.var[...]
            y = super().__call__(x, *args, **kwargs)
            given = inspect.signature(layer_class.__call__).bind(self, x, *args, **kwargs).arguments
            running = given.get("use_running_average")
            if not (self.use_running_average if running is None else running):
                self.var[...] = _correction(self, x, given.get("mask"), self.momentum)(before, self.var[...])
            return y

    return Unbiased


def _correction(layer: Any, x: jax.Array, mask: jax.Array | None, momentum: Any) -> Callable[..., jax.Array]:
    """`(var before, var after) -> torch's var after`, for a BatchNorm that has seen this."""
    from jaxopt_port.torch_interop.layouts.layout import unbiased_var  # which imports the whole package

    features = {axis % x.ndim for axis in ((layer.axis,) if isinstance(layer.axis, int) else layer.axis)}
    reduced = tuple(axis for axis in range(x.ndim) if axis not in features)
    count: Any = math.prod(x.shape[axis] for axis in reduced)
    if mask is not None:
        count = jnp.sum(jnp.broadcast_to(mask, x.shape), reduced)
    if layer.axis_name is not None:
        count = jax.lax.psum(count, layer.axis_name, axis_index_groups=layer.axis_index_groups)
    if isinstance(count, int) and count < 2:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {list(x.shape)}: use larger "
            "batches, or unbiased=False for Flax's variance"
        )
    count = jnp.maximum(count, 2)  # where a mask leaves one number the variance is 0
    return lambda before, after: unbiased_var(before, after, count, momentum)


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

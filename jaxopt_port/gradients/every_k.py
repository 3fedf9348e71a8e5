"""Gradient accumulation as an optimizer: `every_k`."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.closure.base import ClosureAlgorithm
from jaxopt_port.optimizer import Algorithm, Optimizer, algorithm_of
from jaxopt_port.rule import is_sparse
from jaxopt_port.scalars import float64, is_known

Tree = Any


class EveryKState(NamedTuple):
    """The state of `every_k`, a pytree. `get_hyper`, `set_hyper` and the schedulers find the optimizer's inside.

    Args:
      calls: calls since the last step, 0-d int32: 0 after a step.
      grads: the sum of the gradients since then, the parameters' tree.
      has_grad: for each parameter whether it had a gradient since then, a bool vector.
      state: the optimizer's state.
    """

    calls: jax.Array
    grads: Tree
    has_grad: jax.Array
    state: Any


def every_k(optimizer: Optimizer, k: int, mean: bool = False) -> Optimizer:
    r"""Adds up the gradients of `k` calls and steps in the last of them: `if i % k == 0: optimizer.step()`.

    .. math:: g = \sum_{i=1}^k g_i, \text{ or } \frac{1}{k} \sum_{i=1}^k g_i

    In between the parameters and the optimizer's state stay as they are, and updates are zero. A parameter whose
    gradients were None in all `k` calls does not step. To know whether a call has stepped, see whether
    `state.calls == 0`: a scheduler goes on then. A `GradScaler` around it leaves out of the sum the calls whose
    gradients are not finite, where torch leaves out the step; for that use `accumulate_grad`.

    Args:
      optimizer: the optimizer that steps, of this library.
      k: how many calls.
      mean: step with the mean, as after `(loss / k).backward()`, and not with the sum, as after `loss.backward()`.

    Returns:
      An `Optimizer`, whose state is an `EveryKState`.

    Raises:
      ValueError: `k` is not a positive integer.
      TypeError: an optimizer of another library, or one that evaluates the loss itself; at a call, sparse gradients.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer, params = optim.every_k(optim.sgd(lr=0.5), k=2), {"w": jnp.array([3.0])}
      >>> state = optimizer.init(params)
      >>> for g in (1.0, 2.0):
      ...     params, state = optimizer.step({"w": jnp.array([g])}, state, params)
      ...     print(params["w"])
      [3.]
      [1.5]
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"every_k needs an optimizer of jaxopt_port, not a {type(optimizer).__name__}")
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be an integer of at least 1, not {k!r}")
    if isinstance(getattr(optimizer.update, "__self__", None), ClosureAlgorithm):
        raise TypeError("lbfgs and nonlinear_cg need the loss itself: give their closure the mean over all k batches")
    accumulation = _EveryK(optimizer, k, mean)
    return Optimizer(accumulation.init, accumulation.update)


class _EveryK(Algorithm):
    def __init__(self, optimizer: Optimizer, k: int, mean: bool):
        self.optimizer, self.k, self.mean = optimizer, k, mean

    def frozen_leaves(self, params: Tree) -> list[bool]:
        return algorithm_of(self.optimizer).frozen_leaves(params)

    def init(self, params: Tree) -> Any:
        return EveryKState(
            calls=jnp.zeros((), jnp.int32),
            grads=jax.tree.map(jnp.zeros_like, params),
            has_grad=jnp.zeros(len(jax.tree.leaves(params)), bool),
            state=self.optimizer.init(params),
        )

    def update(self, updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any) -> tuple[Tree, Any]:
        del extra_args
        if params is None:
            raise ValueError("update needs the parameters: call update(grads, state, params)")
        new, state = self.step(updates, state, params)
        return jax.tree.map(lambda n, o: jnp.where(n == o, jnp.zeros_like(o), n - o), new, params), state

    def step(self, grads: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        if not isinstance(state, EveryKState):
            raise TypeError(f"expected the EveryKState that init returned, got a {type(state).__name__}")
        treedef = jax.tree.structure(params)
        with float64():
            totals = jax.tree.leaves(jax.tree.map(_add, params, state.grads, grads))
        given = zip(treedef.flatten_up_to(grads), self.frozen_leaves(params), strict=True)
        absent = [not _is_gradient(g) and not frozen for g, frozen in given]
        has_grad = state.has_grad | ~jnp.array(absent, bool)

        def step() -> tuple[Tree, EveryKState]:
            new, inner = self._step(totals, absent, has_grad, state.state, params)
            calls, grads, none = jax.tree.map(jnp.zeros_like, (state.calls, state.grads, has_grad))
            return new, EveryKState(calls, grads, none, inner)

        def go_on() -> tuple[Tree, EveryKState]:
            return params, EveryKState(state.calls + 1, treedef.unflatten(totals), has_grad, state.state)

        last = state.calls == self.k - 1
        if is_known(last):
            return step() if last else go_on()
        if not any(absent):
            return jax.lax.cond(last, step, go_on)
        like = jax.eval_shape(step)  # The first None makes the optimizer's step counter a vector, in both branches.
        return jax.lax.cond(last, step, lambda: jax.tree.map(_broadcast, go_on(), like))

    def _step(
        self, totals: list[jax.Array], absent: list[bool], has_grad: jax.Array, state: Any, params: Tree
    ) -> tuple[Tree, Any]:
        """The step of those that have a gradient in this call, then of the others, if they had one before."""
        treedef = jax.tree.structure(params)
        if self.mean:
            with float64():
                totals = [total / jnp.asarray(self.k, total.dtype) for total in totals]
        present = [None if none else total for total, none in zip(totals, absent, strict=True)]
        params, state = self.optimizer.step(treedef.unflatten(present), state, params)
        for index in (i for i, none in enumerate(absent) if none):
            alone = [total if i == index else None for i, total in enumerate(totals)]
            new = self.optimizer.step(treedef.unflatten(alone), state, params)
            with float64():
                params, state = jax.tree.map(partial(_where, has_grad[index]), new, (params, state))
        return params, state


def _is_gradient(g: Any) -> bool:
    """Not None, nor the float0 that JAX gives for an integer."""
    return g is not None and g.dtype != jax.dtypes.float0


def _add(p: jax.Array, total: jax.Array, g: Any) -> jax.Array:
    if not _is_gradient(g):
        return total
    if is_sparse(g):
        raise TypeError("every_k cannot add up sparse gradients: add them with accumulate_grad, or give g.todense()")
    if g.shape != p.shape or g.dtype != p.dtype:
        kind = ValueError if g.shape != p.shape else TypeError
        raise kind(f"a gradient is {g.dtype}{list(g.shape)}, its parameter {p.dtype}{list(p.shape)}")
    return total + g


def _where(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return old if new is old else jnp.where(condition, new, old)


def _broadcast(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    return x if x.shape == like.shape else jnp.broadcast_to(x, like.shape)

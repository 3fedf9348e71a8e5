"""Gradient accumulation as an optimizer: `every_k`."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_port.checks import check_grad, flatten_like
from jaxopt_port.closure.base import ClosureAlgorithm
from jaxopt_port.dtypes import is_gradient
from jaxopt_port.lift import Lifted
from jaxopt_port.optimizer import Algorithm, Optimizer, algorithm_of, check_optimizer, check_state
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


def every_k(optimizer: optax.GradientTransformation, k: int, mean: bool = False) -> Optimizer:
    r"""Adds up the gradients of `k` calls and steps in the last of them: `if i % k == 0: optimizer.step()`.

    .. math:: g = \sum_{i=1}^k g_i, \text{ or } \frac{1}{k} \sum_{i=1}^k g_i

    In between the parameters and the optimizer's state stay as they are, and updates are zero. A parameter whose
    gradients were None in all `k` calls does not step. To know whether a call has stepped, see whether
    `state.calls == 0`: a scheduler goes on then. A state with more than `k` calls in it steps at the next. A
    `GradScaler` around it leaves out of the sum the calls whose gradients are not finite, where torch leaves out the
    step; for that use `accumulate_grad`.

    torch clips between the sum and the step, so what clips goes inside: `every_k(optax.chain(clip, optimizer), k)`
    with `optax.clip_by_global_norm(max_norm)`, for example. A chain steps by adding its updates to the parameters,
    which loses last bits; for torch's add up with `accumulate_grad`, then `clip_grad_norm` and `step`.

    Args:
      optimizer: the optimizer that steps, of this library, or a chain with one in it.
      k: how many calls.
      mean: step with the mean, as after `(loss / k).backward()`, and not with the sum, as after `loss.backward()`.

    Returns:
      An `Optimizer`, whose state is an `EveryKState`.

    Raises:
      ValueError: `k` is not a positive integer.
      TypeError: an optimizer that is none, or one that evaluates the loss itself; at a call, sparse gradients, and
        under jit a None gradient for a chain, which cannot be asked to leave a parameter out.

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
    check_optimizer(optimizer, "every_k(optimizer, k)")
    try:
        k = operator.index(k)
    except TypeError:
        raise ValueError(f"k must be an integer of at least 1, not {k!r}") from None
    if k < 1:
        raise ValueError(f"k must be an integer of at least 1, not {k!r}")
    if isinstance(optimizer, Optimizer) and isinstance(algorithm_of(optimizer), ClosureAlgorithm):
        raise TypeError("lbfgs and nonlinear_cg need the loss itself: give their closure the mean over all k batches")
    accumulation = _EveryK(optimizer, k, mean)
    return Optimizer(accumulation.init, accumulation.update)


class _EveryK(Algorithm):
    def __init__(self, optimizer: optax.GradientTransformation, k: int, mean: bool):
        self.optimizer, self.k, self.mean = optimizer, k, mean

    def __repr__(self) -> str:
        return f"every_k({self.optimizer!r}, k={self.k}{', mean=True' if self.mean else ''})"

    def frozen_leaves(self, params: Tree) -> list[bool]:
        inner = self.optimizer
        return (
            algorithm_of(inner).frozen_leaves(params) if isinstance(inner, Optimizer) else super().frozen_leaves(params)
        )

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
        check_state(state, EveryKState, "step(grads, state, params)")
        treedef = jax.tree.structure(params)
        given = flatten_like(treedef, grads, "the gradients")
        for index, (p, g) in enumerate(zip(jax.tree.leaves(params), given, strict=True)):
            if is_sparse(g):
                raise TypeError(
                    "every_k adds up no sparse gradients: add them with accumulate_grad, or give g.todense()"
                )
            if is_gradient(g):
                check_grad(params, index, p, g)
        with float64():
            sums = zip(treedef.flatten_up_to(state.grads), given, strict=True)
            totals = treedef.unflatten([total + g if is_gradient(g) else total for total, g in sums])
        absent = [not is_gradient(g) and not fixed for g, fixed in zip(given, self.frozen_leaves(params), strict=True)]
        has_grad = state.has_grad | ~jnp.array(absent, bool)

        def step() -> tuple[Tree, EveryKState]:
            new, inner = self._step(totals, absent, has_grad, state.state, params)
            calls, grads, none = jax.tree.map(jnp.zeros_like, (state.calls, state.grads, has_grad))
            return new, EveryKState(calls, grads, none, inner)

        def go_on() -> tuple[Tree, EveryKState]:
            return params, EveryKState(state.calls + 1, totals, has_grad, state.state)

        last = state.calls >= self.k - 1
        if is_known(last):
            return step() if last else go_on()
        if not any(absent):
            return jax.lax.cond(last, step, go_on)
        like = jax.eval_shape(step)  # The first None makes the optimizer's step counter a vector, in both branches.
        return jax.lax.cond(last, step, lambda: jax.tree.map(_broadcast, go_on(), like))

    def _step(
        self, totals: Tree, absent: list[bool], has_grad: jax.Array, state: Any, params: Tree
    ) -> tuple[Tree, Any]:
        """One step of those that have a gradient in this call, or had one before."""
        if self.mean:
            with float64():
                totals = jax.tree.map(lambda total: total / jnp.asarray(self.k, total.dtype), totals)
        known = is_known(has_grad)
        moves = [not none or (bool(each) if known else each) for none, each in zip(absent, has_grad, strict=True)]
        inner = algorithm_of(self.optimizer) if isinstance(self.optimizer, Optimizer) else None
        if isinstance(inner, Lifted):
            return inner.masked_step(totals, state, params, moves)
        if not all(isinstance(each, bool) for each in moves):
            raise TypeError(
                "every_k cannot tell a chain under jit which parameters have had no gradient: give a gradient of zeros "
                "in place of None, zero_grad(..., set_to_none=False), or the optimizer alone"
            )
        treedef = jax.tree.structure(params)
        present = [total if each else None for total, each in zip(treedef.flatten_up_to(totals), moves, strict=True)]
        if inner is not None:
            return inner.step(treedef.unflatten(present), state, params)
        updates, state = self.optimizer.update(treedef.unflatten(present), state, params)
        return optax.apply_updates(params, updates), state


def _broadcast(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    return x if x.shape == like.shape else jnp.broadcast_to(x, like.shape)

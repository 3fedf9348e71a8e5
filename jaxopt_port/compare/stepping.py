"""What a port steps with: an optimizer with its scheduler, and several that step in turn."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

Tree = Any


class Scheduled:
    """An optimizer whose scheduler steps with it, as one thing that `follow` can step.

    Args:
      optimizer: of this library.
      scheduler: of `jaxopt_port.lr_scheduler`.
      every: the scheduler steps once for so many steps of the optimizer: 1, or the steps of an epoch.
      metrics: what `reduce_lr_on_plateau` gets each time, torch's own.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> scheduled = Scheduled(optim.sgd(lr=1.0), optim.lr_scheduler.exponential_lr(gamma=0.5))
      >>> params = {"w": jnp.ones(1)}
      >>> state = scheduled.init(params)
      >>> for _ in range(2):
      ...     params, state = scheduled.step({"w": jnp.ones(1)}, state, params)
      >>> params["w"]
      Array([-0.5], dtype=float32)
    """

    def __init__(self, optimizer: Any, scheduler: Any, every: int = 1, metrics: Sequence[float] = ()):
        self.optimizer, self.scheduler, self.every, self.metrics = optimizer, scheduler, every, metrics
        self._step = step_of(optimizer)

    def init(self, params: Tree) -> dict[str, Any]:
        """The first state: the optimizer's, the scheduler's and the count of steps."""
        sched, state = self.scheduler.init(self.optimizer.init(params))
        return {"optimizer": state, "sched": sched, "count": 0}

    def step(self, grads: Tree, state: dict[str, Any], params: Tree) -> tuple[Tree, dict[str, Any]]:
        """The optimizer's step, and where it is time the scheduler's. Returns `(params, state)`."""
        params, inner = self._step(grads, state["optimizer"], params)
        return params, self._scheduled(state, inner)

    def step_closure(self, closure: Any, state: dict[str, Any], params: Tree, *args: Any) -> tuple[Any, Tree, Any]:
        """The same of an optimizer that evaluates the loss. Returns `(loss, params, state)`."""
        loss, params, inner = self.optimizer.step_closure(closure, state["optimizer"], params, *args)
        return loss, params, self._scheduled(state, inner)

    def _scheduled(self, state: dict[str, Any], inner: Any) -> dict[str, Any]:
        """The state after a step that left the optimizer's as `inner`."""
        sched, count = state["sched"], state["count"] + 1
        epoch, rest = divmod(count, self.every)
        if not rest:
            metric = self.metrics[epoch - 1] if epoch <= len(self.metrics) else None
            sched, inner = self.scheduler.step(sched, inner, metric)
        return {"optimizer": inner, "sched": sched, "count": count}


class Several:
    """Optimizers that step one after the other, as torch's Muon and AdamW do."""

    def __init__(self, optimizers: list[Any]):
        self.optimizers = optimizers
        self._steps = [step_of(each) for each in optimizers]

    def init(self, params: Tree) -> list[Any]:
        return [each.init(params) for each in self.optimizers]

    def step(self, grads: Tree, states: list[Any], params: Tree) -> tuple[Tree, list[Any]]:
        new = []
        for step, state in zip(self._steps, states, strict=True):
            params, state = step(grads, state, params)
            new.append(state)
        return params, new


def step_of(optimizer: Any) -> Callable[[Tree, Any, Tree], tuple[Tree, Any]]:
    """`(grads, state, params) -> (params, state)` of an optimizer of this library, of optax, or of one's own."""
    if isinstance(optimizer, Scheduled | Several):
        return optimizer.step
    if hasattr(optimizer, "step"):
        return jax.jit(optimizer.step)

    @jax.jit
    def step(grads: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step

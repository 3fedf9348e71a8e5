"""A run as a whole, in one `lax.while_loop`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_port.closure.base import UNLIMITED, ClosureAlgorithm, Limits, Traced
from jaxopt_port.closure.flat import Tree, evaluation, flatten, largest, leaves_of
from jaxopt_port.closure.stop import Stop, first_of, or_non_finite
from jaxopt_port.optimizer import Optimizer

MAX_SEARCH = 25  # torch's limit for a line search that is given none


class Minimized(NamedTuple):
    """How a run came out. Under `vmap` every entry has an element a run.

    Args:
      params: the last parameters.
      loss: there.
      stop: why the run ended, a `Stop` as int32: `Stop(int(result.stop)).name`.
      steps: steps taken; iterations, of L-BFGS and nonlinear conjugate gradients.
      evaluations: evaluations of the loss with its gradient.
      grad_norm: the largest element of the last gradient.
      state: the optimizer's last state.
    """

    params: Tree
    loss: jax.Array
    stop: jax.Array
    steps: jax.Array
    evaluations: jax.Array
    grad_norm: jax.Array
    state: Any


def minimize(
    optimizer: optax.GradientTransformation,
    fun: Callable[..., Any],
    params: Tree,
    max_steps: int = 1000,
    tolerance: float | jax.Array = 1e-5,
    *,
    args: Sequence[Any] = (),
) -> Minimized:
    """Minimize a function: steps until its gradient is small, one compiled program for the whole run.

    L-BFGS and nonlinear conjugate gradients run on without coming back: `max_steps` counts iterations, and `max_iter`,
    `max_eval` and `tolerance_grad` of the optimizer mean nothing here. Its `tolerance_change` does: set it to 0 to go
    on for as long as the gradient is not small enough. In three things a run with L-BFGS is not torch's: it shortens a
    step to where the loss is not finite, and ends where it cannot; it takes a change of the loss within its rounding as
    none; and it goes on learning at small losses. Any other optimizer takes a step an evaluation; those that an optax
    line search makes by itself are not counted.

    Args:
      optimizer: any of this package, or of optax.
      fun: `(params, *args) -> loss`, traced at every call; compiled anew where that gives another program.
      params: where to start.
      max_steps: how many steps to take at most.
      tolerance: the run ends where no element of the gradient is larger.
      args: handed to `fun`; arrays here do not compile anew.

    Returns:
      A `Minimized`.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> def rosenbrock(x):
      ...     return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
      >>> result = minimize(optim.nonlinear_cg(), rosenbrock, jnp.array([-1.2, 1.0]), tolerance=1e-3)
      >>> result.params.round(2).tolist(), Stop(int(result.stop)).name
      ([1.0, 1.0], 'GRADIENT')
      >>> starts = jnp.array([[-1.2, 1.0], [0.0, 0.0], [2.0, 2.0]])
      >>> run = lambda start: minimize(optim.nonlinear_cg(), rosenbrock, start, tolerance=1e-3)
      >>> jax.vmap(run)(starts).params.round(2).tolist()
      [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    traced = Traced(fun, params, *args)
    return _minimize(optimizer, traced, traced.captured, params, jnp.int32(max_steps), tolerance, tuple(args))


@partial(jax.jit, static_argnums=(0, 1))
def _minimize(
    optimizer: optax.GradientTransformation,
    traced: Traced,
    captured: list[Any],
    params: Tree,
    max_steps: jax.Array,
    tolerance: jax.Array,
    args: tuple[Any, ...],
) -> Minimized:
    fun = traced.closure(captured)
    algorithm = getattr(optimizer.update, "__self__", None)
    if not isinstance(algorithm, ClosureAlgorithm):
        return _step_by_step(optimizer, fun, params, max_steps, tolerance, args)
    leaves, treedef = leaves_of(params), jax.tree.structure(params)
    evaluate = evaluation(fun, treedef, args, has_aux=False)
    loss, grad = evaluate(leaves)
    state = algorithm.init(params)
    limits = Limits(max_steps, jnp.int32(UNLIMITED), jnp.int32(MAX_SEARCH), jnp.asarray(tolerance, grad.dtype), False)
    end = algorithm.go(evaluate, loss, grad, state, leaves, limits)
    new, state = treedef.unflatten(end.x), algorithm.ended(state, end)
    return Minimized(new, end.loss, end.slots.stop, end.iters, end.evals, largest(end.grad), state)


def _step_by_step(
    optimizer: optax.GradientTransformation,
    fun: Callable[..., Any],
    params: Tree,
    max_steps: jax.Array,
    tolerance: jax.Array,
    args: tuple[Any, ...],
) -> Minimized:
    """A run of an optimizer that takes one gradient a step."""

    def of_params(params: Tree) -> jax.Array:
        return fun(params, *args)

    def evaluate(params: Tree) -> tuple[jax.Array, Tree, jax.Array]:
        loss, grads = jax.value_and_grad(of_params)(params)
        grads = jax.tree.map(jnp.conj, grads)
        return loss, grads, flatten(jax.tree.leaves(grads), leaves_of(params))

    def step(now: tuple[Minimized, Tree]) -> tuple[Minimized, Tree]:
        before, grads = now
        if isinstance(optimizer, Optimizer):
            params, state = optimizer.step(grads, before.state, before.params)
        else:
            extended = optax.with_extra_args_support(optimizer)
            extra = {"value": before.loss, "grad": grads, "value_fn": of_params}
            updates, state = extended.update(grads, before.state, before.params, **extra)
            params = optax.apply_updates(before.params, updates)
        return look(before._replace(params=params, state=state, steps=before.steps + 1))

    def look(at: Minimized) -> tuple[Minimized, Tree]:
        loss, grads, flat = evaluate(at.params)
        norm = largest(flat)
        stop = first_of((norm <= tolerance, Stop.GRADIENT), (at.steps >= max_steps, Stop.MAX_ITER))
        stop = or_non_finite(stop, loss, flat)
        return at._replace(loss=loss, stop=stop, grad_norm=norm, evaluations=at.evaluations + 1), grads

    nothing = jnp.zeros(())
    start = Minimized(params, nothing, jnp.int32(0), jnp.int32(0), jnp.int32(0), nothing, optimizer.init(params))
    return jax.lax.while_loop(lambda now: now[0].stop == Stop.NOT_YET, step, look(start))[0]

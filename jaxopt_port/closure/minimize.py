"""A run as a whole, in one `lax.while_loop`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_port.closure.base import UNLIMITED, ClosureAlgorithm, Limits
from jaxopt_port.closure.flat import Tree, flatten, leaves_of, max_abs, wide_enough
from jaxopt_port.closure.stop import Stop, first_of, or_non_finite
from jaxopt_port.optimizer import Optimizer, OptState, check_optimizer, described

if TYPE_CHECKING:
    from jaxopt_port.closure.program import Program


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

    L-BFGS and nonlinear conjugate gradients run on without coming back: `max_steps` counts iterations, and what ends a
    step of theirs means nothing here: `max_iter`, `max_eval`, `tolerance_grad`, and of `lbfgs` `tolerance_change`,
    which torch compares with the change of the loss as it is, so that at a small loss every step would be the last. A
    run ends where the gradient is small, where a search along steepest descent fails, or where neither the loss nor the
    gradient comes down any more. It is torch's L-BFGS in all but this: a step goes no further than the loss is finite;
    a change of the loss within its rounding is none; what is learnt from small steps is kept; a direction that does not
    descend, or along which the search fails, gives way to steepest descent. Without a line search nothing shortens a
    step, and a run may end at NON_FINITE, with the numbers that it came to.

    Any other optimizer takes a step an evaluation; those that an optax line search makes by itself are not counted.

    Args:
      optimizer: any of this package, or of optax. Make it once: another object compiles anew, except that `lbfgs` and
        `nonlinear_cg` do not where only live options (`lr`, tolerances) differ.
      fun: `(params, *args) -> loss`, traced and compiled anew as at `lbfgs`; with optimizers that take one gradient a
        step it is traced at every call.
      params: where to start.
      max_steps: how many steps to take at most.
      tolerance: the run ends where no element of the gradient is larger.
      args: handed to `fun`; other values of numbers and arrays here do not compile anew.

    Returns:
      A `Minimized`.

    Raises:
      TypeError: arguments in another order; a parameter that is neither floating point nor complex; a loss that is not
        a real scalar.
      ValueError: under `shard_map`, a loss that is not the same on every device.

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
    from jaxopt_port.closure.program import Traces  # here, since it imports jax.extend, which takes long

    check_optimizer(optimizer, "minimize(optimizer, fun, params)")
    if not callable(fun):
        raise TypeError(
            f"minimize(optimizer, fun, params) needs a function (params, *args) -> loss as fun, not {described(fun)}"
        )
    algorithm = getattr(optimizer.update, "__self__", None)
    with wide_enough(params):
        traces = algorithm.traces if isinstance(algorithm, ClosureAlgorithm) else Traces()
        program, operands = traces(fun, params, args, has_aux=False)
        start = operands, optimizer.init(params), params, jnp.int32(max_steps), tolerance
        if isinstance(algorithm, ClosureAlgorithm):
            return _run(algorithm, program, *start)
        return _step_by_step(optimizer, program, *start)


@partial(jax.jit, static_argnums=(0, 1))
def _run(
    algorithm: ClosureAlgorithm,
    program: "Program",
    operands: list[Any],
    state: OptState,
    params: Tree,
    max_steps: jax.Array,
    tolerance: jax.Array,
) -> Minimized:
    """A run of an algorithm that evaluates the loss as often as it likes."""
    evaluate = program.evaluation(operands)
    leaves, treedef = leaves_of(params), jax.tree.structure(params)
    loss, grad = evaluate(leaves)
    limits = Limits(max_steps, jnp.int32(UNLIMITED), jnp.asarray(tolerance, grad.dtype))
    end = algorithm.go(algorithm.run, evaluate, loss, grad, state, leaves, limits)
    new, state = treedef.unflatten(end.x), algorithm.ended(state, end)
    return Minimized(new, end.loss, end.slots.stop, end.iters, end.evals, max_abs(end.grad), state)


@partial(jax.jit, static_argnums=(0, 1))
def _step_by_step(
    optimizer: optax.GradientTransformation,
    program: "Program",
    operands: list[Any],
    state: Any,
    params: Tree,
    max_steps: jax.Array,
    tolerance: jax.Array,
) -> Minimized:
    """A run of an optimizer that takes one gradient a step."""
    treedef = jax.tree.structure(params)

    def evaluate(params: Tree) -> tuple[jax.Array, Tree]:
        loss, grads = program.gradient(operands, leaves_of(params))
        return loss, treedef.unflatten(grads)

    @jax.custom_jvp
    def of_params(params: Tree) -> jax.Array:
        return evaluate(params)[0]

    @of_params.defjvp
    def _(primals: tuple[Tree], tangents: tuple[Tree]) -> tuple[jax.Array, jax.Array]:
        loss, grads = evaluate(*primals)
        slopes = jax.tree.map(lambda g, t: jnp.sum((g.conj() * t).real.astype(loss.dtype)), grads, *tangents)
        return loss, sum(jax.tree.leaves(slopes), jnp.zeros_like(loss))

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
        loss, grads = evaluate(at.params)
        flat = flatten(jax.tree.leaves(grads), leaves_of(at.params))
        norm = max_abs(flat)
        stop = first_of((norm <= tolerance, Stop.GRADIENT), (at.steps >= max_steps, Stop.MAX_ITER))
        stop = or_non_finite(stop, loss, flat, *leaves_of(at.params))
        return at._replace(loss=loss, stop=stop, grad_norm=norm, evaluations=at.evaluations + 1), grads

    nothing = jnp.zeros(())
    start = Minimized(params, nothing, jnp.int32(0), jnp.int32(0), jnp.int32(0), nothing, state)
    return jax.lax.while_loop(lambda now: now[0].stop == Stop.NOT_YET, step, look(start))[0]

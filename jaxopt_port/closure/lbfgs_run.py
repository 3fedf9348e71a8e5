"""A run of L-BFGS as a whole: the iterations of torch's step without what only a step has to follow."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from jaxopt_port.closure.base import Limits, Progress, iterate
from jaxopt_port.closure.flat import Evaluate, Leaves, dot, max_abs, move, power_of_two
from jaxopt_port.closure.lbfgs_memory import direction, forget, remember
from jaxopt_port.closure.line_search import MAX_SEARCH, strong_wolfe
from jaxopt_port.closure.stop import Stop, first_of


def run(
    evaluate: Evaluate, at: Progress, hyper: SimpleNamespace, n_iter: jax.Array, limits: Limits, searches: bool
) -> Progress:
    """Iterate until the gradient is small, nothing comes down any more, or a limit is reached.

    It differs from torch's step, whose tolerances are absolute, in this: a step is stored where its curvature is more
    than rounding; a direction that does not descend, or along which the search fails, is replaced by steepest descent;
    a change of the loss within its rounding is none; no trial is outside the bracket; the loss is always evaluated
    where the run ends.

    Args:
      evaluate: the loss and its flat gradient.
      at: the first evaluation, and the state.
      hyper: the live hyper-parameters in the vector's dtype.
      n_iter: the iterations of all earlier calls.
      limits: of this call.
      searches: whether there is a line search; without one every step is as long as `lr` says.
    """

    def iteration(now: Progress) -> Progress:
        s = remember(now.slots, now.grad, _learn)
        d = direction(s, now.grad)
        ascends = ~(dot(now.grad, d / power_of_two(max_abs(d))) < 0)
        s, d = forget(s, ascends), jnp.where(ascends, -now.grad, d)
        # Inner products with the direction as it is would overflow in float32 from gradients of 1e19 on.
        unit = power_of_two(max_abs(d))
        along = d / unit
        shortened = s.stored == 0 if searches else n_iter + now.iters == 0
        length = 1 / jnp.sum(jnp.abs(along))
        t = hyper.lr * jnp.where(shortened, jnp.minimum(unit, length), unit)
        if searches:
            t = jnp.where(shortened & _same(move(now.x, t, along), now.x), hyper.lr * length, t)  # at losses of 1e-30
            found = strong_wolfe(
                lambda t: evaluate(move(now.x, t, along)), t, along, now.loss, now.grad, dot(now.grad, along),
                tolerance_change=jnp.zeros_like(t), max_ls=jnp.int32(MAX_SEARCH), slack=now.slack(),
            )  # fmt: skip
            t, loss, grad, evals = found.t, found.loss, found.grad, found.evals
        else:
            loss, grad = evaluate(move(now.x, t, along))
            evals = jnp.int32(1)
        x, failed = move(now.x, t, along), (t == 0) & searches
        s = s._replace(d=d, t=t / unit, prev_flat_grad=now.grad, prev_loss=now.loss)
        after = now.after(x, loss, grad, evals, forget(s, failed))
        still = ~failed & _same(x, now.x)
        stop = first_of(
            (~after.finite(), Stop.NON_FINITE),
            (max_abs(grad) <= limits.tolerance_grad, Stop.GRADIENT),
            (failed & (s.stored == 0), Stop.LINE_SEARCH),
            (still | (after.stalled() if searches else False), Stop.CHANGE),
            (after.iters >= limits.max_iter, Stop.MAX_ITER),
        )
        return after._replace(slots=after.slots._replace(stop=stop))

    return iterate(iteration, at, limits, (~at.finite(), Stop.NON_FINITE))


def _same(new: Leaves, old: Leaves) -> jax.Array:
    """Whether no parameter has moved."""
    return jnp.array([jnp.all(x == y) for x, y in zip(new, old, strict=True)]).all()


def _learn(ys: jax.Array, y: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the two vectors are not orthogonal to rounding; torch's threshold for `ys` stores nothing at small losses.

    In units in which no square overflows.
    """
    unit_y, unit_s = power_of_two(max_abs(y)), power_of_two(max_abs(step))
    u, v = y / unit_y, step / unit_s
    uu, uv = dot(u, u), dot(u, v)
    return (ys > 0) & (uv > jnp.finfo(y.dtype).eps * jnp.sqrt(uu * dot(v, v))), uv / uu * (unit_s / unit_y)

r"""Nonlinear conjugate gradients, with a strong-Wolfe line search."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.closure.base import UNLIMITED, ClosureAlgorithm, Limits, Progress, check_count
from jaxopt_port.closure.flat import Evaluate, dot, largest, move
from jaxopt_port.closure.line_search import MAX_SEARCH, Found, backing_off, rounding, strong_wolfe
from jaxopt_port.closure.stop import Stop, first_of, or_non_finite
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.scalars import Scalar, check_at_least_0, check_lr

BETAS = ("pr+", "fr", "hs", "dy", "hz")
CURVATURE = 0.1  # a tighter search than L-BFGS needs: conjugacy rests on it
ORTHOGONAL = 0.2  # Powell's measure of two successive gradients that are not
DESCENT = 0.01  # of |g|^2, the least descent of a direction that is not a restart


class NonlinearCGState(NamedTuple):
    """The state of nonlinear conjugate gradients.

    Args:
      d: the last direction.
      t: the last step length.
      gtd: the slope of the loss along `d`, where the last step started.
      prev_flat_grad: the gradient there.
      prev_loss: the loss there.
      grad_scale: the largest element of the very first gradient.
      since_restart: iterations since the last restart.
      failed: whether the last line search found no better point.
      stop: why the last call ended, a `Stop`.
    """

    d: jax.Array
    t: jax.Array
    gtd: jax.Array
    prev_flat_grad: jax.Array
    prev_loss: jax.Array
    grad_scale: jax.Array
    since_restart: jax.Array
    failed: jax.Array
    stop: jax.Array


class NonlinearCG(ClosureAlgorithm):
    """Nonlinear conjugate gradients on one flat vector.

    Its static options are `beta`, `max_iter`, `max_eval`, `line_search` and `restart`, as in `nonlinear_cg`.
    """

    name = "nonlinear_cg"

    def first_slots(self, size: int, dtype: Any) -> NonlinearCGState:
        def zeros(*shape: int) -> jax.Array:
            return jnp.zeros(shape, dtype)

        return NonlinearCGState(
            d=zeros(size), t=zeros(), gtd=zeros(), prev_flat_grad=zeros(size), prev_loss=zeros(), grad_scale=zeros(),
            since_restart=jnp.int32(0), failed=jnp.zeros((), bool), stop=jnp.int32(Stop.NOT_YET),
        )  # fmt: skip

    def tolerance_grad(self, h: SimpleNamespace, slots: NonlinearCGState, grad: jax.Array, n_iter: jax.Array) -> Any:
        """Relative to the first gradient, so that scaling the loss or the parameters changes nothing."""
        return h.tolerance_grad * jnp.where(n_iter == 0, largest(grad), slots.grad_scale)

    def run(self, evaluate: Evaluate, at: Progress, h: SimpleNamespace, n_iter: jax.Array, limits: Limits) -> Progress:
        def iteration(now: Progress) -> Progress:
            s: NonlinearCGState = now.slots
            first = n_iter + now.iters == 0
            d, since_restart = self._direction(s, now.grad, first)
            gtd = dot(now.grad, d)
            t = h.lr if self.static["line_search"] is None else _first_length(s, now, gtd, first, h)
            found = self._search(evaluate, now, t, d, gtd, limits)
            failed = (found.t == 0) | ~jnp.isfinite(found.loss)
            # A failed search leaves the lengths of the last good one, for the restart that follows to start from.
            moved = NonlinearCGState(
                d=d,
                t=jnp.where(failed, s.t, found.t),
                gtd=jnp.where(failed, s.gtd, gtd),
                prev_flat_grad=now.grad,
                prev_loss=now.loss,
                grad_scale=jnp.where(first, largest(now.grad), s.grad_scale),
                since_restart=since_restart,
                failed=failed,
                stop=s.stop,
            )
            now = Progress(
                move(now.x, found.t, d), found.loss, found.grad, now.iters + 1, now.evals + found.evals, moved
            )
            return now._replace(slots=moved._replace(stop=_why(now, h, limits)))

        stop = first_of(
            (~jnp.isfinite(at.loss), Stop.NON_FINITE),
            (largest(at.grad) <= limits.tolerance_grad, Stop.GRADIENT),
            (limits.max_iter < 1, Stop.MAX_ITER),
        )
        at = at._replace(slots=at.slots._replace(stop=stop))
        end = jax.lax.while_loop(lambda now: now.slots.stop == Stop.NOT_YET, iteration, at)
        return end._replace(slots=end.slots._replace(stop=or_non_finite(end.slots.stop, end.loss, end.grad)))

    def _direction(self, s: NonlinearCGState, grad: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next direction, and the iterations since the last restart: 0 for steepest descent."""
        restart, gg = self.static["restart"], dot(grad, grad)
        d = _beta(self.static["beta"], s, grad, gg) * s.d - grad
        restarts = first | s.failed | ~(dot(grad, d) <= -DESCENT * gg)
        if restart == "powell":
            restarts |= jnp.abs(dot(grad, s.prev_flat_grad)) >= ORTHOGONAL * gg
        elif restart is not None:
            restarts |= s.since_restart + 1 >= restart
        return jnp.where(restarts, -grad, d), jnp.where(restarts, 0, s.since_restart + 1)

    def _search(
        self, evaluate: Evaluate, now: Progress, t: jax.Array, d: jax.Array, gtd: jax.Array, limits: Limits
    ) -> Found:
        def along(t: jax.Array) -> tuple[jax.Array, jax.Array]:
            return backing_off(*evaluate(move(now.x, t, d)))

        if self.static["line_search"] is None:
            return Found(t, *along(t), evals=jnp.int32(1), satisfied=jnp.ones((), bool))
        return strong_wolfe(
            along, t, d, now.loss, now.grad, gtd, jnp.zeros_like(t),
            max_ls=jnp.minimum(limits.max_eval - now.evals, jnp.minimum(limits.max_search, MAX_SEARCH)),
            c2=CURVATURE,
            slack=rounding(now.loss),
        )  # fmt: skip


def _beta(name: str, s: NonlinearCGState, grad: jax.Array, gg: jax.Array) -> jax.Array:
    y, before = grad - s.prev_flat_grad, dot(s.prev_flat_grad, s.prev_flat_grad)
    if name == "fr":
        return gg / before
    if name == "pr+":
        return jnp.maximum(dot(grad, y) / before, 0)
    dy = dot(s.d, y)
    if name == "hs":
        return dot(grad, y) / dy
    if name == "dy":
        return gg / dy
    # Hager and Zhang's lower bound, in the form of CG_DESCENT 6
    bound = 0.4 * dot(s.d, s.prev_flat_grad) / dot(s.d, s.d)
    return jnp.maximum((dot(grad, y) - 2 * dot(y, y) * dot(s.d, grad) / dy) / dy, bound)


def _first_length(
    s: NonlinearCGState, now: Progress, gtd: jax.Array, first: jax.Array, h: SimpleNamespace
) -> jax.Array:
    """The first step length to try.

    The geometric mean of the one that repeats the last step's first-order change of the loss, and of the one that a
    parabola with the last decrease of the loss asks for: the first is often too long and the second too short.
    """
    repeated = s.t * s.gtd / gtd
    parabola = 2 * (now.loss - s.prev_loss) / gtd
    mean = jnp.sqrt(repeated * parabola)
    t = jnp.where((mean > 0) & jnp.isfinite(mean), mean, repeated)
    return jnp.where(first | ~((t > 0) & jnp.isfinite(t)), h.lr / jnp.sum(jnp.abs(now.grad)), t)


def _why(now: Progress, h: SimpleNamespace, limits: Limits) -> jax.Array:
    s: NonlinearCGState = now.slots
    change = jnp.abs(now.loss - s.prev_loss)
    return first_of(
        (~jnp.isfinite(now.loss), Stop.NON_FINITE),
        (largest(now.grad) <= limits.tolerance_grad, Stop.GRADIENT),
        (s.failed & (s.since_restart == 0), Stop.LINE_SEARCH),
        (~s.failed & (change < h.tolerance_change * jnp.abs(s.prev_loss)), Stop.CHANGE),
        (now.iters >= limits.max_iter, Stop.MAX_ITER),
        (now.evals >= limits.max_eval, Stop.MAX_EVAL),
    )


def nonlinear_cg(
    beta: str = "pr+",
    lr: Scalar = 1.0,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: Scalar = 1e-7,
    tolerance_change: Scalar = 0.0,
    line_search: str | None = "strong_wolfe",
    restart: str | int | None = "powell",
    *,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""Nonlinear conjugate gradients, which torch does not have.

    .. math::
      d_k &= -g_k + \beta_k d_{k-1}, \quad \theta_{k+1} = \theta_k + t_k d_k, \quad y = g_k - g_{k-1} \\
      \beta^{PR+} &= \max(0, g_k^T y / \|g_{k-1}\|^2), \quad \beta^{FR} = \|g_k\|^2 / \|g_{k-1}\|^2, \quad
      \beta^{HS} = g_k^T y / d_{k-1}^T y, \quad \beta^{DY} = \|g_k\|^2 / d_{k-1}^T y \\
      \beta^{HZ} &= \max\Big(\Big(y - 2 d_{k-1} \frac{\|y\|^2}{d_{k-1}^T y}\Big)^T \frac{g_k}{d_{k-1}^T y},\
      0.4 \frac{d_{k-1}^T g_{k-1}}{\|d_{k-1}\|^2}\Big)

    One step runs up to `max_iter` iterations, in one `lax.while_loop`, and the next one goes on where it ended.
    The state is two vectors. The line search is L-BFGS's, with a tighter curvature condition (0.1), and takes a loss
    that differs by its own rounding as equal. A direction that does not descend, or along which the search found no
    better point, is replaced by steepest descent.

    Call it with a pure closure; what compiles anew is said at `lbfgs`, and is the same here.

    Args:
      beta: `"pr+"` (Polak and Ribière), `"fr"` (Fletcher and Reeves), `"hs"` (Hestenes and Stiefel), `"dy"` (Dai and
        Yuan) or `"hz"` (Hager and Zhang); static.
      lr: the length of the very first step, in units of 1 / sum |g|; of every step, as it is, where `line_search` is
        None; live.
      max_iter: iterations a step, an integer; static.
      max_eval: evaluations a step, not limited where None; static.
      tolerance_grad: a step ends where no element of the gradient is larger than this part of the largest element of
        the first gradient of all; live.
      tolerance_change: a step ends where the loss changes by less than this part of itself; live.
      line_search: `"strong_wolfe"`, or None for steps of length `lr`; static.
      restart: with steepest descent: `"powell"`, where successive gradients are far from orthogonal; a number, after so
        many iterations; or None; static.
      param_groups: not supported, as in L-BFGS.

    Returns:
      An `Optimizer`. `step_closure` returns the loss at the parameters given. In the state, `steps[0]` has `func_evals`
      and `n_iter`, and `slots` is a `NonlinearCGState`, whose `stop` says why the step ended.

    Raises:
      ValueError: an option out of range, or parameter groups.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.nonlinear_cg(beta="hz")
      >>> params = {"w": jnp.array([3.0, -2.0])}
      >>> closure = lambda params: (params["w"] ** 2).sum()
      >>> loss, params, state = optimizer.step_closure(closure, optimizer.init(params), params)
      >>> float(loss), bool(jnp.allclose(params["w"], 0, atol=1e-5))
      (13.0, True)

    Source: Nocedal and Wright, Numerical Optimization, 2006, chapter 5; Powell, Restart procedures for the conjugate
    gradient method, 1977; Hager and Zhang, Algorithm 851: CG_DESCENT, 2006.
    """
    check_lr(lr)
    check_at_least_0("tolerance_grad", tolerance_grad)
    check_at_least_0("tolerance_change", tolerance_change)
    if beta not in BETAS:
        raise ValueError(f"Invalid beta: {beta!r}, known are: {', '.join(BETAS)}")
    if line_search not in (None, "strong_wolfe"):
        raise ValueError(f"Invalid line_search: {line_search!r}, known are: None, 'strong_wolfe'")
    if not (restart in (None, "powell") or (isinstance(restart, int) and restart >= 1)):
        raise ValueError(f"Invalid restart: {restart!r}, known are: None, 'powell' and a number of iterations")
    if len(param_groups):
        raise ValueError("nonlinear_cg doesn't support per-parameter options (parameter groups)")
    max_eval = UNLIMITED if max_eval is None else max_eval
    check_count("max_iter", max_iter, 0)
    check_count("max_eval", max_eval, 0)
    algorithm = NonlinearCG(
        {"lr": lr, "tolerance_grad": tolerance_grad, "tolerance_change": tolerance_change},
        beta=beta,
        max_iter=max_iter,
        max_eval=max_eval,
        line_search=line_search,
        restart=restart,
    )
    return Optimizer(algorithm.init, algorithm.update)

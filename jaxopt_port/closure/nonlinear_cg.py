r"""Nonlinear conjugate gradients, with a strong-Wolfe line search."""

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.closure.base import UNLIMITED, ClosureAlgorithm, Limits, Progress, check_count, iterate
from jaxopt_port.closure.flat import Evaluate, Tree, dot, max_abs, move, power_of_two
from jaxopt_port.closure.line_search import MAX_SEARCH, Found, strong_wolfe
from jaxopt_port.closure.placement import Make
from jaxopt_port.closure.stop import Stop, first_of
from jaxopt_port.factory import told
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
      d: the last direction, a tree like the parameters; complex where they are, float32 where they have 16 bits.
      t: the last step length.
      descent: the first-order change of the loss in the last step, `t g^T d`.
      prev_flat_grad: the gradient from which the last step started.
      prev_loss: the loss there.
      grad_scale: the largest element of the very first gradient.
      since_restart: iterations since the last restart.
      failed: line searches since the last one that found a better point. After the first comes steepest descent, after
        one along that the same with the length of the very first step, after that nothing.
      stop: why the last call ended, a `Stop`.
    """

    d: Any
    t: jax.Array
    descent: jax.Array
    prev_flat_grad: jax.Array
    prev_loss: jax.Array
    grad_scale: jax.Array
    since_restart: jax.Array
    failed: jax.Array
    stop: jax.Array


ALONG_CONJUGATE, ALONG_GRADIENT, AT_FIRST_LENGTH = 1, 2, 3  # what `failed` counts


class NonlinearCG(ClosureAlgorithm):
    """Nonlinear conjugate gradients on one flat vector.

    Its static options are `beta`, `max_iter`, `max_eval`, `line_search` and `restart`, as in `nonlinear_cg`.
    """

    name = "nonlinear_cg"

    def first_slots(self, make: Make, d: Tree, size: int, dtype: Any) -> NonlinearCGState:
        number = partial(make, 0, (), dtype)
        return NonlinearCGState(
            d=d, t=number(), descent=number(), prev_flat_grad=make(0, (size,), dtype), prev_loss=number(),
            grad_scale=number(), since_restart=make(0, (), jnp.int32), failed=make(0, (), jnp.int32),
            stop=make(Stop.NOT_YET, (), jnp.int32),
        )  # fmt: skip

    def tolerance_grad(
        self, hyper: SimpleNamespace, slots: NonlinearCGState, grad: jax.Array, n_iter: jax.Array
    ) -> Any:
        """Relative to the first gradient, so that scaling the loss or the parameters changes nothing."""
        return hyper.tolerance_grad * jnp.where(n_iter == 0, max_abs(grad), slots.grad_scale)

    def run(
        self, evaluate: Evaluate, at: Progress, hyper: SimpleNamespace, n_iter: jax.Array, limits: Limits
    ) -> Progress:
        searches = self.static["line_search"] is not None

        def iteration(now: Progress) -> Progress:
            s: NonlinearCGState = now.slots
            first = n_iter + now.iters == 0
            d, since_restart = self._direction(s, now.grad, first)
            # Inner products with the direction as it is would overflow in float32 from gradients of 1e19 on.
            unit = power_of_two(max_abs(d))
            along = d / unit
            slope = dot(now.grad, along)
            if searches:
                first |= s.failed == ALONG_GRADIENT
                t = _first_length(s, now, along, slope, first, hyper)
                found = strong_wolfe(
                    lambda t: evaluate(move(now.x, t, along)), t, along, now.loss, now.grad, slope,
                    tolerance_change=jnp.zeros_like(t),
                    max_ls=jnp.minimum(limits.max_eval - now.evals, MAX_SEARCH),
                    c2=CURVATURE,
                    slack=now.slack(),
                )  # fmt: skip
            else:
                t = hyper.lr * unit
                found = Found(t, *evaluate(move(now.x, t, along)), evals=jnp.int32(1), satisfied=jnp.ones((), bool))
            how = jnp.where(first, AT_FIRST_LENGTH, jnp.where(since_restart == 0, ALONG_GRADIENT, ALONG_CONJUGATE))
            failed = jnp.where((found.t == 0) & searches, how, 0).astype(jnp.int32)
            # A failed search leaves the lengths of the last good one, for the restart that follows to start from.
            moved = NonlinearCGState(
                d=d,
                t=jnp.where(failed, s.t, found.t / unit),
                descent=jnp.where(failed, s.descent, found.t * slope),
                prev_flat_grad=now.grad,
                prev_loss=now.loss,
                grad_scale=jnp.where(n_iter + now.iters == 0, max_abs(now.grad), s.grad_scale),
                since_restart=since_restart,
                failed=failed,
                stop=s.stop,
            )
            now = now.after(move(now.x, found.t, along), found.loss, found.grad, found.evals, moved)
            return now._replace(slots=moved._replace(stop=_why(now, hyper, limits, searches)))

        return iterate(iteration, at, limits, (~at.finite(), Stop.NON_FINITE))

    def _direction(self, s: NonlinearCGState, grad: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next direction, and the iterations since the last restart: 0 for steepest descent."""
        restart, unit = self.static["restart"], power_of_two(max_abs(grad))
        d = _beta(self.static["beta"], s, grad) * s.d - grad
        g = grad / unit
        gg = dot(g, g)
        restarts = first | (s.failed != 0) | ~(dot(g, d / unit) <= -DESCENT * gg)
        if restart == "powell":
            restarts |= ~(jnp.abs(dot(g, s.prev_flat_grad / unit)) < ORTHOGONAL * gg)
        elif restart is not None:
            restarts |= s.since_restart + 1 >= restart
        return jnp.where(restarts, -grad, d), jnp.where(restarts, 0, s.since_restart + 1)


def _beta(name: str, s: NonlinearCGState, grad: jax.Array) -> jax.Array:
    # The same in any unit: in that of the last gradient no square overflows.
    unit = power_of_two(max_abs(s.prev_flat_grad))
    g, last, d = grad / unit, s.prev_flat_grad / unit, s.d / unit
    gg, y, before = dot(g, g), g - last, dot(last, last)
    if name == "fr":
        return gg / before
    if name == "pr+":
        return jnp.maximum(dot(g, y) / before, 0)
    dy = dot(d, y)
    if name == "hs":
        return dot(g, y) / dy
    if name == "dy":
        return gg / dy
    # Hager and Zhang's lower bound, in the form of CG_DESCENT 6
    bound = 0.4 * dot(d, last) / dot(d, d)
    return jnp.maximum((dot(g, y) - 2 * dot(y, y) * dot(d, g) / dy) / dy, bound)


def _first_length(
    s: NonlinearCGState, now: Progress, d: jax.Array, slope: jax.Array, first: jax.Array, hyper: SimpleNamespace
) -> jax.Array:
    """The first step length to try.

    The geometric mean of the one that repeats the last step's first-order change of the loss, and of the one that a
    parabola with the last decrease of the loss asks for: the first is often too long and the second too short.
    """
    repeated = s.descent / slope
    parabola = 2 * (now.loss - s.prev_loss) / slope
    mean = jnp.sqrt(repeated) * jnp.sqrt(parabola)
    t = jnp.where((mean > 0) & jnp.isfinite(mean), mean, repeated)
    return jnp.where(first | ~((t > 0) & jnp.isfinite(t)), hyper.lr / jnp.sum(jnp.abs(d)), t)


def _why(now: Progress, hyper: SimpleNamespace, limits: Limits, searches: bool) -> jax.Array:
    s: NonlinearCGState = now.slots
    change = jnp.abs(now.loss - s.prev_loss)
    return first_of(
        (~now.finite(), Stop.NON_FINITE),
        (max_abs(now.grad) <= limits.tolerance_grad, Stop.GRADIENT),
        (s.failed == AT_FIRST_LENGTH, Stop.LINE_SEARCH),
        ((s.failed == 0) & (change < hyper.tolerance_change * jnp.abs(s.prev_loss)), Stop.CHANGE),
        (now.stalled() if searches else jnp.zeros((), bool), Stop.CHANGE),
        (now.iters >= limits.max_iter, Stop.MAX_ITER),
        (now.evals >= limits.max_eval, Stop.MAX_EVAL),
    )


@told
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
    better point, is replaced by steepest descent, and a search that fails along that is made again from the length of
    the very first step. Without a line search nothing shortens a step: one that is too long ends in NON_FINITE.

    Call it with a pure closure, jitted, and the batch as an argument, as `lbfgs` shows; what compiles anew is the same.

    Args:
      beta: `"pr+"` (Polak and Ribière), `"fr"` (Fletcher and Reeves), `"hs"` (Hestenes and Stiefel), `"dy"` (Dai and
        Yuan) or `"hz"` (Hager and Zhang); static.
      lr: the length of the very first step, in units of 1 / sum |g|; of every step, as it is, where `line_search` is
        None; live.
      max_iter: iterations a step, an integer; static.
      max_eval: evaluations a step, not limited where None; static.
      tolerance_grad: a step ends where no element of the gradient is larger than this part of the largest element of
        the first gradient of all; live.
      tolerance_change: a step or a run ends where the loss changes by less than this part of itself; live.
      line_search: `"strong_wolfe"`, or None for steps of length `lr`; static.
      restart: with steepest descent: `"powell"`, where successive gradients are far from orthogonal; a number, after so
        many iterations; or None; static.
      param_groups: not supported, as in L-BFGS.

    Returns:
      An `Optimizer`. `step_closure` returns the loss at the parameters given. In the state, `steps[0]` has `func_evals`
      and `n_iter`, and `slots` is a `NonlinearCGState`, whose `stop` says why the step ended.

    Raises:
      ValueError: an option out of range, or parameter groups; in a step, a state of other parameters; in `shard_map`,
        a loss that is not the same on every device.

    Example:
      >>> import jax, jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.nonlinear_cg(beta="hz")
      >>> params = {"w": jnp.array([3.0, -2.0])}
      >>> closure = lambda params: (params["w"] ** 2).sum()
      >>> step = jax.jit(lambda params, state: optimizer.step_closure(closure, state, params))
      >>> loss, params, state = step(params, optimizer.init(params))
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

r"""Limited-memory BFGS, with or without a strong-Wolfe line search."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.closure.base import ClosureAlgorithm, Limits, Progress, check_count
from jaxopt_port.closure.flat import Evaluate, dot, largest, move
from jaxopt_port.closure.line_search import backing_off, rounding, strong_wolfe
from jaxopt_port.closure.stop import Stop, first_of, or_non_finite
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.scalars import Scalar, check_lr


class LBFGSState(NamedTuple):
    """torch's state, by torch's names; its lists are ring buffers, `history_size` rows of one vector each.

    Args:
      d: the last direction.
      t: the last step length.
      old_dirs: differences of gradients.
      old_stps: differences of parameters.
      ro: the inverse of their inner products.
      H_diag: the scale of the first inverse Hessian.
      prev_flat_grad: the gradient from which the last step started.
      prev_loss: the loss from which it started.
      oldest: the row of the oldest pair.
      stored: how many pairs there are: torch's `len(old_dirs)`.
      stop: why the last call ended, a `Stop`.
    """

    d: jax.Array
    t: jax.Array
    old_dirs: jax.Array
    old_stps: jax.Array
    ro: jax.Array
    H_diag: jax.Array
    prev_flat_grad: jax.Array
    prev_loss: jax.Array
    oldest: jax.Array
    stored: jax.Array
    stop: jax.Array


class LBFGS(ClosureAlgorithm):
    """L-BFGS on one flat vector.

    Its static options are `max_iter`, `max_eval`, `history_size` and `line_search_fn`, as in `lbfgs`.
    """

    name = "lbfgs"

    def first_slots(self, size: int, dtype: Any) -> LBFGSState:
        history = self.static["history_size"]

        def zeros(*shape: int) -> jax.Array:
            return jnp.zeros(shape, dtype)

        return LBFGSState(
            d=zeros(size), t=zeros(), old_dirs=zeros(history, size), old_stps=zeros(history, size), ro=zeros(history),
            H_diag=jnp.ones((), dtype), prev_flat_grad=zeros(size), prev_loss=zeros(), oldest=jnp.int32(0),
            stored=jnp.int32(0), stop=jnp.int32(Stop.NOT_YET),
        )  # fmt: skip

    def run(self, evaluate: Evaluate, at: Progress, h: SimpleNamespace, n_iter: jax.Array, limits: Limits) -> Progress:
        searches = self.static["line_search_fn"] is not None

        def iteration(now: Progress) -> Progress:
            iters, loss, grad = now.iters + 1, now.loss, now.grad
            slots = _remember(now.slots, grad, limits.as_torch)
            d = _direction(slots, grad)
            # torch's min(1.0, 1.0 / sum) * lr
            norm = jnp.sum(jnp.abs(grad))
            t = jnp.where(n_iter + iters == 1, jnp.where(1 / norm < 1, 1 / norm, 1) * h.lr, h.lr)
            gtd = dot(grad, d)
            slots = slots._replace(d=d, t=t, prev_flat_grad=grad, prev_loss=loss)
            now = now._replace(iters=iters, slots=slots)
            too_flat = gtd > -h.tolerance_change

            def stay(now: Progress) -> Progress:
                return now._replace(slots=now.slots._replace(stop=jnp.int32(Stop.DIRECTION)))

            def go(now: Progress) -> Progress:
                if searches:
                    now, satisfied = _search(evaluate, now, gtd, h, limits)
                else:
                    now, satisfied = _fixed_step(evaluate, now, limits), jnp.ones((), bool)
                return now._replace(slots=now.slots._replace(stop=_why(now, satisfied, h, limits)))

            return jax.lax.cond(too_flat, stay, go, now)

        stop = first_of(
            (_left(at, limits), Stop.NON_FINITE),
            (largest(at.grad) <= limits.tolerance_grad, Stop.GRADIENT),
            (limits.max_iter < 1, Stop.MAX_ITER),
        )
        at = at._replace(slots=at.slots._replace(stop=stop))
        end = jax.lax.while_loop(lambda now: now.slots.stop == Stop.NOT_YET, iteration, at)
        return end._replace(slots=end.slots._replace(stop=or_non_finite(end.slots.stop, end.loss, end.grad)))


def _remember(s: LBFGSState, grad: jax.Array, as_torch: bool) -> LBFGSState:
    """Store the last step, in place of the oldest one where the memory is full.

    torch leaves out one whose inner product is below 1e-10: at a small loss, every one.

    Before the first step d and t are zero, so that nothing is stored.
    """
    y, step = grad - s.prev_flat_grad, s.d * s.t
    ys = dot(y, step)
    good = ys > (1e-10 if as_torch else jnp.finfo(y.dtype).eps * jnp.sqrt(dot(y, y) * dot(step, step)))
    size = s.ro.shape[0]
    row = (s.oldest + s.stored) % size

    def put(buffer: jax.Array, new: jax.Array) -> jax.Array:
        # The row is written back where nothing is stored: a conditional would copy the whole buffer.
        old = jax.lax.dynamic_index_in_dim(buffer, row, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(buffer, jnp.where(good, new, old), row, 0)

    full = s.stored == size
    return s._replace(
        old_dirs=put(s.old_dirs, y),
        old_stps=put(s.old_stps, step),
        ro=put(s.ro, 1 / ys),
        H_diag=jnp.where(good, ys / dot(y, y), s.H_diag),
        oldest=jnp.where(good & full, (s.oldest + 1) % size, s.oldest),
        stored=jnp.where(good & ~full, s.stored + 1, s.stored),
    )


def _direction(s: LBFGSState, grad: jax.Array) -> jax.Array:
    """Minus the gradient times the approximate inverse Hessian: the two-loop recursion."""

    def pair(i: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        row = (s.oldest + i) % s.ro.shape[0]
        y, step, ro = (jax.lax.dynamic_index_in_dim(b, row, keepdims=False) for b in (s.old_dirs, s.old_stps, s.ro))
        return row, y, step, ro

    def backward(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, al = carry
        row, y, step, ro = pair(s.stored - 1 - k)
        a = dot(step, q) * ro
        return q + -a * y, al.at[row].set(a)

    def forward(i: jax.Array, r: jax.Array) -> jax.Array:
        row, y, step, ro = pair(i)
        return r + (al[row] - dot(y, r) * ro) * step

    q, al = jax.lax.fori_loop(0, s.stored, backward, (-grad, jnp.zeros_like(s.ro)))
    return jax.lax.fori_loop(0, s.stored, forward, q * s.H_diag)


def _search(
    evaluate: Evaluate, now: Progress, gtd: jax.Array, h: SimpleNamespace, limits: Limits
) -> tuple[Progress, jax.Array]:
    """A strong-Wolfe step, and whether it is one."""
    s: LBFGSState = now.slots

    def along(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = evaluate(move(now.x, t, s.d))
        return found if limits.as_torch else backing_off(*found)

    found = strong_wolfe(
        along, s.t, s.d, now.loss, now.grad, gtd, h.tolerance_change,
        max_ls=jnp.minimum(limits.max_eval - now.evals, limits.max_search),
        slack=None if limits.as_torch else rounding(now.loss),
    )  # fmt: skip
    moved = now._replace(
        x=move(now.x, found.t, s.d),
        loss=found.loss,
        grad=found.grad,
        evals=now.evals + found.evals,
        slots=s._replace(t=found.t),
    )
    return moved, found.satisfied


def _fixed_step(evaluate: Evaluate, now: Progress, limits: Limits) -> Progress:
    """The step as it is. The loss is not evaluated after the last one."""
    x = move(now.x, now.slots.t, now.slots.d)
    last = now.iters == limits.max_iter
    loss, grad = jax.lax.cond(last, lambda x: (now.loss, now.grad), evaluate, x)
    return now._replace(x=x, loss=loss, grad=grad, evals=jnp.where(last, now.evals, now.evals + 1))


def _why(now: Progress, satisfied: jax.Array, h: SimpleNamespace, limits: Limits) -> jax.Array:
    """torch's conditions for ending a step, in torch's order."""
    s: LBFGSState = now.slots
    still = largest(s.d * s.t) <= h.tolerance_change
    return first_of(
        (_left(now, limits), Stop.NON_FINITE),
        (now.iters == limits.max_iter, Stop.MAX_ITER),
        (now.evals >= limits.max_eval, Stop.MAX_EVAL),
        (largest(now.grad) <= limits.tolerance_grad, Stop.GRADIENT),
        (still & ~satisfied, Stop.LINE_SEARCH),
        (still | (jnp.abs(now.loss - s.prev_loss) < h.tolerance_change), Stop.CHANGE),
    )


def _left(now: Progress, limits: Limits) -> jax.Array:
    """Whether a run is where loss or gradient is not finite; a step of torch's goes on."""
    finite = jnp.isfinite(now.loss) & jnp.isfinite(largest(now.grad))
    return jnp.zeros((), bool) if limits.as_torch else ~finite


def lbfgs(
    lr: Scalar = 1,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: Scalar = 1e-7,
    tolerance_change: Scalar = 1e-9,
    history_size: int = 100,
    line_search_fn: str | None = None,
    *,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""Limited-memory BFGS: torch.optim.LBFGS.

    .. math::
      d_k &= -H_k g_k, \quad \theta_{k+1} = \theta_k + t_k d_k \\
      H_{k+1} &= (I - \rho s y^T) H_k (I - \rho y s^T) + \rho s s^T, \quad
      s = t_k d_k,\ y = g_{k+1} - g_k,\ \rho = 1 / y^T s

    One step runs up to `max_iter` iterations from the memory that the last one left, in one `lax.while_loop`.

    Call it with a pure closure. It is traced with its gradient at every call, and compiled anew where that gives
    another program, whichever function object it is. What does not compile anew: other numbers and arrays in `*args`,
    and another array that the closure captures. What does: other shapes and dtypes; another Python or NumPy number that
    it captures; another array that a `jax.jit` inside it captures; another string, or whatever else is no array, in
    `*args`; a callback made anew. Tracing a gradient takes several times what tracing the loss takes, at every call; a
    `jax.jit` around the step saves it, and what changes between steps (a batch) then has to go in as `*args`.

    The memory is two arrays of `history_size` rows, allocated by `init`. Jit the step and donate the state, or it is
    copied at every step.

    Args:
      lr: the step length, or the first that the line search tries; live. In the first iteration ever it is multiplied
        by min(1, 1 / sum |g|).
      max_iter: iterations a step, an integer; static.
      max_eval: evaluations a step, `max_iter * 5 // 4` where None; static.
      tolerance_grad: a step ends where no element of the gradient is larger; live.
      tolerance_change: a step ends where no parameter, or the loss, moves by more; live.
      history_size: pairs of vectors to remember; static.
      line_search_fn: `"strong_wolfe"` or None; static.
      param_groups: not supported, as in torch.

    Returns:
      An `Optimizer`. `step_closure` returns the loss at the parameters given. In the state, `steps[0]` has `func_evals`
      and `n_iter`, and `slots` is an `LBFGSState`, whose `stop` says why the step ended.

    Raises:
      ValueError: an option out of range, or parameter groups, in torch's words.
      RuntimeError: a line search that does not exist, in torch's words.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.lbfgs(line_search_fn="strong_wolfe")
      >>> params = {"w": jnp.array([3.0, -2.0])}
      >>> closure = lambda params: (params["w"] ** 2).sum()
      >>> loss, params, state = optimizer.step_closure(closure, optimizer.init(params), params)
      >>> float(loss), bool(jnp.allclose(params["w"], 0, atol=1e-5)), int(state.steps[0]["func_evals"])
      (13.0, True, 3)

    Source: torch/optim/lbfgs.py; Nocedal, Updating quasi-Newton matrices with limited storage, 1980.
    """
    check_lr(lr)
    if len(param_groups):
        raise ValueError("LBFGS doesn't support per-parameter options (parameter groups)")
    if line_search_fn not in (None, "strong_wolfe"):
        raise RuntimeError("only 'strong_wolfe' is supported")
    check_count("max_iter", max_iter, 0)
    max_eval = max_iter * 5 // 4 if max_eval is None else max_eval
    check_count("max_eval", max_eval, 0)
    check_count("history_size", history_size, 1)
    algorithm = LBFGS(
        {"lr": lr, "tolerance_grad": tolerance_grad, "tolerance_change": tolerance_change},
        max_iter=max_iter,
        max_eval=max_eval,
        history_size=history_size,
        line_search_fn=line_search_fn,
    )
    return Optimizer(algorithm.init, algorithm.update)

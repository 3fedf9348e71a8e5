r"""Limited-memory BFGS, with or without a strong-Wolfe line search: torch's step."""

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from jaxopt_port.closure import lbfgs_run
from jaxopt_port.closure.base import REMEDY, ClosureAlgorithm, Limits, Progress, check_count, iterate
from jaxopt_port.closure.flat import Evaluate, Tree, dot, max_abs, move
from jaxopt_port.closure.lbfgs_memory import LBFGSState, StrongWolfeState, direction, remember
from jaxopt_port.closure.line_search import strong_wolfe
from jaxopt_port.closure.placement import Make
from jaxopt_port.closure.stop import Stop, first_of
from jaxopt_port.factory import told
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.scalars import Scalar, check_lr


class LBFGS(ClosureAlgorithm):
    """L-BFGS on one flat vector.

    Its static options are `max_iter`, `max_eval`, `history_size` and `line_search_fn`, as in `lbfgs`.
    """

    name = "lbfgs"

    def first_slots(self, make: Make, d: Tree, size: int, dtype: Any) -> LBFGSState:
        rows = self.static["history_size"]
        number, integer = partial(make, 0, (), dtype), partial(make, 0, (), jnp.int32)
        return (StrongWolfeState if self.static["line_search_fn"] else LBFGSState)(
            d=d, t=number(), old_dirs=make(0, (rows, size), dtype), old_stps=make(0, (rows, size), dtype),
            ro=make(0, (rows,), dtype), H_diag=make(1, (), dtype), prev_flat_grad=make(0, (size,), dtype),
            prev_loss=number(), oldest=integer(), stored=integer(), stop=make(Stop.NOT_YET, (), jnp.int32),
        )  # fmt: skip

    def other_kind(self, found: Any) -> NoReturn:
        if not isinstance(found, LBFGSState):
            super().other_kind(found)
        search = "strong_wolfe" if isinstance(found, StrongWolfeState) else None
        here = self.static["line_search_fn"]
        raise ValueError(f"the state is of line_search_fn={search!r}, this optimizer has {here!r}. {REMEDY}")

    def other_shape(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> NoReturn:
        if name in ("old_dirs", "old_stps", "ro") and found[:1] != expected[:1]:
            raise ValueError(
                f"the state is of history_size={found[0]}, this optimizer has history_size={expected[0]}. {REMEDY}"
            )
        super().other_shape(name, found, expected)

    def run(
        self, evaluate: Evaluate, at: Progress, hyper: SimpleNamespace, n_iter: jax.Array, limits: Limits
    ) -> Progress:
        return lbfgs_run.run(evaluate, at, hyper, n_iter, limits, self.static["line_search_fn"] is not None)

    def run_step(
        self, evaluate: Evaluate, at: Progress, hyper: SimpleNamespace, n_iter: jax.Array, limits: Limits
    ) -> Progress:
        """torch's, operation by operation."""
        searches = self.static["line_search_fn"] is not None

        def iteration(now: Progress) -> Progress:
            loss, grad = now.loss, now.grad
            slots = remember(now.slots, grad, _learn)
            d = direction(slots, grad)
            # torch's min(1.0, 1.0 / sum) * lr
            norm = jnp.sum(jnp.abs(grad))
            first = n_iter + now.iters == 0
            t = jnp.where(first, jnp.where(1 / norm < 1, 1 / norm, 1) * hyper.lr, hyper.lr)
            gtd = dot(grad, d)
            now = now._replace(slots=slots._replace(d=d, t=t, prev_flat_grad=grad, prev_loss=loss))
            too_flat = gtd > -hyper.tolerance_change

            def stay(now: Progress) -> Progress:
                return now._replace(iters=now.iters + 1, slots=now.slots._replace(stop=jnp.int32(Stop.DIRECTION)))

            def go(now: Progress) -> Progress:
                if searches:
                    now, satisfied = _search(evaluate, now, gtd, hyper, limits)
                else:
                    now, satisfied = _fixed_step(evaluate, now, limits), jnp.ones((), bool)
                return now._replace(slots=now.slots._replace(stop=_why(now, satisfied, hyper, limits)))

            return jax.lax.cond(too_flat, stay, go, now)

        return iterate(iteration, at, limits)


def _learn(ys: jax.Array, y: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    del step
    return ys > 1e-10, ys / dot(y, y)


def _search(
    evaluate: Evaluate, now: Progress, gtd: jax.Array, hyper: SimpleNamespace, limits: Limits
) -> tuple[Progress, jax.Array]:
    """A strong-Wolfe step, and whether it is one."""
    s: LBFGSState = now.slots
    found = strong_wolfe(
        lambda t: evaluate(move(now.x, t, s.d)), s.t, s.d, now.loss, now.grad, gtd, hyper.tolerance_change,
        max_ls=limits.max_eval - now.evals,
    )  # fmt: skip
    x = move(now.x, found.t, s.d)
    return now.after(x, found.loss, found.grad, found.evals, s._replace(t=found.t)), found.satisfied


def _fixed_step(evaluate: Evaluate, now: Progress, limits: Limits) -> Progress:
    """The step as it is. The loss is not evaluated after the last one."""
    x = move(now.x, now.slots.t, now.slots.d)
    last = now.iters + 1 == limits.max_iter
    loss, grad = jax.lax.cond(last, lambda x: (now.loss, now.grad), evaluate, x)
    return now.after(x, loss, grad, jnp.where(last, 0, 1), now.slots)


def _why(now: Progress, satisfied: jax.Array, hyper: SimpleNamespace, limits: Limits) -> jax.Array:
    """torch's conditions for ending a step, in torch's order."""
    s: LBFGSState = now.slots
    still = max_abs(s.d * s.t) <= hyper.tolerance_change
    return first_of(
        (now.iters == limits.max_iter, Stop.MAX_ITER),
        (now.evals >= limits.max_eval, Stop.MAX_EVAL),
        (max_abs(now.grad) <= limits.tolerance_grad, Stop.GRADIENT),
        (still & ~satisfied, Stop.LINE_SEARCH),
        (still | (jnp.abs(now.loss - s.prev_loss) < hyper.tolerance_change), Stop.CHANGE),
    )


@told
def lbfgs(
    lr: Scalar = 1,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: Scalar = 1e-7,
    tolerance_change: Scalar = 1e-9,
    history_size: int = 100,
    line_search_fn: str | None = None,
    *,
    maximize: bool = False,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""Limited-memory BFGS: torch.optim.LBFGS.

    .. math::
      d_k &= -H_k g_k, \quad \theta_{k+1} = \theta_k + t_k d_k \\
      H_{k+1} &= (I - \rho s y^T) H_k (I - \rho y s^T) + \rho s s^T, \quad
      s = t_k d_k,\ y = g_{k+1} - g_k,\ \rho = 1 / y^T s

    One step runs up to `max_iter` iterations from the memory that the last one left, in one `lax.while_loop`.

    Call it with a pure closure, jitted, and with what changes between steps (a batch) as an argument::

        step = jax.jit(lambda params, state, batch: optimizer.step_closure(closure, state, params, batch))
        loss, params, state = step(params, state, batch)

    Without jit it is compiled once as well, but whether the closure is still the same has to be found out at every
    call. It is where it has the same code and all that it can reach is the same (the variables around it, what it
    calls, attributes of objects), but for arrays of the same shape and dtype that it captures itself, in variables
    around it, as defaults or by `functools.partial`. Where anything else has changed, or that cannot be told, it is
    traced with its gradient, which takes several times what tracing the loss takes. It is compiled anew where that
    gives another program: with other shapes and dtypes; another Python or NumPy number that it captures; another array
    that a `jax.jit` inside it captures; another string, or whatever else is no array, in `*args`; a callback made anew.

    The memory is two arrays of `history_size` rows, made by `init` on the parameters' devices and divided along the
    mesh axes that divide them, as far as their length can be. Donate the state, or it is copied at every step.

    Args:
      lr: the step length, or the first that the line search tries; live. In the first iteration ever it is multiplied
        by min(1, 1 / sum |g|).
      max_iter: iterations a step, an integer; static.
      max_eval: evaluations a step, `max_iter * 5 // 4` where None; static.
      tolerance_grad: a step ends where no element of the gradient is larger; live.
      tolerance_change: a step ends where no parameter, or the loss, moves by more; live. It is torch's absolute one: at
        losses below it a step goes nowhere; `minimize` does without.
      history_size: pairs of vectors to remember; static.
      line_search_fn: `"strong_wolfe"` or None; static.
      maximize: climb instead; the loss that is returned is the closure's own, those in the state are negated, as are
        the gradients; static.
      param_groups: not supported, as in torch.

    Returns:
      An `Optimizer`. `step_closure` returns the loss at the parameters given. In the state, `steps[0]` has `func_evals`
      and `n_iter`, and `slots` is an `LBFGSState`, whose `stop` says why the step ended.

    Raises:
      ValueError: an option out of range, or parameter groups, in torch's words; in a step, a state of other parameters,
        another `history_size` or `line_search_fn`; under `shard_map`, a loss that is not the same on every device.
      RuntimeError: a line search that does not exist, in torch's words.

    Example:
      >>> import jax, jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.lbfgs(line_search_fn="strong_wolfe")
      >>> params = {"w": jnp.array([3.0, -2.0])}
      >>> closure = lambda params: (params["w"] ** 2).sum()
      >>> step = jax.jit(lambda params, state: optimizer.step_closure(closure, state, params))
      >>> loss, params, state = step(params, optimizer.init(params))
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
        maximize=maximize,
    )
    return Optimizer(algorithm.init, algorithm.update)

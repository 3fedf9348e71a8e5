"""What L-BFGS and nonlinear conjugate gradients share: the state, the three ways to call them, the limits of a run."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from jaxopt_port.checks import check_fresh, check_live
from jaxopt_port.closure.flat import (
    Evaluate,
    Leaves,
    Tree,
    flat_dtype,
    flat_size,
    flatten,
    gradient,
    leaves_of,
    max_abs,
    unflat_dtype,
    unflatten,
    wide_enough,
)
from jaxopt_port.closure.line_search import rounding
from jaxopt_port.closure.placement import Make, abstract_like, check_like_params, make_like
from jaxopt_port.closure.stop import Stop, first_of, or_non_finite
from jaxopt_port.number import to_float64, to_number
from jaxopt_port.optimizer import Algorithm, OptState, called, check_state
from jaxopt_port.scalars import check_number
from jaxopt_port.sharding import abstract, is_abstract, on_devices_of, sharded_as

if TYPE_CHECKING:
    from jaxopt_port.closure.program import Program

REMEDY = "Make one of these parameters with this optimizer's init."
UNLIMITED = 2**31 - 1
STALLED = 50  # iterations without progress


class Limits(NamedTuple):
    """How far one call may go.

    Args:
      max_iter: iterations.
      max_eval: evaluations, the first included; it is looked at between iterations.
      tolerance_grad: the largest element of a gradient that counts as zero.
    """

    max_iter: jax.Array
    max_eval: jax.Array
    tolerance_grad: jax.Array


class Progress(NamedTuple):
    """Where a call is.

    Args:
      x: the parameters' leaves.
      loss: the last loss.
      grad: the last gradient.
      iters: iterations of this call.
      evals: evaluations of this call.
      slots: the algorithm's own state; its `stop` says why the call ends.
      least_loss: of this call.
      least_grad: the smallest largest element of a gradient in this call.
      idle: iterations since either came down.
    """

    x: Leaves
    loss: jax.Array
    grad: jax.Array
    iters: jax.Array
    evals: jax.Array
    slots: Any
    least_loss: jax.Array
    least_grad: jax.Array
    idle: jax.Array

    @classmethod
    def first(cls, x: Leaves, loss: jax.Array, grad: jax.Array, slots: Any) -> "Progress":
        """After the first evaluation."""
        return cls(x, loss, grad, jnp.int32(0), jnp.int32(1), slots, loss, max_abs(grad), jnp.int32(0))

    def after(self, x: Leaves, loss: jax.Array, grad: jax.Array, evals: jax.Array, slots: Any) -> "Progress":
        """After an iteration of so many evaluations."""
        norm = max_abs(grad)
        comes_down = (loss < self.least_loss) | (norm < self.least_grad)
        return Progress(
            x, loss, grad, self.iters + 1, self.evals + evals, slots,
            jnp.minimum(loss, self.least_loss), jnp.minimum(norm, self.least_grad),
            jnp.where(comes_down, 0, self.idle + 1),
        )  # fmt: skip

    def finite(self) -> jax.Array:
        """Whether loss and gradient are."""
        return jnp.isfinite(self.loss) & jnp.isfinite(max_abs(self.grad))

    def slack(self) -> jax.Array:
        """By how much the loss may rise: to no more than the least one and its rounding."""
        return jnp.maximum(self.least_loss + rounding(self.least_loss) - self.loss, 0)

    def stalled(self) -> jax.Array:
        """Whether a search goes to and fro within the rounding of loss and gradient."""
        return self.idle >= STALLED


def iterate(
    iteration: Callable[[Progress], Progress], at: Progress, limits: Limits, *sooner: tuple[jax.Array, Stop]
) -> Progress:
    """`iteration` until it sets a stop; not once where the first evaluation is the end.

    Args:
      iteration: one, which sets `slots.stop`.
      at: the first evaluation, and the state.
      limits: of the call.
      sooner: what ends it there before the gradient is looked at.
    """
    stop = first_of(
        *sooner,
        (max_abs(at.grad) <= limits.tolerance_grad, Stop.GRADIENT),
        (limits.max_iter < 1, Stop.MAX_ITER),
    )
    at = at._replace(slots=at.slots._replace(stop=stop))
    return jax.lax.while_loop(lambda now: now.slots.stop == Stop.NOT_YET, iteration, at)


class ClosureAlgorithm(Algorithm):
    """An algorithm that evaluates the loss several times a step, on all parameters as one vector.

    Its `OptState` has the counters `func_evals` and `n_iter` in `steps[0]`, the algorithm's own NamedTuple of flat
    arrays in `slots`, but for the direction `d`, which is a tree like the parameters, and the live hyper-parameters in
    `param_groups[0]`. Two with the same static options are equal, so that they share what is compiled.
    """

    name: str  # of the factory, for messages

    def __init__(self, live: Mapping[str, Any], **static: Any):
        from jaxopt_port.closure.program import Traces  # here, since it imports jax.extend, which takes long

        for option, value in live.items():
            check_number(option, value)
        self.live, self.static, self.traces = dict(live), static, Traces()
        self.has_begun = False  # whether `init` was called, see check_fresh

    def first_slots(self, make: Make, d: Tree, size: int, dtype: Any) -> Any:
        """The algorithm's state before the first step.

        Args:
          make: an array of a value, a shape and a dtype.
          d: zeros like the parameters, for the direction.
          size: of a vector.
          dtype: of a vector.
        """
        raise NotImplementedError

    def tolerance_grad(self, hyper: SimpleNamespace, slots: Any, grad: jax.Array, n_iter: jax.Array) -> Any:
        """The largest element of a gradient that counts as zero in a step."""
        return hyper.tolerance_grad

    def run(
        self, evaluate: Evaluate, at: Progress, hyper: SimpleNamespace, n_iter: jax.Array, limits: Limits
    ) -> Progress:
        """Iterate until a limit is reached.

        Args:
          evaluate: the loss and its flat gradient.
          at: the first evaluation, and the state.
          hyper: the live hyper-parameters in the vector's dtype.
          n_iter: the iterations of all earlier calls.
          limits: of this call.
        """
        raise NotImplementedError

    def run_step(
        self, evaluate: Evaluate, at: Progress, hyper: SimpleNamespace, n_iter: jax.Array, limits: Limits
    ) -> Progress:
        """The same for one step, which may have a torch to follow."""
        return self.run(evaluate, at, hyper, n_iter, limits)

    def __reduce__(self) -> Any:
        return partial(type(self), self.live, **self.static), ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.static == getattr(other, "static", None)

    def __hash__(self) -> int:
        return hash((type(self), *self.static.items()))

    def __repr__(self) -> str:
        return called(self.name, {**self.live, **self.static})

    def init(self, params: Tree) -> OptState:
        self.has_begun = True
        with wide_enough(params):
            leaves = leaves_of(params)
            counts = {"func_evals": jnp.int32(0), "n_iter": jnp.int32(0)}
            scalars = ((counts,), ({name: to_number(value) for name, value in self.live.items()},))
            steps, live = abstract(scalars) if any(map(is_abstract, leaves)) else on_devices_of(leaves, scalars)
            return OptState(steps, self._slots(params, make_like(leaves)), live)

    def _slots(self, params: Tree, make: Make) -> Any:
        leaves, treedef = leaves_of(params), jax.tree.structure(params)
        dtype = flat_dtype(leaves)
        d = treedef.unflatten(make(0, leaf.shape, unflat_dtype(leaf, dtype), like=leaf) for leaf in leaves)
        return self.first_slots(make, d, flat_size(leaves), dtype)

    def step(self, grads: Tree, state: OptState, params: Tree) -> tuple[Tree, OptState]:
        raise TypeError(
            f"{self.name} evaluates the loss several times a step: call "
            "optimizer.step_closure(closure, state, params), with closure(params) -> loss"
        )

    def step_closure(
        self, closure: Callable[..., Any], state: OptState, params: Tree, *args: Any, has_aux: bool = False
    ) -> tuple[Any, Tree, OptState]:
        self.check_state(state, params)
        with wide_enough(params):
            program, operands = self.traces(closure, params, args, has_aux)
            return _step_closure(self, program, has_aux, operands, state, params)

    def update(self, updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any) -> tuple[Tree, Any]:
        """optax's view of the same, with the extra arguments of `optax.lbfgs`.

        Get them from `jax.value_and_grad(value_fn)`: `optax.value_and_grad_from_state` finds nothing in this state.
        As torch's, a step begins with an evaluation of its own, since the batch may be another one.

        Args:
          updates: the gradient.
          state: what `init` or the last update returned.
          params: the parameters.
          **extra_args: `value`, the loss; `value_fn`, the closure; `grad`, the gradient where `updates` is not it;
            and what `value_fn` takes by keyword.
        """
        value, grad, value_fn = (extra_args.pop(name, None) for name in ("value", "grad", "value_fn"))
        if params is None or value is None or value_fn is None:
            raise TypeError(
                f"{self.name} evaluates the loss several times a step: call update(grads, state, params, value=loss, "
                "grad=grads, value_fn=closure), or optimizer.step_closure(closure, state, params)"
            )
        self.check_state(state, params)
        known = inspect.signature(value_fn).parameters
        value_fn = partial(value_fn, **{name: x for name, x in extra_args.items() if name in known})
        with wide_enough(params):
            leaves, treedef = leaves_of(params), jax.tree.structure(params)
            of_leaves = gradient(value_fn, treedef, (), has_aux=False)

            def evaluate(leaves: Leaves) -> tuple[jax.Array, jax.Array]:
                loss, grads = of_leaves(leaves)
                return loss, flatten(grads, leaves)

            flat = flatten(treedef.flatten_up_to(updates if grad is None else grad), leaves)
            new, state = self._from(evaluate, value, flat, state, leaves)
            return treedef.unflatten(n - o for n, o in zip(new, leaves, strict=True)), state

    def check_state(self, state: Any, params: Tree) -> None:
        """Raise where the state is not the one that `init` makes of such parameters."""
        check_state(state, OptState, "step_closure(closure, state, params)")
        with wide_enough(params):
            expected = self._slots(params, abstract_like)
        found = state.slots
        if type(found) is not type(expected) or sorted(state.param_groups[0]) != sorted(self.live):
            self.other_kind(found)
        check_live(state.param_groups[0], 0)
        if not self.has_begun:
            arrays = {name: value for name, value in self.live.items() if isinstance(value, jax.Array)}
            check_fresh(arrays, state.param_groups[0], 0)
        check_like_params(found.d, expected.d, params)
        for name, array in expected._asdict().items():
            shape = jnp.shape(getattr(found, name)) if name != "d" else ()
            if name != "d" and shape != array.shape:
                self.other_shape(name, shape, array.shape)

    def other_kind(self, found: Any) -> NoReturn:
        """Raise for slots of another kind."""
        raise ValueError(f"the state is another optimizer's, with {type(found).__name__} in slots. {REMEDY}")

    def other_shape(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> NoReturn:
        """Raise for a slot of another shape than parameters and options make."""
        raise ValueError(f"the state's {name} is {list(found)}, this optimizer's {list(expected)}. {REMEDY}")

    def live_values(self, state: OptState, dtype: Any) -> SimpleNamespace:
        """The live hyper-parameters, rounded as torch rounds a number that meets a tensor."""
        live = state.param_groups[0]
        return SimpleNamespace(**{name: to_float64(number).astype(dtype) for name, number in live.items()})

    def _from(
        self, evaluate: Evaluate, loss: Any, grad: jax.Array, state: OptState, leaves: Leaves
    ) -> tuple[Leaves, OptState]:
        """One step, given the first evaluation."""
        hyper = self.live_values(state, grad.dtype)
        tolerance = self.tolerance_grad(hyper, state.slots, grad, state.steps[0]["n_iter"])
        limits = Limits(jnp.int32(self.static["max_iter"]), jnp.int32(self.static["max_eval"]), tolerance)
        end = self.go(self.run_step, evaluate, loss, grad, state, leaves, limits)
        return end.x, self.ended(state, end)

    def go(
        self,
        run: Callable[..., Progress],
        evaluate: Evaluate,
        loss: Any,
        grad: jax.Array,
        state: OptState,
        leaves: Leaves,
        limits: Limits,
    ) -> Progress:
        """`run` or `run_step` from the first evaluation on, and what of it is not finite."""
        sign = -1 if self.static.get("maximize") else 1

        def seen(loss: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
            check_not_varying(self.name, loss, grad)
            return sign * jnp.asarray(loss, grad.dtype), sharded_as(state.slots.prev_flat_grad, sign * grad)

        like_params, treedef = jax.tree.flatten(state.slots.d)
        slots = state.slots._replace(d=sharded_as(state.slots.prev_flat_grad, flatten(like_params, leaves)))
        at = Progress.first(leaves, *seen(loss, grad), slots)
        hyper = self.live_values(state, grad.dtype)
        end = run(lambda x: seen(*evaluate(x)), at, hyper, state.steps[0]["n_iter"], limits)
        stop = or_non_finite(end.slots.stop, end.loss, end.grad, *end.x)
        slots = end.slots._replace(d=treedef.unflatten(unflatten(end.slots.d, leaves)), stop=stop)
        return end._replace(loss=sign * end.loss, slots=slots)

    def ended(self, state: OptState, end: Progress) -> OptState:
        """The state after a call."""
        counts = state.steps[0]
        steps = {"func_evals": counts["func_evals"] + end.evals, "n_iter": counts["n_iter"] + end.iters}
        return OptState((steps,), end.slots, state.param_groups)


def check_not_varying(name: str, loss: Any, grad: jax.Array) -> None:
    """Raise under `shard_map` where every device has a loss or a gradient of its own.

    Raises:
      ValueError: names the mesh axes, and what to do.
    """
    kinds = [getattr(jax.typeof(x), "manual_axis_type", None) for x in (loss, grad)]
    axes = sorted({axis for kind in kinds for axis in getattr(kind, "varying", ())})
    if axes:
        raise ValueError(
            f"{name} was called under shard_map with a loss that differs along the mesh axes {', '.join(axes)}: every "
            f"device would search for itself. Return the mean from the closure, jax.lax.pmean(loss, {axes[0]!r}), with "
            "parameters that are whole on every device; or call it outside of shard_map, in a jit with sharded arrays"
        )


def check_count(name: str, value: Any, at_least: int) -> None:
    """Raise where a number of iterations, evaluations or vectors is none.

    Raises:
      ValueError: `{name} should be an integer >= {at_least} but is: {value}`.
    """
    if not isinstance(value, Integral) or value < at_least:
        raise ValueError(f"{name} should be an integer >= {at_least} but is: {value!r}")


@partial(jax.jit, static_argnums=(0, 1, 2))
def _step_closure(
    algorithm: ClosureAlgorithm, program: "Program", has_aux: bool, operands: list[Any], state: OptState, params: Tree
) -> tuple[Any, Tree, OptState]:
    leaves, treedef = leaves_of(params), jax.tree.structure(params)
    evaluate = program.evaluation(operands)
    returned, grad = evaluate(leaves)

    def loss_alone(x: Leaves) -> tuple[jax.Array, jax.Array]:
        returned, grad = evaluate(x)
        return (returned[0] if has_aux else returned), grad

    loss = returned[0] if has_aux else returned
    new, state = algorithm._from(loss_alone, loss, grad, state, leaves)
    return returned, treedef.unflatten(new), state

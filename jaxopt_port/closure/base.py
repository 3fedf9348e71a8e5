"""What L-BFGS and nonlinear conjugate gradients share: the state, the three ways to call them, the limits of a run."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.closure.flat import (
    Evaluate,
    Leaves,
    Tree,
    flat_dtype,
    flat_size,
    flatten,
    gradient,
    leaves_of,
    wide_enough,
)
from jaxopt_port.closure.program import Program, trace
from jaxopt_port.number import to_float64, to_number
from jaxopt_port.optimizer import Algorithm, OptState

UNLIMITED = 2**31 - 1


class Limits(NamedTuple):
    """How far one call may go.

    Args:
      max_iter: iterations.
      max_eval: evaluations, the first included; it is looked at between iterations.
      max_search: evaluations of one line search beside its first.
      tolerance_grad: the largest element of a gradient that counts as zero.
      as_torch: whether to do as torch does where a loss is not finite, or a change of it is no more than its rounding:
        go on. A run as a whole goes around the first, sees through the second, and ends where it can do neither.
    """

    max_iter: jax.Array
    max_eval: jax.Array
    max_search: jax.Array
    tolerance_grad: jax.Array
    as_torch: bool


class Progress(NamedTuple):
    """Where a call is.

    Args:
      x: the parameters' leaves.
      loss: the last loss.
      grad: the last gradient.
      iters: iterations of this call.
      evals: evaluations of this call.
      slots: the algorithm's own state; its `stop` says why the call ends.
    """

    x: Leaves
    loss: jax.Array
    grad: jax.Array
    iters: jax.Array
    evals: jax.Array
    slots: Any


class ClosureAlgorithm(Algorithm):
    """An algorithm that evaluates the loss several times a step, on all parameters as one vector.

    Its `OptState` has the counters `func_evals` and `n_iter` in `steps[0]`, the algorithm's own NamedTuple of flat
    arrays in `slots` and the live hyper-parameters in `param_groups[0]`. Two with the same static options are equal,
    so that they share what is compiled.
    """

    name: str  # of the factory, for messages

    def __init__(self, live: Mapping[str, Any], **static: Any):
        self.live, self.static = dict(live), static

    def first_slots(self, size: int, dtype: Any) -> Any:
        """The algorithm's state before the first step."""
        raise NotImplementedError

    def tolerance_grad(self, h: SimpleNamespace, slots: Any, grad: jax.Array, n_iter: jax.Array) -> Any:
        """The largest element of a gradient that counts as zero in a step."""
        return h.tolerance_grad

    def run(self, evaluate: Evaluate, at: Progress, h: SimpleNamespace, n_iter: jax.Array, limits: Limits) -> Progress:
        """Iterate until a limit is reached.

        Args:
          evaluate: the loss and its flat gradient.
          at: the first evaluation, and the state.
          h: the live hyper-parameters in the vector's dtype.
          n_iter: the iterations of all earlier calls.
          limits: of this call.
        """
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.static == getattr(other, "static", None)

    def __hash__(self) -> int:
        return hash((type(self), *self.static.items()))

    def init(self, params: Tree) -> OptState:
        with wide_enough(params):
            leaves = leaves_of(params)
            return OptState(
                steps=({"func_evals": jnp.zeros((), jnp.int32), "n_iter": jnp.zeros((), jnp.int32)},),
                slots=self.first_slots(flat_size(leaves), flat_dtype(leaves)),
                param_groups=({name: to_number(value) for name, value in self.live.items()},),
            )

    def step(self, grads: Tree, state: OptState, params: Tree) -> tuple[Tree, OptState]:
        raise TypeError(
            f"{self.name} evaluates the loss several times a step: call "
            "optimizer.step_closure(closure, state, params), with closure(params) -> loss"
        )

    def step_closure(
        self, closure: Callable[..., Any], state: OptState, params: Tree, *args: Any, has_aux: bool = False
    ) -> tuple[Any, Tree, OptState]:
        self.check_state(state)
        with wide_enough(params):
            program, operands = trace(closure, params, args, has_aux)
            return _step_closure(self, program, has_aux, operands, state, params)

    def update(self, updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any) -> tuple[Tree, Any]:
        """optax's view of the same, as `optax.lbfgs` has it.

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
        self.check_state(state)
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

    def check_state(self, state: Any) -> None:
        """Raise where the state is not of this kind of optimizer."""
        if not isinstance(state, OptState):
            raise TypeError(f"expected the OptState that init returned, got a {type(state).__name__}")
        kind = type(self.first_slots(0, jnp.float32))
        if not isinstance(state.slots, kind) or sorted(state.param_groups[0]) != sorted(self.live):
            raise ValueError(f"the state is another optimizer's: {self.name} needs one with {kind.__name__} in slots")

    def live_values(self, state: OptState, dtype: Any) -> SimpleNamespace:
        """The live hyper-parameters, rounded as torch rounds a number that meets a tensor."""
        return SimpleNamespace(
            **{name: to_float64(value).astype(dtype) for name, value in state.param_groups[0].items()}
        )

    def _from(
        self, evaluate: Evaluate, loss: Any, grad: jax.Array, state: OptState, leaves: Leaves
    ) -> tuple[Leaves, OptState]:
        """One step, given the first evaluation."""
        h = self.live_values(state, grad.dtype)
        max_eval = jnp.int32(self.static["max_eval"])
        tolerance = self.tolerance_grad(h, state.slots, grad, state.steps[0]["n_iter"])
        limits = Limits(jnp.int32(self.static["max_iter"]), max_eval, max_eval, tolerance, as_torch=True)
        end = self.go(evaluate, loss, grad, state, leaves, limits)
        return end.x, self.ended(state, end)

    def go(
        self, evaluate: Evaluate, loss: Any, grad: jax.Array, state: OptState, leaves: Leaves, limits: Limits
    ) -> Progress:
        """`run` from the first evaluation on."""
        at = Progress(leaves, jnp.asarray(loss, grad.dtype), grad, jnp.int32(0), jnp.int32(1), state.slots)

        def flat_evaluate(x: Leaves) -> tuple[jax.Array, jax.Array]:
            loss, grad = evaluate(x)
            return loss.astype(grad.dtype), grad

        h = self.live_values(state, grad.dtype)
        return self.run(flat_evaluate, at, h, state.steps[0]["n_iter"], limits)

    def ended(self, state: OptState, end: Progress) -> OptState:
        """The state after a call."""
        counts = state.steps[0]
        steps = {"func_evals": counts["func_evals"] + end.evals, "n_iter": counts["n_iter"] + end.iters}
        return OptState((steps,), end.slots, state.param_groups)


def check_count(name: str, value: Any, at_least: int) -> None:
    """Raise where a number of iterations, evaluations or vectors is none.

    Raises:
      ValueError: `{name} should be an integer >= {at_least} but is: {value}`.
    """
    if not isinstance(value, Integral) or value < at_least:
        raise ValueError(f"{name} should be an integer >= {at_least} but is: {value!r}")


@partial(jax.jit, static_argnums=(0, 1, 2))
def _step_closure(
    algorithm: ClosureAlgorithm, program: Program, has_aux: bool, operands: list[Any], state: OptState, params: Tree
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

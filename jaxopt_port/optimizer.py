"""Optimizer and OptState: what a user holds, and why a state has the form that it has.

A `Rule` (rule.py) is one optimizer's arithmetic on one array; `lift` (lift.py) makes an `Optimizer` of it. The form was
chosen by experiment (2 cores, AdamW, float32, donated; times to compile in CPU seconds):

(a) A rule split into `scalars` / `update` carries NAdam's float32 `mu_product`, ASGD's `eta` and `mu` and SGD's late
    first buffer: each is an entry of the scalar state that `scalars` returns. Rprop's step size is a slot whose first
    value comes from a scalar. Adafactor and Muon compute scalars from tensors or shapes, so their `update` takes its
    scalars unrounded (`float64_update`). L-BFGS shares nothing of this but the hyper-parameters: it has a state of its
    own.
(b) A hyper-parameter is a `Number`, four float32. A float64 leaf does not survive `eval_shape`, Orbax, flax's bytes or
    a `tree.map(jnp.asarray)` with x64 off; two uint32 have silently wrong derivatives and take 40 s to compile at 1,000
    leaves; three float32 lose eps = 1e-30 to subnormals. Four cost what a float64 leaf does: at 1,000 leaves 4.9 s to
    compile (float64 leaves 5.0, the same without the reduction in group_scalars.py 6.8).
(c) Slots are the rule's NamedTuple with a tree like the parameters in each field, as optax's are, so that
    `optax.tree.map_params` with a tree of specs and `optax.tree.get(state, "exp_avg")` work. The other way round (a
    NamedTuple at each leaf) neither does, and the arithmetic is the same.
(d) Moments are leaves and not one vector: on a CPU leaves are 1.6 to 13 times as fast (160 x 156k: 27 ms against 74 to
    132). Where the number of buffers is what costs, on a GPU with many leaves, there is `flat`.
(e) One step counter for a whole group: a counter a parameter costs a buffer each (1,000 leaves: 42 ms against 25).
    Once a None gradient has skipped some parameters of a group and not others, the group's scalar state is a vector
    with an element a parameter. Each leaf then reads its scalars from a small array of its own: kernels that slice
    one vector at different places are different kernels (100 leaves, a third None: 4.1 s to compile, so 1.2).
"""

from collections.abc import Callable, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_port.checks import flatten_like
from jaxopt_port.param_groups import ParamGroup

Tree = Any


# What torch's optimizers have, and where it is here.
TORCHS = {
    "add_param_group": "it is jaxopt_port.add_param_group(optimizer, state, params, group)",
    "lr": "read it with jaxopt_port.get_hyper(state), change it with set_hyper(state, lr=...)",
    "load_state_dict": "it is jaxopt_port.torch_interop.load_optimizer(factory, state_dict, params, mapping)",
    "param_groups": "read them with jaxopt_port.get_hyper(state), change them with set_hyper(state, lr=...)",
    "state": "it is a value that init(params) and step return",
    "state_dict": "it is jaxopt_port.torch_interop.optimizer_state_dict(optimizer, state, params, mapping)",
    "zero_grad": "gradients are values here, and jax.grad returns new ones; jaxopt_port.zero_grad(grads) empties a sum",
}


class OptState(NamedTuple):
    """The state of an optimizer, a pytree.

    Args:
      steps: for each group its scalar state: `step`, the number of steps taken, float32 as torch's, and what torch
        keeps as a scalar a parameter. 0-d, or a vector with an element for each of the group's parameters once a
        None gradient has skipped some of them. A frozen group has none.
      slots: the rule's NamedTuple with torch's names and a tree like the parameters in each field, as in
        `state.slots.exp_avg["dense"]["kernel"]`: None where a parameter has no such array (it is frozen, or its group
        has no amsgrad), and for the whole tree where no group has. Where parameters are in boxes (nnx variables,
        partitioned linen), so are the arrays.
      param_groups: for each group its live hyper-parameters by torch's names, each a `Number`.
    """

    steps: tuple[dict[str, jax.Array], ...]
    slots: Any
    param_groups: tuple[dict[str, Any], ...]

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            hint = "hyper-parameters are read by jaxopt_port.get_hyper(state), arrays are in state.slots"
            raise AttributeError(f"'OptState' object has no attribute {name!r}: {hint}")


class Optimizer(optax.GradientTransformationExtraArgs):
    """An optax gradient transformation that can also take torch's step.

    `init(params) -> state` and `update(grads, state, params) -> (updates, state)` are optax's.

    Example:
      >>> import jaxopt_port as optim
      >>> optimizer = optim.sgd(lr=0.5)
      >>> params = {"w": jnp.array([3.0])}
      >>> grads, state = {"w": jnp.array([2.0])}, optimizer.init(params)
      >>> optimizer.step(grads, state, params)[0], optimizer.update(grads, state, params)[0]
      ({'w': Array([2.], dtype=float32)}, {'w': Array([-1.], dtype=float32)})
    """

    __slots__ = ()

    if TYPE_CHECKING:  # optax's fields, whose types say nothing of our state
        init: Callable[[Tree], OptState]  # pyright: ignore[reportIncompatibleVariableOverride]
        update: Callable[..., tuple[Tree, OptState]]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __repr__(self) -> str:
        return repr(self.update.__self__) if isinstance(self.update, MethodType) else super().__repr__()

    def step(self, grads: Tree, state: OptState, params: Tree) -> tuple[Tree, OptState]:
        """`optimizer.step()`: the new parameters, with torch's bits, and the new state.

        To donate both, jit a function that takes them in the order of the results, `(params, state, ...)`: JAX pairs
        donated arguments with results of the same shape by their order, and copies where the pairs are crossed.

        Args:
          grads: a tree like `params`. None skips a parameter: no step, no change of state. Parameters that never
            step belong in a group with `frozen=True`: once some of a group have been skipped and others not, each has a
            step count of its own, which takes longer to compile, and inside `lax.scan` the state cannot change so.
            For complex parameters torch's gradient, the conjugate of what `jax.grad` gives.
          state: what `init` or the last step returned.
          params: the parameters.

        Returns:
          `(params, state)`.

        Raises:
          ValueError: a gradient tree or shape that is not the parameters'.
          TypeError: a gradient of another dtype than its parameter; hyper-parameters that are not float64.
        """
        return algorithm_of(self).step(grads, state, params)

    def step_closure(
        self, closure: Callable[..., Any], state: OptState, params: Tree, *args: Any, has_aux: bool = False
    ) -> tuple[Any, Tree, OptState]:
        """`optimizer.step(closure)`: evaluates the loss and its gradient, then steps.

        Args:
          closure: `(params, *args) -> loss`, a real scalar, or `(loss, aux)` with `has_aux`.
          state: what `init` or the last step returned.
          params: the parameters.
          *args: handed to `closure`, a batch for example.
          has_aux: whether `closure` returns something beside the loss.

        Returns:
          `(loss, params, state)`, or `((loss, aux), params, state)`; the loss is that of the parameters given.

        Raises:
          TypeError: a closure that is no function, or whose loss is not a real scalar; all that `step` raises.

        Example:
          >>> import jaxopt_port as optim
          >>> optimizer, params = optim.sgd(lr=0.25), {"w": jnp.array([2.0])}
          >>> closure = lambda params: (params["w"] ** 2).sum()
          >>> loss, params, state = optimizer.step_closure(closure, optimizer.init(params), params)
          >>> loss, params
          (Array(4., dtype=float32), {'w': Array([1.], dtype=float32)})
        """
        if not callable(closure):
            raise TypeError(
                "step_closure takes (closure, state, params, *args): closure must be a function, (params, *args) -> "
                f"loss, not {described(closure)}"
            )
        return algorithm_of(self).step_closure(closure, state, params, *args, has_aux=has_aux)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            hint = f": {TORCHS[name]}" if name in TORCHS else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")


class Algorithm:
    """What stands behind an `Optimizer`, whose `init` and `update` are its bound methods."""

    def init(self, params: Tree) -> OptState:
        raise NotImplementedError

    def step(self, grads: Tree, state: OptState, params: Tree) -> tuple[Tree, OptState]:
        raise NotImplementedError

    def update(self, updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any) -> tuple[Tree, Any]:
        raise NotImplementedError

    def frozen_leaves(self, params: Tree) -> list[bool]:
        """Which leaves are in a group with `frozen=True`."""
        return [False] * len(jax.tree.leaves(params))

    def add_param_group(self, state: OptState, params: Tree, group: ParamGroup) -> tuple["Algorithm", OptState]:
        raise ValueError(
            "only an optimizer as its factory returns it takes another group: give every_k, or what else is around it, "
            "the optimizer with the new group; lbfgs and nonlinear_cg have one group only"
        )

    def step_closure(
        self, closure: Callable[..., Any], state: OptState, params: Tree, *args: Any, has_aux: bool = False
    ) -> tuple[Any, Tree, OptState]:
        """One evaluation, then `step`; an algorithm that evaluates more often has its own."""
        loss, grads = jax.value_and_grad(closure, has_aux=has_aux, allow_int=True)(params, *args)
        grads = jax.tree.map(lambda g: g.conj() if jnp.iscomplexobj(g) else g, grads)
        params, state = self.step(grads, state, params)
        return loss, params, state


def add_param_group(
    optimizer: Optimizer, state: OptState, params: Tree, group: ParamGroup
) -> tuple[Optimizer, OptState]:
    """`optimizer.add_param_group(group)`: trains frozen parameters from now on, as when layers are unfrozen in a run.

    The new group is the last, whatever groups match its parameters before; what it leaves out it takes from the
    optimizer's own options, not from their present values. Its parameters start with no state and at step 0.

    Args:
      optimizer: the optimizer so far.
      state: its state.
      params: the parameters, all of them, in the same tree as always.
      group: the new group. Its parameters must be in groups with `frozen=True`.

    Returns:
      `(optimizer, state)`, to be used in place of the old. A jitted step has to be made anew.

    Raises:
      ValueError: a parameter is in another group already that is not frozen.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> params = {"backbone": jnp.ones(2), "head": jnp.ones(2)}
      >>> optimizer = optim.sgd(lr=0.1, param_groups=[optim.ParamGroup("backbone", frozen=True)])
      >>> state = optimizer.init(params)
      >>> optimizer, state = optim.add_param_group(optimizer, state, params, optim.ParamGroup("backbone", lr=0.01))
      >>> [group["lr"] for group in optim.get_hyper(state)]
      [0.1, 0.1, 0.01]
    """
    check_optimizer(optimizer, "add_param_group(optimizer, state, params, group)")
    if not isinstance(group, ParamGroup):
        raise TypeError(
            "add_param_group takes (optimizer, state, params, group): group must be a ParamGroup(which, lr=...), not "
            f"{described(group)}"
        )
    new, state = algorithm_of(optimizer).add_param_group(state, params, group)
    return Optimizer(new.init, new.update), state


def drop_frozen(optimizer: Optimizer, grads: Tree, params: Tree) -> Tree:
    """The gradients that torch would have: None for the parameters in groups with `frozen=True`.

    torch makes no gradient where `requires_grad` is False, `jax.grad` makes one all the same. A step leaves it alone;
    what looks at all the gradients, such as `clip_grad_norm`, needs it gone.

    Args:
      optimizer: says which parameters are frozen; as its factory or `every_k` returns it.
      grads: a tree like `params`.
      params: the parameters.

    Returns:
      `grads`, with None for what is frozen.

    Raises:
      TypeError: an optimizer of another library, or a chain with one of this library inside.
      ValueError: a gradient tree that is not the parameters'.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> params = {"backbone": jnp.ones(2), "head": jnp.ones(2)}
      >>> optimizer = optim.sgd(param_groups=[optim.ParamGroup("backbone", frozen=True)])
      >>> grads = drop_frozen(optimizer, {"backbone": jnp.full(2, 30.0), "head": jnp.array([3.0, 4.0])}, params)
      >>> print(optim.get_total_norm(grads))
      5.0
    """
    check_optimizer(optimizer, "drop_frozen(optimizer, grads, params)")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"a {type(optimizer).__name__} has no parameter groups: pass the optimizer inside")
    treedef = jax.tree.structure(params)
    leaves = flatten_like(treedef, grads, "the gradients")
    frozen = algorithm_of(optimizer).frozen_leaves(params)
    return treedef.unflatten(None if each else g for g, each in zip(leaves, frozen, strict=True))


def described(given: Any) -> str:
    """What was given where something else is wanted, short."""
    if isinstance(given, str | int | float | None):
        return repr(given)
    name, kind = getattr(given, "__name__", None), type(given).__name__
    kind = f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
    return kind if name is None else f"{name}, {kind}"


def called(name: str, options: Mapping[str, Any]) -> str:
    """A call as one writes it: `sgd(lr=0.1)`."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def check_optimizer(optimizer: Any, where: str) -> None:
    """That it is an optimizer, and not its name, the function that makes it or its state."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"{where} needs an optimizer, as jaxopt_port.adam(lr=...) returns it, not {described(optimizer)}"
        )


def check_state(state: Any, kind: type[Any], call: str) -> None:
    """That it is a state, and stands where `call` has it."""
    if not isinstance(state, kind):
        raise TypeError(
            f"expected the {kind.__name__} that init returned, got a {type(state).__name__}: state comes before "
            f"params, as in {call}"
        )


def algorithm_of(optimizer: optax.GradientTransformation) -> Algorithm:
    """What stands behind an optimizer that nothing was put around."""
    lifted = getattr(optimizer.update, "__self__", None)
    if not isinstance(lifted, Algorithm):
        raise TypeError("the update function of this Optimizer was replaced: use update instead of step")
    return lifted

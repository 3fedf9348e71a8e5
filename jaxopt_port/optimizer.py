"""Optimizer, OptState and the lift: the one place that knows trees, groups, None, maximize, complex numbers and jit.

A `Rule` (rule.py) is one optimizer's arithmetic on one array; `lift` makes an `Optimizer` of it. The form was chosen by
experiment (`python -m benchmarks.lift`, 2 cores, AdamW, float32, donated):

(a) A rule split into `init` / `scalars` / `update` carries NAdam's float32 `mu_product`, ASGD's `eta` and `mu` and
    SGD's late first buffer: each is an entry of the scalar state that `scalars` returns. Rprop's step size is a slot
    whose first value comes from a scalar (`where(first, lr, ...)`). Adafactor and Muon compute scalars from tensors or
    shapes, so their `update` takes its scalars unrounded (`float64_update`). L-BFGS shares nothing of this but the
    parameter groups' hyper-parameters: it keeps one flat state of its own.
(b) One step counter for a whole group, and the arithmetic of a leaf in an inner jit, is the cheapest form to run and
    to compile. A counter a parameter costs a buffer each (1,000 leaves: 42 ms against 25 ms, compile 20 s against
    6 s); one vector of counters makes every leaf's kernel another one, since it slices another element (compile 41 s).
    So a group's scalar state is 0-d until a None gradient skips some of its parameters and not others; from then on
    it is a vector with an element a parameter.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_port import param_groups as groups_
from jaxopt_port.checks import check_float64, check_grads, check_slot, flatten_like, form
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import Rule, as_complex, as_real, is_sparse, rounding, step_leaf
from jaxopt_port.scalars import check_numbers, float64, is_known, is_on, to_float64

Tree = Any
T = TypeVar("T")


class OptState(NamedTuple):
    """The state of an optimizer, a pytree.

    Args:
      steps: for each group its scalar state: `step`, the number of steps taken, float32 as torch's, and what torch
        keeps as a scalar a parameter. 0-d, or a vector with an element for each of the group's parameters once a
        None gradient has skipped some of them.
      slots: the parameters' tree with the rule's NamedTuple at each leaf (None where the group is frozen). Where
        parameters are in boxes (nnx variables, partitioned linen), the arrays of the NamedTuple are in such boxes.
      param_groups: for each group its live hyper-parameters, 0-d float64 arrays by torch's names.
    """

    steps: tuple[dict[str, jax.Array], ...]
    slots: Tree
    param_groups: tuple[dict[str, Any], ...]


class Optimizer(optax.GradientTransformationExtraArgs):
    """An optax gradient transformation that can also take torch's step.

    `init(params) -> state` and `update(grads, state, params) -> (updates, state)` are optax's.
    """

    __slots__ = ()

    if TYPE_CHECKING:  # optax's fields, whose types say nothing of our state
        init: Callable[[Tree], OptState]  # pyright: ignore[reportIncompatibleVariableOverride]
        update: Callable[..., tuple[Tree, OptState]]  # pyright: ignore[reportIncompatibleVariableOverride]

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
        """
        return algorithm_of(self).step_closure(closure, state, params, *args, has_aux=has_aux)


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

    def step_closure(
        self, closure: Callable[..., Any], state: OptState, params: Tree, *args: Any, has_aux: bool = False
    ) -> tuple[Any, Tree, OptState]:
        """One evaluation, then `step`; an algorithm that evaluates more often has its own."""
        loss, grads = jax.value_and_grad(closure, has_aux=has_aux, allow_int=True)(params, *args)
        grads = jax.tree.map(lambda g: g.conj() if jnp.iscomplexobj(g) else g, grads)
        params, state = self.step(grads, state, params)
        return loss, params, state


def lift(rule: Rule, options: Mapping[str, Any], param_groups: Sequence[ParamGroup] = ()) -> Optimizer:
    """Make an optimizer over pytrees of a rule for one array.

    Args:
      rule: the arithmetic.
      options: every option of the optimizer with its value: those of the default group.
      param_groups: the other groups; what they leave out they take from `options`.
    """
    lifted = _Lifted(rule, options, param_groups)
    return Optimizer(lifted.init, lifted.update)


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
    lifted = algorithm_of(optimizer)
    if not isinstance(lifted, _Lifted):
        raise ValueError(
            "only an optimizer as its factory returns it takes another group: give every_k, or what else is around it, "
            "the optimizer with the new group; lbfgs and nonlinear_cg have one group only"
        )
    new, state = lifted.add_param_group(state, params, group)
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
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"a {type(optimizer).__name__} has no parameter groups: pass the optimizer inside")
    treedef = jax.tree.structure(params)
    leaves = flatten_like(treedef, grads, "the gradients")
    frozen = algorithm_of(optimizer).frozen_leaves(params)
    return treedef.unflatten(None if each else g for g, each in zip(leaves, frozen, strict=True))


def algorithm_of(optimizer: optax.GradientTransformation) -> Algorithm:
    """What stands behind an optimizer that nothing was put around."""
    lifted = getattr(optimizer.update, "__self__", None)
    if not isinstance(lifted, Algorithm):
        raise TypeError("the update function of this Optimizer was replaced: use update instead of step")
    return lifted


class _Lifted(Algorithm):
    """A rule with its groups."""

    def __init__(self, rule: Rule, options: Mapping[str, Any], param_groups: Sequence[ParamGroup], added: int = 0):
        self.rule = rule
        self.added = added
        self.groups = groups_.check_groups(param_groups, added)
        self.frozen = [False, *(group.frozen for group in self.groups)]
        self.options = [_plain(each) for each in (options, *(_merge(options, group) for group in self.groups))]
        for each in self.options:
            check_numbers(each, rule.live)
            rule.check(each)
        self.live = [
            tuple(name for name in rule.live if name not in rule.structural or is_on(each[name]))
            for each in self.options
        ]
        self.forms: dict[Any, str] = {}  # of the slots, by group, shape and dtype
        self.static = [
            tuple((name, _number(value)) for name, value in each.items() if name not in live)
            for each, live in zip(self.options, self.live, strict=True)
        ]

    def members(self, params: Tree) -> list[int]:
        """The group of every leaf."""
        return groups_.assign(self.groups, params, self.added)

    def frozen_leaves(self, params: Tree) -> list[bool]:
        return [self.frozen[group] for group in self.members(params)]

    def init(self, params: Tree) -> OptState:
        for leaf in filter(is_sparse, jax.tree.leaves(params, is_leaf=is_sparse)):
            self.rule.check_param(leaf)  # torch's words, where it has some
            raise ValueError("a parameter is a BCOO: parameters must be dense, use todense()")
        members = self.members(params)
        leaves = jax.tree.leaves(params)
        boxes, treedef = jax.tree.flatten(params, is_leaf=groups_.is_box)
        return OptState(
            steps=tuple(
                {name: jnp.asarray(first) for name, first in {"step": np.float32(0), **self.rule.scalar_state}.items()}
                for _ in self.options
            ),
            slots=treedef.unflatten(
                None if self.frozen[group] else groups_.box_like(box, self._init_leaf(params, index, leaf, group))
                for index, (box, leaf, group) in enumerate(zip(boxes, leaves, members, strict=True))
            ),
            param_groups=tuple(
                {name: jax.tree.map(to_float64, each[name]) for name in live}
                for each, live in zip(self.options, self.live, strict=True)
            ),
        )

    def _init_leaf(self, params: Tree, index: int, leaf: Any, group: int) -> Any:
        p = jnp.asarray(leaf)
        if not jnp.issubdtype(p.dtype, jnp.inexact):
            raise TypeError(
                f"parameter {groups_.leaf_paths(params)[index]!r} is {p.dtype}: only floating point and complex "
                "parameters can be optimized. Leave it out, or put it in a ParamGroup with frozen=True."
            )
        try:
            self.rule.check_param(p)
        except (ValueError, RuntimeError) as error:
            error.add_note(f"The parameter is {groups_.leaf_paths(params)[index]!r}.")
            raise
        return as_complex(p, self.rule.init(as_real(p), SimpleNamespace(**self.options[group])))

    def step(self, grads: Tree, state: OptState, params: Tree) -> tuple[Tree, OptState]:
        new, state = self._step(grads, state, params)
        old, treedef = jax.tree.flatten(params)
        return treedef.unflatten(o if n is None else n for n, o in zip(new, old, strict=True)), state

    def update(self, updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any) -> tuple[Tree, Any]:
        """optax's view of `step`: new - old parameters, zeros for those that do not step."""
        del extra_args
        if params is None:
            raise ValueError("update needs the parameters: call update(grads, state, params)")
        new, state = self._step(updates, state, params)
        old, treedef = jax.tree.flatten(params)
        deltas = [jnp.zeros_like(o) if n is None else n - o for n, o in zip(new, old, strict=True)]
        return treedef.unflatten(deltas), state

    def _step(self, grads: Tree, state: OptState, params: Tree) -> tuple[list[jax.Array | None], OptState]:
        """The new value of each leaf, None where it does not step, and the new state."""
        self._check_state(state)
        leaves, treedef = jax.tree.flatten(params)
        slots_treedef = jax.tree.structure(params, is_leaf=groups_.is_box)
        boxed = flatten_like(slots_treedef, state.slots, "the optimizer state")
        slots = [groups_.unbox(slot) for slot in boxed]
        leaves, grad_leaves = map(_arrays, (leaves, flatten_like(treedef, grads, "the gradients")))
        members = self.members(params)
        self._check_slots(params, leaves, slots, members)
        check_grads(params, leaves, grad_leaves, self.rule.check_grad)
        new: list[jax.Array | None] = [None] * len(leaves)
        steps = list(state.steps)
        for group, live in enumerate(state.param_groups):
            check_float64(live, group)
            inside = [i for i, member in enumerate(members) if member == group]
            moves = np.array([grad_leaves[i] is not None for i in inside], bool)
            if self.frozen[group] or not moves.any():
                continue
            static = self.static[group]
            with float64():
                c, steps[group] = self._scalars(SimpleNamespace(**live, **dict(static)), state.steps[group], moves)
            round_to = rounding(c, keep=self.rule.float64_update)
            for at, i in enumerate(inside):
                if grad_leaves[i] is not None:
                    wide = leaves[i].dtype in (jnp.float64, jnp.complex128)  # so with jax_enable_x64 off, too
                    with float64() if wide else nullcontext():
                        scalars = {k: v[at] if jnp.ndim(v) else v for k, v in round_to(leaves[i]).items()}
                        new[i], slots[i] = step_leaf(
                            (self.rule.update, static), leaves[i], grad_leaves[i], slots[i], scalars
                        )
        slots = [
            jax.tree.structure(old).unflatten(jax.tree.leaves(slot)) for old, slot in zip(boxed, slots, strict=True)
        ]
        return new, OptState(tuple(steps), slots_treedef.unflatten(slots), state.param_groups)

    def add_param_group(self, state: OptState, params: Tree, group: ParamGroup) -> tuple["_Lifted", OptState]:
        self._check_state(state)
        new = _Lifted(self.rule, self.options[0], (*self.groups, group), self.added + 1)
        old_members, members = self.members(params), new.members(params)
        taken = [i for i, member in enumerate(members) if member == len(new.groups)]
        twice = [groups_.leaf_paths(params)[i] for i in taken if not self.frozen[old_members[i]]]
        if twice:
            raise ValueError(f"some parameters appear in more than one parameter group: {', '.join(twice)}")
        treedef = jax.tree.structure(params, is_leaf=groups_.is_box)
        slots, fresh = flatten_like(treedef, state.slots, "the optimizer state"), new.init(params)
        for i in taken:
            slots[i] = treedef.flatten_up_to(fresh.slots)[i]
        steps, param_groups = (*state.steps, fresh.steps[-1]), (*state.param_groups, fresh.param_groups[-1])
        return new, OptState(steps, treedef.unflatten(slots), param_groups)

    def _check_state(self, state: Any) -> None:
        if not isinstance(state, OptState):
            raise TypeError(f"expected the OptState that init returned, got a {type(state).__name__}")
        has, needs = [sorted(live) for live in state.param_groups], [sorted(live) for live in self.live]
        if has != needs:
            raise ValueError(
                f"the state is another optimizer's: its parameter groups have the live hyper-parameters {has}, "
                f"this optimizer's {needs}"
            )

    def _check_slots(self, params: Tree, leaves: list[Any], slots: list[Any], members: list[int]) -> None:
        """That every slot has the arrays which `init` makes for its parameter with the group's options."""
        for index, (p, slot, group) in enumerate(zip(leaves, slots, members, strict=True)):
            key = (group, jnp.shape(p), jnp.result_type(p))
            if self.frozen[group] or not jnp.issubdtype(key[2], jnp.inexact):
                continue
            if key not in self.forms:
                self.forms[key] = form(jax.eval_shape(partial(self._init_leaf, params, index, group=group), p))
            check_slot(params, index, form(slot), self.forms[key])

    def _scalars(
        self, h: SimpleNamespace, old: dict[str, jax.Array], moves: np.ndarray
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The scalars of one step of a group, and its new scalar state; `moves` says which parameters step."""
        if not moves.all():
            old = {name: jnp.broadcast_to(value, moves.shape) for name, value in old.items()}
        step = old["step"] + jnp.ones((), old["step"].dtype)
        rest = {name: value for name, value in old.items() if name != "step"}
        c, rest = self.rule.scalars(step.astype(jnp.float64), h, rest)
        new = {name: jnp.asarray(value, old[name].dtype) for name, value in {"step": step, **rest}.items()}
        if not moves.all():
            new = {name: jnp.where(moves, value, old[name]) for name, value in new.items()}
        return {name: jnp.asarray(value) for name, value in c.items()}, new


def _merge(options: Mapping[str, Any], group: ParamGroup) -> dict[str, Any]:
    unknown = [name for name in group.options if name not in options]
    if unknown:
        raise ValueError(f"{group} has unknown options: {', '.join(unknown)}. Known are: {', '.join(options)}")
    return {**options, **group.options}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with tuples for lists, which cannot be hashed, and NumPy's arrays for JAX's, which compare as float32."""

    def plain(x: Any) -> Any:
        if isinstance(x, list | tuple):
            return tuple(map(plain, x))
        return np.asarray(x) if isinstance(x, jax.Array) and is_known(x) else x

    return {name: plain(value) for name, value in options.items()}


def _number(value: Any) -> Any:
    """A Python number for an array of one, which cannot be hashed."""
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value


def _arrays(leaves: list[Any]) -> list[Any]:
    """Python numbers as arrays, as they are under jit."""
    return [jnp.asarray(x) if isinstance(x, int | float | complex) else x for x in leaves]

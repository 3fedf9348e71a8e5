"""The lift: makes an optimizer over trees of a rule for one array. It alone knows trees, groups, None and frozen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port import param_groups as groups_
from jaxopt_port import slots as slots_
from jaxopt_port.checks import check_fresh, check_grad, check_live, check_rule, check_static, flatten_like
from jaxopt_port.dtypes import is_gradient
from jaxopt_port.group_scalars import group_scalars
from jaxopt_port.number import to_number
from jaxopt_port.optimizer import Algorithm, Optimizer, OptState, called, check_state
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import Rule, as_complex, as_real, compute_dtype, is_sparse, step_leaf
from jaxopt_port.scalars import check_form, check_numbers, is_known, is_on, x64_for
from jaxopt_port.sharding import abstract, is_abstract, on_devices_of

Tree = Any
L = TypeVar("L", bound="Lifted")
FLOAT64 = np.dtype(np.float64)


def lift(rule: Rule, options: Mapping[str, Any], param_groups: Sequence[ParamGroup] = ()) -> Optimizer:
    """Make an optimizer over pytrees of a rule for one array.

    Args:
      rule: the arithmetic.
      options: every option of the optimizer with its value: those of the default group.
      param_groups: the other groups; what they leave out they take from `options`.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError, TypeError: options or groups that cannot be.

    Example:
      >>> from typing import NamedTuple
      >>> class Nothing(NamedTuple):
      ...     pass
      >>> def scalars(step, hyper, state):
      ...     return {"lr": hyper.lr}, state
      >>> def update(p, g, slot, c):
      ...     return p - c.lr * g, slot
      >>> optimizer = lift(Rule("descent", Nothing, scalars, update), {"lr": 0.5})
      >>> optimizer.step(jnp.ones(1), optimizer.init(jnp.ones(1)), jnp.ones(1))[0]
      Array([0.5], dtype=float32)
    """
    lifted = Lifted(rule, options, param_groups)
    return Optimizer(lifted.init, lifted.update)


@dataclass
class Leaf:
    """A parameter in a step. `p` and `slot` are the old, and in the end the new."""

    index: int
    group: int
    p: Any
    g: Any
    slot: Any
    moves: bool | jax.Array  # a traced bool where only the running program knows

    @property
    def dtype(self) -> Any:
        return compute_dtype(self.p.dtype)


class Lifted(Algorithm):
    """A rule with its groups."""

    def __init__(
        self,
        rule: Rule,
        options: Mapping[str, Any],
        param_groups: Sequence[ParamGroup],
        added: Sequence[ParamGroup] = (),
    ):
        """`added` are the groups of `add_param_group`."""
        check_rule(rule, options)
        self.rule = rule
        self.first_groups, self.added = groups_.check_groups(param_groups), tuple(added)
        self.groups = (*self.first_groups, *self.added)
        self.frozen = [False, *(group.frozen for group in self.groups)]
        given = [dict(options), *(_merge(rule, options, group) for group in self.groups)]
        for each in given:
            check_static(each, rule.live)
        self.arrays = [{k: v for k, v in each.items() if isinstance(v, jax.Array)} for each in given]
        self.options = [_plain(each) for each in given]
        for number, each in enumerate(self.options):
            check_numbers(each, rule.live)
            try:
                rule.check(each)
            except (TypeError, ValueError, RuntimeError) as error:  # torch's words, which may not say what was given
                where = f" of {self.groups[number - 1]}" if number else ""
                error.add_note(f"The options{where}: {called(rule.name, each)}.")
                raise
        self.namespaces = [SimpleNamespace(**each) for each in self.options]  # as the rule's functions take them
        self.live = [
            tuple(name for name in rule.live if name not in rule.structural or is_on(each[name]))
            for each in self.options
        ]
        self.static = [
            tuple((name, _number(value)) for name, value in each.items() if name not in live)
            for each, live in zip(self.options, self.live, strict=True)
        ]
        kept = [
            {name for name in rule.slots._fields if name not in rule.optional or rule.optional[name](each)}
            for each, frozen in zip(self.namespaces, self.frozen, strict=True)
            if not frozen
        ]
        self.fields = [name for name in rule.slots._fields if any(name in fields for fields in kept)]
        self.expected: dict[Any, str] = {}  # slots in words, by group, shape and dtype
        self.has_begun = False  # whether `init` was called, see check_fresh

    def __repr__(self) -> str:
        return called(self.rule.name, self.options[0] | ({"param_groups": list(self.groups)} if self.groups else {}))

    def made_as(self, kind: type[L], rule: Rule | None = None) -> L:
        """The same optimizer as another kind of `Lifted`, with another rule if one is given."""
        options = {**self.options[0], **self.arrays[0]}
        new = kind(self.rule if rule is None else rule, options, self.first_groups, self.added)
        new.has_begun = self.has_begun
        return new

    def members(self, params: Tree) -> list[int]:
        """The group of every leaf."""
        return groups_.assign(self.first_groups, params, self.added)

    def frozen_leaves(self, params: Tree) -> list[bool]:
        return [self.frozen[group] for group in self.members(params)]

    def init(self, params: Tree) -> OptState:
        self.has_begun = True
        for leaf in filter(is_sparse, jax.tree.leaves(params, is_leaf=is_sparse)):
            self.rule.check_param(leaf, self.namespaces[0])  # torch's words, where it has some
            raise ValueError("a parameter is a BCOO: parameters must be dense, use todense()")
        leaves = jax.tree.leaves(params)
        members = self.members(params)
        slots = [self._init_leaf(params, *each) for each in zip(range(len(leaves)), leaves, members, strict=True)]
        # By the options alone: optax.tree.map_params compares with a state that is made of no parameters.
        steps = [{} if frozen else {"step": np.float32(0), **self.rule.scalar_state} for frozen in self.frozen]
        live = [
            {name: jax.tree.map(to_number, each[name]) for name in live}
            for each, live in zip(self.options, self.live, strict=True)
        ]
        scalars = jax.tree.map(jnp.asarray, (tuple(steps), tuple(live)))
        steps, live = abstract(scalars) if any(map(is_abstract, leaves)) else on_devices_of(leaves, scalars)
        return OptState(steps, slots_.as_trees(self.rule.slots, slots, self.fields, params), live)

    def _init_leaf(self, params: Tree, index: int, leaf: Any, group: int) -> Any:
        if self.frozen[group]:
            return None
        if is_abstract(leaf):
            slot = jax.eval_shape(partial(self._init_leaf, params, index, group=group), leaf)
            return abstract(slot, like=leaf)
        if hasattr(leaf, "detach"):
            raise TypeError(
                f"parameter {groups_.leaf_paths(params)[index]!r} is a tensor of torch's: take weights over by "
                "jaxopt_port.torch_interop.layout, or by jnp.asarray(p.detach().numpy())"
            )
        p = jnp.asarray(leaf)
        if not jnp.issubdtype(p.dtype, jnp.inexact):
            raise TypeError(
                f"parameter {groups_.leaf_paths(params)[index]!r} is {p.dtype}: only floating point and complex "
                "parameters can be optimized. Leave it out, or put it in a ParamGroup with frozen=True."
            )
        try:
            self.rule.check_param(p, self.namespaces[group])
        except (ValueError, RuntimeError) as error:
            error.add_note(f"The parameter is {groups_.leaf_paths(params)[index]!r}.")
            raise
        return as_complex(p, self.rule.first(as_real(p), self.namespaces[group]))

    def step(self, grads: Tree, state: OptState, params: Tree) -> tuple[Tree, OptState]:
        return self.masked_step(grads, state, params, None)

    def masked_step(self, grads: Tree, state: OptState, params: Tree, moves: Sequence[Any] | None) -> tuple[Tree, Any]:
        """A step of some parameters.

        Args:
          grads: a tree like `params`.
          state: the state.
          params: the parameters.
          moves: for each leaf whether it steps, a bool, traced where only the running program knows; by default
            those step that have a gradient.
        """
        leaves, state = self._step(grads, state, params, moves)
        return jax.tree.structure(params).unflatten(leaf.p for leaf in leaves), state

    def update(self, updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any) -> tuple[Tree, Any]:
        """optax's view of `step`: new - old parameters, zeros for those that do not step."""
        del extra_args
        if params is None:
            raise ValueError("update needs the parameters: call update(grads, state, params)")
        leaves, state = self._step(updates, state, params)
        old, treedef = jax.tree.flatten(params)
        deltas = [jnp.zeros_like(p) if leaf.moves is False else leaf.p - p for p, leaf in zip(old, leaves, strict=True)]
        return treedef.unflatten(deltas), state

    def _step(
        self, grads: Tree, state: OptState, params: Tree, moves: Sequence[Any] | None = None
    ) -> tuple[list[Leaf], OptState]:
        """The leaves after the step, and the new state."""
        self._check_state(state)
        leaves = self._leaves(grads, state, params, moves)
        steps = list(state.steps)
        for group, live in enumerate(state.param_groups):
            inside = [leaf for leaf in leaves if leaf.group == group and not self.frozen[group]]
            if any(leaf.moves is not False for leaf in inside):
                if not state.steps[group]:
                    raise ValueError(
                        f"the state has no step count for group {group}, which was frozen when init made it: "
                        "unfreeze by add_param_group(optimizer, state, params, group)"
                    )
                steps[group] = self._step_group(group, live, state.steps[group], inside)
        new = [None if leaf.moves is False else leaf.slot for leaf in leaves]
        return leaves, OptState(tuple(steps), slots_.with_leaves(state.slots, new, params), state.param_groups)

    def _leaves(self, grads: Tree, state: OptState, params: Tree, moves: Sequence[Any] | None) -> list[Leaf]:
        """The parameters, each with what belongs to it, looked over before anything is computed."""
        old, treedef = jax.tree.flatten(params)
        gradients = flatten_like(treedef, grads, "the gradients")
        members = self.members(params)
        leaves = []
        for index, (p, g, slot, group) in enumerate(
            zip(old, gradients, slots_.as_leaves(state.slots, params), members, strict=True)
        ):
            steps = g is not None if moves is None else moves[index]
            leaf = Leaf(index, group, p, g, slot, steps)
            if self.frozen[group]:
                leaf.moves = False
            else:
                leaf.p, leaf.g = _as_jax(p), _as_jax(g)
                self._check_slot(params, leaf)
                self._check_grad(params, leaf)
            leaves.append(leaf)
        return leaves

    def _step_group(
        self, group: int, live: Mapping[str, Any], state: dict[str, jax.Array], inside: list[Leaf]
    ) -> dict[str, jax.Array]:
        """Step the leaves of a group; its new scalar state."""
        moves = [leaf.moves for leaf in inside]
        known = all(isinstance(each, bool) for each in moves)
        dtypes = {self._of_scalars(leaf) for leaf in inside if leaf.moves is not False}
        c, new_state = group_scalars(
            self.rule.scalars,
            self.static[group],
            live,
            state,
            tuple(map(bool, moves)) if known else jnp.stack([jnp.asarray(each) for each in moves]),
            tuple(sorted(dtypes, key=str)),
        )
        step = partial(step_leaf, (self.rule.update, self.static[group]))
        for at, leaf in enumerate(inside):
            if known and leaf.moves:
                with x64_for(leaf.dtype):
                    own = c[self._of_scalars(leaf)][at]
                    leaf.p, leaf.slot = step(leaf.p, leaf.g, leaf.slot, own)
        if not known:
            self._step_stacked(step, inside, c)
        return new_state

    def _of_scalars(self, leaf: Leaf) -> Any:
        """The dtype in which the rule gets a leaf's scalars."""
        return FLOAT64 if self.rule.float64_update else leaf.dtype

    def _step_stacked(self, step: Callable[..., Any], inside: list[Leaf], c: Mapping[Any, Any]) -> None:
        """Step leaves of which the running program alone knows whether they step.

        Those of one shape in a loop, so that the program holds one step for them and not one for each.
        """
        alike: dict[Any, list[int]] = {}
        for at, leaf in enumerate(inside):
            if leaf.moves is not False:
                key = jax.tree.map(lambda x: (x.shape, x.dtype), (leaf.p, leaf.slot))
                alike.setdefault((str(key), leaf.dtype), []).append(at)
        for places in alike.values():
            leaves = [inside[at] for at in places]
            with x64_for(leaves[0].dtype):
                own = c[self._of_scalars(leaves[0])][0]
                own = {name: value[np.array(places)] for name, value in own.items()}
                stacked = _stack([(jnp.asarray(leaf.moves), leaf.p, leaf.g, leaf.slot) for leaf in leaves])

                def one(of_leaf: Any) -> Any:
                    (moves, p, g, slot), c = of_leaf
                    return jax.tree.map(partial(jnp.where, moves), step(p, g, slot, c), (p, slot))

                new = jax.lax.map(one, (stacked, own))  # a loop: what is merely stacked XLA takes apart again
                for i, leaf in enumerate(leaves):
                    leaf.p, leaf.slot = jax.tree.map(lambda x, i=i: x[i], new)

    def add_param_group(self, state: OptState, params: Tree, group: ParamGroup) -> tuple["Lifted", OptState]:
        self._check_state(state)
        new = Lifted(self.rule, self.options[0], self.first_groups, (*self.added, group))
        old_members, members = self.members(params), new.members(params)
        taken = [i for i, member in enumerate(members) if member == len(new.groups)]
        twice = [groups_.leaf_paths(params)[i] for i in taken if not self.frozen[old_members[i]]]
        if twice:
            raise ValueError(f"some parameters appear in more than one parameter group: {', '.join(twice)}")
        fresh = new.init(params)
        added, kept = slots_.as_leaves(fresh.slots, params), slots_.as_leaves(state.slots, params)
        chosen = [added[i] if member == len(new.groups) else kept[i] for i, member in enumerate(members)]
        slots = slots_.as_trees(self.rule.slots, chosen, new.fields, params)
        steps, param_groups = (*state.steps, fresh.steps[-1]), (*state.param_groups, fresh.param_groups[-1])
        return new, OptState(steps, slots, param_groups)

    def _check_state(self, state: Any) -> None:
        check_state(state, OptState, "step(grads, state, params)")
        kind, needed = type(state.slots), self.rule.slots
        if kind is not needed:
            raise ValueError(
                f"the state is another optimizer's: it has a {kind.__name__} in slots, and {self.rule.name} needs a "
                f"{needed.__name__}"
            )
        has, needs = [sorted(live) for live in state.param_groups], [sorted(live) for live in self.live]
        if has != needs:
            raise ValueError(
                f"the state is another optimizer's: its parameter groups have the live hyper-parameters {has}, "
                f"this optimizer's {needs}"
            )
        for group, live in enumerate(state.param_groups):
            check_live(live, group)
            if not self.has_begun:
                check_fresh(self.arrays[group], live, group)

    def _check_grad(self, params: Tree, leaf: Leaf) -> None:
        """That a gradient is one of its parameter, and one that the rule takes."""
        if is_gradient(leaf.g):
            check_grad(params, leaf.index, leaf.p, leaf.g)
            try:
                self.rule.check_grad(leaf.g, self.namespaces[leaf.group])
            except (TypeError, ValueError, RuntimeError) as error:
                error.add_note(f"The gradient is that of {groups_.leaf_paths(params)[leaf.index]!r}.")
                raise

    def _check_slot(self, params: Tree, leaf: Leaf) -> None:
        """That a slot has the arrays which `init` makes for its parameter with the group's options."""
        key = (leaf.group, jnp.shape(leaf.p), jnp.result_type(leaf.p))
        if not jnp.issubdtype(key[2], jnp.inexact):
            return
        if key not in self.expected:
            like = jax.eval_shape(partial(self._init_leaf, params, leaf.index, group=leaf.group), leaf.p)
            self.expected[key] = slots_.in_words(like)
        slots_.check_slot(params, leaf.index, slots_.in_words(leaf.slot), self.expected[key])


def _merge(rule: Rule, options: Mapping[str, Any], group: ParamGroup) -> dict[str, Any]:
    unknown = [name for name in group.options if name not in options]
    if unknown:
        raise ValueError(f"{group} has unknown options: {', '.join(unknown)}. Known are: {', '.join(options)}")
    for name in rule.live:
        check_form(name, group.options.get(name, options[name]), options[name])
    return {**options, **{name: value for name, value in group.options.items() if name not in rule.common}}


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


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def _as_jax(x: Any) -> Any:
    """Python numbers and NumPy's arrays as JAX's, with the dtype that they have under jit."""
    return jnp.asarray(x) if isinstance(x, int | float | complex | np.ndarray | np.generic) else x

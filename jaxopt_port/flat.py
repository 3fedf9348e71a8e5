"""flat: the same optimizer, with the state of a group's parameters as one vector a dtype."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_port import slots as slots_
from jaxopt_port.checks import flatten_like
from jaxopt_port.dtypes import is_gradient
from jaxopt_port.hyper import find_state, replace_state
from jaxopt_port.lift import Leaf, Lifted
from jaxopt_port.optimizer import Algorithm, Optimizer, OptState, algorithm_of, check_optimizer
from jaxopt_port.param_groups import ParamGroup, leaf_paths
from jaxopt_port.rule import is_sparse
from jaxopt_port.scalars import float64
from jaxopt_port.sharding import is_abstract, replicated, sharded_as

Tree = Any
T = TypeVar("T")
Vectors = tuple[dict[str, Any], ...]  # for each group, by dtype


def flat(optimizer: Optimizer) -> Optimizer:
    """The same optimizer with the state of each parameter group as one vector a dtype: `slots.exp_avg[0]["float32"]`.

    For GPUs and TPUs, and models of a hundred arrays or more. A program there waits for its host, which hands over
    each array that goes in or out, and Adam's moments are two for every parameter; and what it compiles grows with
    them. On a CPU, where that costs little and copies cost much, the optimizer as it is is 1.6 to 13 times faster.

    Parameters and gradients stay as they are: the step joins them, and takes the new parameters apart. So make
    gradients and step in one jitted function. The numbers are the same, to the last bit (through `update` up to what
    XLA makes of `new - old`). A step in which some parameters have no gradient, and every step after it, goes by arrays
    as without `flat`, and its state is taken apart and joined: right, but slow; parameters that never have a gradient
    belong in a group with `frozen=True`.

    `set_hyper`, schedulers, chains, `every_k`, `add_param_group` and files work as before. `unflatten_state` gives the
    state as the optimizer itself has it, for what needs it like the parameters (`optax.tree.map_params`, shardings by
    parameter), and `flatten_state` takes it back. A state from torch: `optimizer, state = load_optimizer(...)`, then
    `flat(optimizer)` and `flatten_state`; `optimizer_state_dict` takes both forms.

    Args:
      optimizer: as its factory or `add_param_group` returns it. Its rule must work element by element.

    Returns:
      An `Optimizer`.

    Raises:
      TypeError: another library's optimizer, or something around one: what is around goes around the flat one.
      ValueError: adafactor, muon, sparse_adam, lbfgs, nonlinear_cg, or a rule of the user's that does not say
        `elementwise=True`.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.flat(optim.sgd(lr=0.5, momentum=0.9))
      >>> params = {"a": jnp.array([1.0]), "b": jnp.array([[2.0, 3.0]])}
      >>> params, state = optimizer.step(params, optimizer.init(params), params)
      >>> params["b"], state.slots.momentum_buffer
      (Array([[1. , 1.5]], dtype=float32), ({'float32': Array([1., 2., 3.], dtype=float32)},))
    """
    algorithm = _algorithm(optimizer)
    if not isinstance(algorithm, Lifted):
        raise ValueError(
            f"flat takes no {algorithm!r}: only an optimizer as its factory returns it, with a state an array"
        )
    if not algorithm.rule.elementwise:
        raise ValueError(
            f"flat joins arrays, and {algorithm.rule.name} does not say that it works element by element "
            "(Rule(elementwise=True)): use the optimizer as it is"
        )
    new = algorithm.made_as(Flat)
    return Optimizer(new.init, new.update)


def flatten_state(optimizer: Optimizer, state: T, params: Tree) -> T:
    """The state of an optimizer as `flat(optimizer)` has it.

    Args:
      optimizer: the flat one.
      state: an OptState with a tree like the parameters in each slot, or a pytree with one inside.
      params: the parameters.

    Returns:
      `state`, with vectors in the slots.

    Raises:
      TypeError: an optimizer that is not flat.
      ValueError: a state of another optimizer; arrays of two dtypes that would be in one vector.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> params, optimizer = {"a": jnp.ones(1), "b": jnp.ones(2)}, optim.adagrad()
      >>> flatten_state(optim.flat(optimizer), optimizer.init(params), params).slots.sum
      ({'float32': Array([0., 0., 0.], dtype=float32)},)
    """
    return replace_state(state, _flat(optimizer).flatten(find_state(state), params))


def unflatten_state(optimizer: Optimizer, state: T, params: Tree) -> T:
    """The state of `flat(optimizer)` as the optimizer itself has it.

    Args:
      optimizer: the flat one.
      state: its state, or a pytree with one inside.
      params: the parameters.

    Returns:
      `state`, with trees like the parameters in the slots.

    Raises:
      TypeError: an optimizer that is not flat.
      ValueError: a state of another optimizer, or of other parameters.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> params, optimizer = {"a": jnp.ones(1), "b": jnp.ones(2)}, optim.flat(optim.adagrad())
      >>> unflatten_state(optimizer, optimizer.init(params), params).slots.sum
      {'a': Array([0.], dtype=float32), 'b': Array([0., 0.], dtype=float32)}
    """
    return replace_state(state, _flat(optimizer).unflatten(find_state(state), params))


class Part(NamedTuple):
    """What one vector holds."""

    group: int
    dtype: str
    leaves: list[int]


class Joined(Lifted):
    """The rule and its groups over `Vectors`, in place of the parameters that are in them."""

    def members(self, params: Tree) -> list[int]:
        return [int(path.split("/")[0]) for path in leaf_paths(params)]


class Flat(Lifted):
    """A rule with its groups, whose state is in vectors. It steps by vectors if it can, else by leaves."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.joined = Joined(*given)
        self.joined.has_begun = True  # it gets states that were looked at here

    def __repr__(self) -> str:
        return f"flat({super().__repr__()})"

    def init(self, params: Tree) -> OptState:
        return self.flatten(super().init(params), params)

    def flatten(self, state: OptState, params: Tree) -> OptState:
        """A state with vectors in its slots, of one with trees like the parameters."""
        self._check_state(state)
        slots, parts = slots_.as_leaves(state.slots, params), self._parts(params)

        def field(name: str) -> Vectors | None:
            if getattr(state.slots, name) is None:
                return None
            columns = [[getattr(slots[leaf], name) for leaf in part.leaves] for part in parts]
            for part, arrays in zip(parts, columns, strict=True):
                if len({x.dtype for x in arrays if x is not None}) > 1:
                    found = ", ".join(sorted({str(x.dtype) for x in arrays}))
                    raise ValueError(f"{name} of group {part.group} has {found} for {part.dtype} parameters: cast it")
            return self._by_group(parts, [None if x[0] is None else _join(x) for x in columns])

        return state._replace(slots=self.rule.slots(*map(field, self.rule.slots._fields)))

    def unflatten(self, state: OptState, params: Tree) -> OptState:
        """A state with trees like the parameters in its slots, of one with vectors."""
        self._check_state(state)
        leaves, parts = jax.tree.leaves(params), self._parts(params)
        like = self._by_group(parts, [0] * len(parts))
        slots = [None] * len(leaves)
        for part, slot in zip(parts, slots_.as_leaves(self._flat_slots(state, like), like), strict=True):
            inside = [leaves[leaf] for leaf in part.leaves]
            columns = [[None] * len(inside) if x is None else _split(x, inside) for x in slot]
            for leaf, row in zip(part.leaves, zip(*columns, strict=True), strict=True):
                slots[leaf] = self.rule.slots(*row)
        return state._replace(slots=slots_.as_trees(self.rule.slots, slots, self.fields, params))

    def add_param_group(self, state: OptState, params: Tree, group: ParamGroup) -> tuple["Flat", OptState]:
        by_leaf, state = super().add_param_group(self.unflatten(state, params), params, group)
        new = by_leaf.made_as(Flat)
        return new, new.flatten(state, params)

    def _step(
        self, grads: Tree, state: OptState, params: Tree, moves: Sequence[Any] | None = None
    ) -> tuple[list[Leaf], OptState]:
        self._check_state(state)
        leaves = self._all_move(grads, state, params, moves)
        if leaves is None:
            leaves, state = super()._step(grads, self.unflatten(state, params), params, moves)
            return leaves, self.flatten(state, params)
        parts = self._parts(params)

        def joined(get: Callable[[Leaf], Any]) -> Vectors:
            return self._by_group(parts, [_join([get(leaves[leaf]) for leaf in part.leaves]) for part in parts])

        old = joined(lambda leaf: leaf.p)
        self._flat_slots(state, old)
        new, state = self.joined.step(joined(lambda leaf: leaf.g), state, old)
        for part in parts:
            inside = [leaves[leaf] for leaf in part.leaves]
            for leaf, p in zip(inside, _split(new[part.group][part.dtype], [leaf.p for leaf in inside]), strict=True):
                leaf.p = p
        return leaves, state

    def _all_move(self, grads: Tree, state: OptState, params: Tree, moves: Sequence[Any] | None) -> list[Leaf] | None:
        """The parameters, where all that are not frozen step and have taken as many steps as the others."""
        old, treedef = jax.tree.flatten(params)
        leaves = []
        for index, (p, g, group) in enumerate(
            zip(old, flatten_like(treedef, grads, "the gradients"), self.members(params), strict=True)
        ):
            steps = g is not None if moves is None else moves[index]
            count = state.steps[group].get("step", 0)  # a group without one is refused by the step
            if self.frozen[group]:
                leaves.append(Leaf(index, group, p, None, None, False))
            elif steps is not True or is_sparse(g) or not is_gradient(g) or np.ndim(count):
                return None
            else:
                leaves.append(Leaf(index, group, jnp.asarray(p), jnp.asarray(g), None, True))
                self._check_grad(params, leaves[-1])
        return leaves

    def _parts(self, params: Tree) -> list[Part]:
        """The vectors, and which leaves are in them."""
        parts: dict[tuple[int, str], Part] = {}
        for index, (p, group) in enumerate(zip(jax.tree.leaves(params), self.members(params), strict=True)):
            if not self.frozen[group]:
                key = group, str(p.dtype if isinstance(p, jax.Array) else jnp.result_type(p))
                parts.setdefault(key, Part(*key, [])).leaves.append(index)
        return [parts[key] for key in sorted(parts)]  # as jax.tree.leaves has them

    def _by_group(self, parts: Sequence[Part], values: Sequence[Any]) -> Vectors:
        vectors: Vectors = tuple({} for _ in self.options)
        for part, value in zip(parts, values, strict=True):
            vectors[part.group][part.dtype] = value
        return vectors

    def _flat_slots(self, state: OptState, like: Vectors) -> Any:
        """The slots of a state, which have to be flat ones."""
        for name, vectors in zip(state.slots._fields, state.slots, strict=True):
            if vectors is not None and not _are_vectors(vectors, like):
                raise ValueError(
                    f"{name!r} in the optimizer state is not one vector for each group and dtype: make it by "
                    "flatten_state(optimizer, state, params), or by init of this optimizer and these parameters"
                )
        return state.slots


def _are_vectors(vectors: Any, like: Vectors) -> bool:
    """Whether they have an entry for each group and dtype; what nnx.Optimizer puts around an array is passed by."""
    try:
        jax.tree.structure(like).flatten_up_to(vectors)
    except (ValueError, TypeError):
        return False
    return isinstance(vectors, tuple)


def _join(arrays: Sequence[Any]) -> Any:
    """One vector of some arrays of one dtype."""

    def join(arrays: Sequence[Any]) -> jax.Array:
        return jnp.concatenate([replicated(x).reshape(-1) for x in arrays])

    with float64():
        return jax.eval_shape(join, arrays) if any(map(is_abstract, arrays)) else join(list(map(jnp.asarray, arrays)))


def _split(vector: Any, likes: Sequence[Any]) -> Sequence[Any]:
    """Arrays in the shapes of others, of a vector."""
    (vector,) = jax.tree.leaves(vector)  # nnx.Optimizer puts a box around the array
    sizes = [int(np.prod(jnp.shape(like))) for like in likes]
    if jnp.shape(vector) != (sum(sizes),):
        raise ValueError(
            f"a vector in the optimizer state is {list(jnp.shape(vector))}, its parameters have {sum(sizes)} numbers: "
            "make the state of these parameters, by init or flatten_state(optimizer, state, params)"
        )

    def split(vector: jax.Array, likes: Sequence[Any]) -> list[jax.Array]:
        ends = np.cumsum(sizes)
        pieces = [vector[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        return [sharded_as(like, x.reshape(jnp.shape(like))) for x, like in zip(pieces, likes, strict=True)]

    with float64():
        return jax.eval_shape(split, vector, likes) if is_abstract(vector) else split(vector, likes)


def _algorithm(optimizer: Any) -> Algorithm:
    check_optimizer(optimizer, "flat(optimizer)")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"flat takes an optimizer as its factory returns it, not a {type(optimizer).__name__}: what is around one "
            "goes around the flat one, as in optax.chain(clip, flat(adam()))"
        )
    return algorithm_of(optimizer)


def _flat(optimizer: optax.GradientTransformation) -> Flat:
    algorithm = _algorithm(optimizer)
    if not isinstance(algorithm, Flat):
        raise TypeError(f"{algorithm!r} is not flat: pass flat(optimizer)")
    return algorithm

"""Rule: one optimizer's arithmetic on one array, and a step of one leaf with it."""

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.dtypes import widened
from jaxopt_port.sharding import sharded_as, side_by_side

Tree = Any
Scalars = dict[str, Any]  # what a rule computes from hyper-parameters for a step
ScalarState = dict[str, jax.Array]  # what it keeps of scalars from step to step


def _takes_all(*_: Any) -> None:
    pass


def is_sparse(g: Any) -> bool:
    """Whether a gradient is a BCOO. (Importing jax.experimental.sparse to ask takes a second.)"""
    return hasattr(g, "n_sparse")


def takes_dense(g: Any, options: SimpleNamespace) -> None:
    """The `check_grad` of a rule that takes no sparse gradients."""
    if is_sparse(g):
        raise RuntimeError(
            "this optimizer does not support sparse gradients: use sparse_adam, sgd or adagrad, or g.todense()"
        )


class Rule(NamedTuple):
    """One optimizer's arithmetic on one array. It knows nothing of trees, groups, None or jit.

    `lift` makes an optimizer of it, `factory` a function that does. docs/adding-an-optimizer.md writes one.

    Args:
      name: of the optimizer, in lower case.
      slots: the NamedTuple of what is kept for a parameter, with torch's names.
      scalars: `(step, hyper, state) -> (c, state)`, torch's Python-float arithmetic in float64. `step` counts from 1,
        `hyper` has the group's options as attributes, `state` is a dict of the scalar state beside `step`. All may be
        vectors with an element a parameter, so it is elementwise. What it returns in `c`, a dict, `update` gets.
      update: `(p, g, slot, c) -> (p, slot)`, torch's tensor arithmetic. `c` has the group's static options and the
        scalars as attributes, these rounded to the array's dtype as torch rounds a number that meets a tensor, and
        `dtype`, the parameter's own (16-bit parameters are computed in float32); `one` and `another_one` are 1 at every
        step, which a compiler cannot know (rules/tensor_ops.py has what for).
      init: `(p, options) -> slot`, the first slot of a parameter; zeros like it in every field by default.
      check: raises torch's errors for bad options, given as a dict.
      live: the options that live in the state and can change at any step.
      structural: those of `live` that decide which slots exist: fixed where falsy, live otherwise.
      optional: slots that only some options have, each with the condition, `(options) -> bool`.
      common: options that every group takes from the optimizer itself, whatever it says.
      scalar_state: the scalar state beside `step` and its first values.
      check_param: `(p, options)`, raises torch's errors for a parameter that the optimizer cannot take.
      check_grad: `(g, options)`, raises for a gradient it cannot take; a sparse one that it can take `update` gets as
        it is, with the whole of `p` and `slot`, since only their rows are to be computed with.
      float64_update: `update` computes scalars itself, from tensors or shapes: it gets them as float64.
      elementwise: an element of the new parameter and of its state depends on the same element of the gradient, the
        parameter and the state alone, so that `flat` can join arrays.
      torch: the name of the class in torch.optim, None for a rule that torch does not have.
    """

    name: str
    slots: Any
    scalars: Callable[[jax.Array, SimpleNamespace, ScalarState], tuple[Scalars, ScalarState]]
    update: Callable[[jax.Array, Any, Any, SimpleNamespace], tuple[jax.Array, Any]]
    init: Callable[[jax.Array, SimpleNamespace], Any] | None = None
    check: Callable[[Mapping[str, Any]], None] = _takes_all
    live: tuple[str, ...] = ("lr",)
    structural: tuple[str, ...] = ()
    optional: Mapping[str, Callable[[SimpleNamespace], bool]] = {}
    common: tuple[str, ...] = ()
    scalar_state: Mapping[str, Any] = {}
    check_param: Callable[[Any, SimpleNamespace], None] = _takes_all
    check_grad: Callable[[Any, SimpleNamespace], None] = takes_dense
    float64_update: bool = False
    elementwise: bool = False
    torch: str | None = None

    def first(self, p: jax.Array, options: SimpleNamespace) -> Any:
        """The slot of a parameter before its first step; None for what the options do not need."""
        if self.init is None:
            slot = self.slots(*(jnp.zeros_like(p) for _ in self.slots._fields))
        else:
            slot = self.init(p, options)
        absent = [name for name, condition in self.optional.items() if not condition(options)]
        return slot._replace(**dict.fromkeys(absent))


@partial(jax.jit, static_argnums=0)
def step_leaf(
    static: tuple[Callable[..., Any], tuple[tuple[str, Any], ...]], p: jax.Array, g: Any, slot: Any, c: Scalars
) -> tuple[jax.Array, Any]:
    """One leaf's step. An inner jit, so that leaves of the same shape are traced and lowered once."""
    update, options = static
    c_ = SimpleNamespace(**{**dict(options), **c}, dtype=p.dtype)
    if getattr(c_, "maximize", False):
        g = -g
    wide = compute_dtype(p.dtype)
    if is_sparse(g):
        returned = update(p, as_real(g, wide), slot, c_)
    else:
        returned = update(*as_real(side_by_side(p, g, slot), wide), c_)
    p_, slot_ = _checked(returned, type(slot))
    slot = jax.tree.map(_cast_like, as_complex(p, slot_), slot)
    return sharded_as(p, as_complex(p, p_).astype(p.dtype)), slot


def _checked(returned: Any, slots: type[Any]) -> tuple[jax.Array, Any]:
    """What an update returned, which may be a user's."""
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], slots)):
        what = [type(x).__name__ for x in returned] if type(returned) is tuple else type(returned).__name__
        raise TypeError(f"a rule's update has to return (p, slot), slot a {slots.__name__}, and it returned {what}")
    return returned


def _cast_like(new: jax.Array, old: jax.Array) -> jax.Array:
    if new.shape != old.shape:
        raise ValueError(
            f"the rule's update returned an array {list(new.shape)} for one of its slot that is {list(old.shape)}: a "
            "slot keeps the shapes that the rule's init gives it"
        )
    return sharded_as(old, new.astype(old.dtype))


def compute_dtype(dtype: Any) -> Any:
    """The real dtype in which a leaf is computed: 16-bit floats are computed in float32, rounded at the end."""
    return widened(jnp.finfo(dtype).dtype)


def as_real(tree: Tree, dtype: Any = None) -> Tree:
    """torch's view_as_real: complex arrays as real ones with a last axis of two."""

    def real(x: jax.Array) -> jax.Array:
        x = jnp.stack([x.real, x.imag], -1) if jnp.iscomplexobj(x) else x
        return x if dtype is None or not jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(dtype)

    return jax.tree.map(real, tree)


def as_complex(p: jax.Array, tree: Tree) -> Tree:
    """torch's view_as_complex of what belongs to `p`, where `p` is complex."""
    return jax.tree.map(lambda x: jax.lax.complex(x[..., 0], x[..., 1]), tree) if jnp.iscomplexobj(p) else tree

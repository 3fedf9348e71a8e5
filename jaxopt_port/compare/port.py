"""The user's side of a comparison: what is trained, its loss and its optimizer; everything by torch's names."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.sparse import BCOO

from jaxopt_port import EveryKState, OptState, get_hyper, optimizers, torch_interop
from jaxopt_port.compare.stepping import Scheduled, Several, step_of
from jaxopt_port.compare.trace import Arrays, Step, Trace
from jaxopt_port.hyper import find_state, replace_state, states_in
from jaxopt_port.param_groups import leaf_paths
from jaxopt_port.torch_interop import layout
from jaxopt_port.torch_interop.layouts.layout import weight_leaves

Tree = Any

FACTORED = (
    "Adafactor factors the last two axes of torch's array, and the port's optimizer others: the last two of a torch "
    "convolution are the first two of a flax kernel, adafactor(factored_axes=(0, 1))"
)


class Port:
    """What is compared with torch's run.

    Args:
      trace: torch's run.
      loss_fn: `loss_fn(params, **batch)` or `loss_fn(params, batch)`; it returns the loss, or the loss and what else
        changes (`{"batch_stats": ...}`).
      params: the parameters, linen's variables, or an nnx state.
      optimizer: of this library, of optax, or with `init(params)` and `step(grads, state, params)`.
      mapping: from `layout.infer`.
    """

    def __init__(self, trace: Trace, loss_fn: Callable[..., Any], params: Tree, optimizer: Any, mapping: Any):
        self.trace, self.loss_fn, self.like = trace, loss_fn, params
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be a function, loss_fn(params, **batch), not a {type(loss_fn).__name__}")
        for each in optimizer if isinstance(optimizer, list) else [optimizer]:
            if not (hasattr(each, "init") and (hasattr(each, "step") or hasattr(each, "update"))):
                raise TypeError(
                    "optimizer must be made by a factory of this library or of optax, as optim.adamw(lr=1e-3), or have "
                    f"init(params) and step(grads, state, params); this is a {type(each).__name__}"
                )
        self.optimizer: Any = Several(optimizer) if isinstance(optimizer, list) else optimizer
        self.untied: dict[str, str] = {}
        self.mapping = mapping or self._infer()
        names = [str(entry.source.name) for entry in self.mapping.entries]
        self.names: list[str] = [n for n in dict.fromkeys(names) if not n.endswith(layout.STATISTICS)]
        self.statistics = [n for n in dict.fromkeys(names) if n.endswith(layout.STATISTICS)]
        sparse = [each["groups"] for each in trace.optimizers if each["kind"] == "SparseAdam"]
        self.sparse = {name for groups in sparse for group in groups for name in group["names"]}
        self._step = step_of(self.optimizer)
        self.closures = any(each["kind"] == "LBFGS" for each in trace.optimizers)
        inner = self.optimizer.optimizer if isinstance(self.optimizer, Scheduled) else self.optimizer
        if self.closures and not hasattr(inner, "step_closure"):
            raise TypeError(
                "torch's LBFGS calls a closure several times a step: follow it with optim.lbfgs, which does so, "
                f"not with a {type(inner).__name__}"
            )
        state = self.optimizer.init(split(self.to_ours(trace.model, params))[0])
        self.sums = _finds(state, EveryKState)
        self.ours = _finds(state, OptState)  # which round as torch's do
        self.means = _finds(state, optax.MultiStepsState)
        self._grad = jax.jit(jax.value_and_grad(self.loss, has_aux=True))

    def _infer(self) -> Any:
        """Which array is which; where that only works with torch's tied weights apart, the port has untied them."""
        shapes = {each["name"]: tuple(each["shape"]) for each in self.trace.parameters}
        shapes |= {each["name"]: tuple(each["shape"]) for each in self.trace.start.header["buffers"]}
        try:
            return layout.infer(shapes, self.like)
        except ValueError:
            tied = self.trace.tied
            if not tied:
                raise
            try:
                found = layout.infer(shapes | {alias: shapes[name] for alias, name in tied.items()}, self.like)
            except ValueError:
                pass
            else:
                self.untied = dict(tied)
                return found
            raise

    # torch's arrays and ours

    def torchs(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """torch's arrays with those of tied names."""
        return {**arrays, **{a: arrays[name] for a, name in self.untied.items() if name in arrays}}

    def tied(self, name: str) -> str:
        """torch's name for an array, of two that torch ties the first."""
        return self.untied.get(name, name)

    def to_ours(self, arrays: Mapping[str, np.ndarray], like: Tree) -> Tree:
        """A tree as `like`, of torch's arrays."""
        return layout.to_flax(self.mapping, self.torchs(arrays), like)

    def to_torch(self, tree: Tree) -> Arrays:
        return layout.to_torch(self.mapping, tree)

    # the loss and its gradient

    def loss(self, trainable: Tree, rest: Tree, batch: Arrays) -> tuple[jax.Array, Tree]:
        params = join(trainable, rest, self.like)
        out = call(self.loss_fn, params, batch)
        loss, changed = out if isinstance(out, tuple) else (out, None)
        loss = jnp.asarray(loss)
        if loss.ndim:
            raise ValueError(
                f"loss_fn returns an array of shape {loss.shape}, and is to return a number: .mean() makes one as "
                "torch's criteria do"
            )
        return loss, _replaced(rest, changed)

    def _closure(self, trainable: Tree, rest: Tree, batch: Arrays) -> jax.Array:
        return self.loss(trainable, rest, batch)[0]

    def grads(self, trainable: Tree, rest: Tree, step: Step) -> tuple[list[float], list[Tree], Tree]:
        """The losses and gradients of the batches of a step, and what else changed."""
        losses, grads = [], []
        for batch in step.batches():
            (loss, rest), grad = self._grad(trainable, rest, as_jax(batch))
            losses.append(float(loss))
            grads.append(grad)
        return losses, grads, rest

    def seen(self, grads: list[Tree], step: Step) -> Tree:
        """The gradient of a step, as torch adds it up, or as the optimizer does that accumulates by itself."""
        factors = step.frame.header["factors"] or [1.0]
        weights = [min(factor, 1.0) for factor in factors] if len(factors) == len(grads) else [1.0] * len(grads)
        if self.means:
            weights = [1 / len(grads)] * len(grads)
        elif self.sums:
            weights = [1.0] * len(grads)
        return jax.tree.map(lambda *parts: sum(w * g for w, g in zip(weights, parts, strict=True)), *grads)

    # the optimizer

    def init(self, trainable: Tree) -> Any:
        """The optimizer's first state, with torch's moments where torch had some."""
        state = self.optimizer.init(trainable)
        try:
            return self.with_torchs(state, self.trace.start, self.trace.steps[0], trainable)
        except ValueError as error:
            raise ValueError(
                "torch's run begins with moments (it goes on from a checkpoint), and they cannot be given to this "
                f"optimizer: record it from its first step, or follow it with an optimizer of this library: {error}"
            ) from error

    def with_torchs(self, state: Any, frame: Any, step: Step, trainable: Tree) -> Any:
        """`state` with the moments that a frame holds."""
        states: dict[str, Arrays] = {}
        for key, array in frame.arrays("state/").items():
            name, _, slot = key.rpartition("/")
            states.setdefault(name, {})[slot] = array
        if all("step" in each and not each["step"].any() for each in states.values()):
            return state  # not one step was taken: what moments begin with is the optimizer's own, and is compared
        several = isinstance(self.optimizer, Several)
        ours = state if several else [state]
        if len(ours) != len(self.trace.optimizers):
            raise ValueError(f"torch has {len(self.trace.optimizers)} optimizers, the port {len(ours)}: give it a list")
        filled = [self._filled(own, states, i, step, trainable) for i, own in enumerate(ours)]
        return filled if several else filled[0]

    def _filled(self, state: Any, states: dict[str, Arrays], number: int, step: Step, trainable: Tree) -> Any:
        """The state of one optimizer with the moments of torch's of that number."""
        loaded, own = self._loaded(states, number, step, trainable), find_state(state)
        if not _are_alike(own, loaded):
            kind = self.trace.optimizers[number]["kind"]
            raise ValueError(
                f"it keeps other arrays than torch's {kind}: make it with torch's options, such as amsgrad"
            )
        if not _have_one_shape(own, loaded):
            raise ValueError(FACTORED)
        return replace_state(state, own._replace(steps=loaded.steps, slots=loaded.slots))

    def _loaded(self, states: dict[str, Arrays], number: int, step: Step, trainable: Tree) -> Any:
        """The state that an optimizer with torch's options has."""
        one = self.trace.optimizers[number]
        kind = str(one["kind"])
        factory = optimizers["sparse_adam" if kind == "SparseAdam" else kind.lower()]
        names = [name for group in one["groups"] for name in group["names"]]
        ids: dict[Any, int] = {name: i for i, name in enumerate(names)}
        groups = [
            {
                **options,
                "params": [ids[name] for name in group["names"]],
                "param_names": group["names"],
            }
            for group, options in zip(one["groups"], step.hyper[number], strict=True)
        ]
        state_dict = {"state": {ids[n]: s for n, s in states.items() if n in ids}, "param_groups": groups}
        return torch_interop.load_optimizer(factory, state_dict, trainable, self.mapping)[1]

    def factored_otherwise(self, state: Any, step: Step, trainable: Tree) -> str:
        """What is to be said of an Adafactor whose factors are along other axes than torch's; nothing of another."""
        try:
            pairs = [
                (find_state(own), self._loaded({}, i, step, trainable))
                for i, own in enumerate(state if isinstance(self.optimizer, Several) else [state])
                if self.trace.optimizers[i]["kind"] == "Adafactor"
            ]
        except ValueError:  # of optax, or several in one state
            return ""
        return FACTORED if any(_are_alike(*pair) and not _have_one_shape(*pair) for pair in pairs) else ""

    def step(self, grads: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        """A step; what SparseAdam steps in torch has a gradient of the rows that the batch used."""
        if self.sparse:
            entries = self.mapping.by_name()
            paths = {entry.path for name in self.sparse for entry in entries[name]}
            at = {i for path, i in weight_leaves(grads).items() if path in paths}
            leaves, treedef = jax.tree.flatten(grads)
            grads = treedef.unflatten([used_rows(g) if i in at else g for i, g in enumerate(leaves)])
        return self._step(grads, state, params)

    def stepped(self, grad: Tree, state: Any, params: Tree, count: int) -> tuple[Tree, Any]:
        """A step with a gradient that is there already, of an optimizer that may want it in `count` parts."""
        if not (self.sums or self.means):
            return self.step(grad, state, params)
        rest = grad if self.means else jax.tree.map(jnp.zeros_like, grad)
        for i in range(count):
            params, state = self.step(rest if i else grad, state, params)
        return params, state

    def own_step(self, grads: list[Tree], rest: Tree, state: Any, params: Tree, step: Step) -> tuple[Tree, Any]:
        """A step of the port's own run."""
        if self.closures:
            batch = as_jax(step.batches()[0])
            return self.optimizer.step_closure(self._closure, state, params, rest, batch)[1:]
        if self.sums or self.means:
            for grad in grads:
                params, state = self.step(grad, state, params)
            return params, state
        return self.step(self.seen(grads, step), state, params)

    def hyper(self, state: Any, params: Tree) -> dict[str, dict[str, Any]] | None:
        """For each of torch's names the options with which it steps; None where they cannot be read."""
        return self._hyper(self.optimizer, state, params)

    def _live(self, state: Any) -> dict[str, dict[str, Any]] | None:
        """What can be read in the state alone, of a chain, a mask or optax.partition: by whose arrays a part keeps."""
        found = states_in(state)
        if len(found) == 1:
            return dict.fromkeys(self.names, _alike(found[0]))
        paths = {entry.path: str(entry.source.name) for entry in self.mapping.entries}
        kept = [
            {n for tree in x.slots or () for path, n in paths.items() if path in weight_leaves(tree)} for x in found
        ]
        return {name: _alike(x) for x, names in zip(found, kept, strict=True) for name in names} or None

    def _hyper(self, inner: Any, own: Any, params: Tree) -> dict[str, dict[str, Any]] | None:
        if isinstance(inner, Several):
            parts = [self._hyper(each, one, params) for each, one in zip(inner.optimizers, own, strict=True)]
            theirs = [{name for group in each["groups"] for name in group["names"]} for each in self.trace.optimizers]
            return {
                name: found
                for part, names in zip(parts, theirs, strict=False)
                for name, found in (part or {}).items()
                if name in names
            }
        if isinstance(inner, Scheduled):
            inner, own = inner.optimizer, own["optimizer"]
        try:
            found = torch_interop.optimizer_state_dict(inner, own, params, self.mapping)
        except (ValueError, TypeError, AttributeError):
            return self._live(own)
        return {
            name: {k: v for k, v in group.items() if k not in ("params", "param_names")}
            for group in found["param_groups"]
            for name in group["param_names"]
        }


def _alike(state: OptState) -> dict[str, Any]:
    """The live options that all groups share."""
    groups = get_hyper(state)
    return {key: value for key, value in groups[0].items() if all(g.get(key) == value for g in groups)}


def _are_alike(one: OptState, other: OptState) -> bool:
    """Whether two states keep the same arrays."""
    return jax.tree.structure((one.steps, one.slots)) == jax.tree.structure((other.steps, other.slots))


def _have_one_shape(one: OptState, other: OptState) -> bool:
    return jax.tree.map(jnp.shape, one.slots) == jax.tree.map(jnp.shape, other.slots)


def used_rows(grad: jax.Array) -> BCOO:
    """The rows of a table's gradient that are not 0; a row number past the end is one that was not used."""
    rows = jnp.arange(len(grad))
    used = (grad.reshape(len(grad), -1) != 0).any(1)
    return BCOO((grad, jnp.where(used, rows, len(grad))[:, None]), shape=grad.shape)


def as_jax(batch: Arrays) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x) for name, x in batch.items()}


def call(loss_fn: Callable[..., Any], params: Tree, batch: Mapping[str, Any]) -> Any:
    """By the batch's names if the function has them, otherwise with the batch as a dict."""
    try:
        signature = inspect.signature(loss_fn)
    except ValueError:  # it has none
        return loss_fn(params, **batch)
    for args, kwargs in (((params,), batch), ((params, dict(batch)), {})):
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            continue
        return loss_fn(*args, **kwargs)
    raise TypeError(
        f"loss_fn{signature} takes neither (params, {', '.join(batch)}), as r.batch named them in torch, nor (params, "
        "batch): give its arguments these names, or r.batch its names"
    )


def split(params: Tree) -> tuple[Tree, Tree]:
    """What is trained, and the rest: linen's collections, or what of an nnx state is no Param."""
    if isinstance(params, Mapping) and "params" in params and not _is_nnx(params):
        return params["params"], {name: part for name, part in params.items() if name != "params"}
    if _is_nnx(params):
        from flax import nnx

        state: Any = params
        trained, rest = state.split(nnx.Param, ...)
        return trained, rest
    return params, None


def join(trainable: Tree, rest: Tree, like: Tree) -> Tree:
    """The inverse of `split`."""
    if _is_nnx(like):
        from flax import nnx

        return nnx.merge_state(trainable, rest)
    return trainable if rest is None else type(like)({"params": trainable, **rest})


def _is_nnx(tree: Tree) -> bool:
    return type(tree).__module__.startswith("flax.nnx")


def _replaced(rest: Tree, changed: Tree) -> Tree:
    """`rest` with the leaves that `changed` has at the same paths."""
    new = dict(zip(leaf_paths(changed), jax.tree.leaves(changed), strict=True))
    old, treedef = jax.tree.flatten(rest)
    return treedef.unflatten([new.get(path, leaf) for path, leaf in zip(leaf_paths(rest), old, strict=True)])


def _finds(state: Any, kind: type) -> bool:
    return any(isinstance(x, kind) for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind)))

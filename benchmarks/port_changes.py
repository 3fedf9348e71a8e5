"""What a fault changes of a port: its start, its batches, its loss, its optimizer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax

import jaxopt_port as optim
from jaxopt_port import compare
from jaxopt_port.torch_interop import layout
from tests.compare import ports
from tests.compare.ports import Made

Change = Callable[[Made, compare.Trace], Made]


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Another start of one weight."""

    def changed(made: Made, trace: compare.Trace) -> Made:
        own = trace.model
        own[name] = np.ascontiguousarray(change(own[name]))
        mapping = made.mapping or layout.infer(own, made.params)
        return replace(made, params=layout.to_flax(mapping, own, made.params))

    return changed


def batches(change: Callable[[int, list[Any]], list[Any]]) -> Change:
    """Other batches than torch's, a list a step."""

    def changed(made: Made, trace: compare.Trace) -> Made:
        mine = [change(i, step.batches()) for i, step in enumerate(trace.steps)]
        return replace(made, batches=mine)

    return changed


def loss(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Change:
    return lambda made, _: replace(made, loss_fn=wrap(made.loss_fn))


def optimizer(make: Callable[[Any], Any]) -> Change:
    return lambda made, _: replace(made, optimizer=make(made.optimizer))


def without(path: tuple[str, ...]) -> Change:
    """A parameter that the port does not have."""

    def changed(made: Made, trace: compare.Trace) -> Made:
        def drop(tree: Any, rest: tuple[str, ...]) -> Any:
            if len(rest) == 1:
                return {k: v for k, v in tree.items() if k != rest[0]}
            return {k: drop(v, rest[1:]) if k == rest[0] else v for k, v in tree.items()}

        return replace(made, params=drop(made.params, path), mapping=None)

    return changed


def shuffled(at: int) -> Callable[[int, list[Any]], list[Any]]:
    def change(i: int, found: list[Any]) -> list[Any]:
        order = np.random.default_rng(i).permutation(len(found[0]["y"])) if i >= at - 1 else slice(None)
        return [{name: x[order] for name, x in batch.items()} for batch in found]

    return change


def detached(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The embedding gets no gradient from its lookup: as if frozen in the forward pass."""

    def loss_fn(params: Any, **batch: Any) -> Any:
        return fn({**params, "embed": jax.lax.stop_gradient(params["embed"])}, **batch)

    return loss_fn


def frozen(name: str) -> Change:
    """The port leaves alone what torch trains."""
    return lambda made, _: replace(
        made, optimizer=optim.sgd(0.05, 0.9, 0.0, 5e-4, True, param_groups=[optim.ParamGroup(name, frozen=True)])
    )


def accumulated_as_mean(made: Made, _: compare.Trace) -> Made:
    """optax.MultiSteps averages what torch adds up."""
    adamw = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(lambda step: 3e-3 * ports.schedule(step), 0.9, 0.95)
    )
    return replace(made, optimizer=optax.MultiSteps(adamw, 2).gradient_transformation())


def shifted(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Each position is to foretell the token that it sees."""
    return lambda params, x, y: fn(params, x, jax.numpy.roll(y, 1, axis=-1))


def rolled(_: int, found: list[Any]) -> list[Any]:
    """Each picture has its neighbour's label."""
    return [{**batch, "y": np.roll(batch["y"], 1)} for batch in found]


def cosine(made: Made, _: compare.Trace) -> Made:
    """A cosine that ends at step 100."""
    faster = (ports.STEPS - ports.WARM_UP) / (100 - ports.WARM_UP)

    def factor(step: int) -> float:
        return ports.factor(0)(step if step < ports.WARM_UP else ports.WARM_UP + (step - ports.WARM_UP) * faster)

    return replace(made, optimizer=compare.Scheduled(made.optimizer.optimizer, optim.lr_scheduler.lambda_lr(factor)))


def l2(made: Made, _: compare.Trace) -> Made:
    """Adam with weight decay in the gradient, for AdamW."""
    rest = optim.ParamGroup(lambda path, p: p.ndim < 2, weight_decay=0.0)
    adam = optim.adam(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, param_groups=[rest])
    schedule = optim.lr_scheduler.lambda_lr(ports.factor(0))
    return replace(made, optimizer=compare.Scheduled(optax.chain(ports.clip(1.0), adam), schedule))


def steady_decay(made: Made, _: compare.Trace) -> Made:
    """Weight decay by the first rate, not by the scheduled one."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(0.9, 0.95),
        optax.scale_by_learning_rate(lambda step: 3e-3 * ports.schedule(step)),
        optax.add_decayed_weights(-3e-4, mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)),
    )
    return replace(made, optimizer=optimizer)


def uncorrected(_: Any) -> Any:
    """Adam without its bias correction."""

    def init(params: Any) -> Any:
        return optax.tree.zeros_like(params), optax.tree.zeros_like(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[0], updates)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state[1], updates)
        return jax.tree.map(lambda m, v: -1e-2 * m / (v**0.5 + 1e-8), first, second), (first, second)

    adam = optax.GradientTransformation(init, update)
    return optax.chain(optax.clip_by_global_norm(0.1), optax.add_decayed_weights(1e-4), adam)


def clipped_each(_: Any) -> Any:
    """Every array's gradient clipped by its own norm."""

    def clip(grads: Any, _: Any) -> Any:
        return jax.tree.map(lambda g: g * jax.numpy.minimum(1.0, 0.1 / (optax.tree.norm(g) + 1e-6)), grads)

    return optax.chain(optax.stateless(clip), optim.adam(lr=1e-2, weight_decay=1e-4))


def swapped(made: Made, trace: compare.Trace) -> Made:
    """Two blocks' weights in each other's places."""
    own = trace.model
    a, b = "blocks.0.up.weight", "blocks.1.up.weight"
    own[a], own[b] = own[b], own[a]
    return replace(made, params=layout.to_flax(made.mapping or layout.infer(own, made.params), own, made.params))

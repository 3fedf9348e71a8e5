"""The runs of `torch_side` as ports to JAX: their losses and optimizers around the models, with torch's weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxopt_port as optim
from jaxopt_port import compare
from jaxopt_port.torch_interop import layout
from tests.compare.models import MODELS as MODELS
from tests.compare.models import Knobs as Knobs

WARM_UP, STEPS = 10, 200
Tree = Any

COUNTS = {"bn1": 16 * 16 * 16, "bn2": 16 * 16, "bn3": 16 * 16}  # values of a channel


def schedule(step: Any, shift: int = 0) -> Any:
    """warm_up_cosine of torch's side, for optax."""
    step = step + shift
    cosine = 0.1 + 0.45 * (1 + jnp.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))
    return jnp.where(step < WARM_UP, (step + 1) / WARM_UP, cosine)


def criterion(logits: jax.Array, y: jax.Array, knobs: Knobs) -> jax.Array:
    if knobs.smoothing:
        labels = optax.smooth_labels(jax.nn.one_hot(y, logits.shape[-1]), knobs.smoothing)
        losses = optax.softmax_cross_entropy(logits, labels)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return losses.sum() if knobs.loss == "sum" else losses.mean()


@dataclass
class Made:
    """What `follow` takes."""

    loss_fn: Callable[..., Any]
    params: Tree
    optimizer: Any
    mapping: Any = None
    batches: Any = None


def port(name: str, trace: compare.Trace, flavour: str, knobs: Knobs | None = None) -> Made:
    """A port of a run: `linen` or `nnx`, with torch's weights."""
    knobs = knobs or Knobs()
    accumulate = 2 if name == "gpt" else 1
    example = {n: jnp.asarray(x) for n, x in trace.steps[0].batches()[0].items()}["x"]

    def put(x: jax.Array) -> jax.Array:
        x = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
        return x if knobs.input_scale == 1 else x * knobs.input_scale

    divide = 1 if knobs.loss == "undivided" else accumulate
    if flavour == "linen":
        net = MODELS[name][0](knobs)
        variables = jax.tree.map(jnp.asarray, net.init(jax.random.key(0), put(example)))
        params = dict(variables) if "batch_stats" in variables else variables["params"]

        def loss_fn(params: Tree, x: jax.Array, y: jax.Array) -> Any:
            x = put(x)
            if "batch_stats" not in params:
                return criterion(net.apply({"params": params}, x), y, knobs) / divide
            logits, changed = net.apply(params, x, mutable=["batch_stats"])
            stats = corrected(params["batch_stats"], changed["batch_stats"], knobs)
            return criterion(logits, y, knobs), {"batch_stats": stats}

    else:
        graph, params = nnx.split(MODELS[name][1](knobs, nnx.Rngs(0)))

        def loss_fn(params: Tree, x: jax.Array, y: jax.Array) -> Any:
            model = nnx.merge(graph, params, copy=True)
            loss = criterion(model(put(x)), y, knobs) / divide
            if name != "resnet":
                return loss
            before, after = params.split(nnx.BatchStat, ...)[0], nnx.state(model, nnx.BatchStat)
            return loss, nnx_corrected(before, after, knobs)

    layouts = {"fc1.weight": layout.linear}  # the port flattens as torch does
    mapping = layout.infer(trace.model, params, layouts=layouts) if name == "resnet" else None
    own = trace.model
    if not knobs.tied:
        own["head.weight"] = own["wte.weight"]
    found = mapping or layout.infer(own, params)
    return Made(loss_fn, layout.to_flax(found, own, params), optimizer(name, flavour, knobs), mapping)


def corrected(before: Tree, after: Tree, knobs: Knobs) -> Tree:
    if not knobs.unbiased:
        return after
    return {
        n: {
            "mean": stats["mean"],
            "var": layout.unbiased_var(before[n]["var"], stats["var"], COUNTS[n], knobs.at(n, "momentum")),
        }
        for n, stats in after.items()
    }


def nnx_corrected(before: Tree, after: Tree, knobs: Knobs) -> Tree:
    if not knobs.unbiased:
        return after
    for n, count in COUNTS.items():
        var = layout.unbiased_var(before[n]["var"][...], after[n]["var"][...], count, knobs.at(n, "momentum"))
        after[n]["var"][...] = var
    return after


def clip(norm: float) -> optax.GradientTransformation:
    return optax.stateless(lambda grads, _: optim.clip_grad_norm(grads, norm)[0])


def optimizer(name: str, flavour: str, knobs: Knobs) -> Any:
    """linen's ports step with this library, nnx's with optax where it has the optimizer."""
    given = {"norm": {"gpt": 1.0, "lstm": 0.1}.get(name, 0.0), "shift": 0, **knobs.optimizer}
    norm, shift = given.pop("norm"), given.pop("shift")
    clipping = [clip(norm)] if norm else []
    if name == "gpt":
        options = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1, "decayed": 2, **given}
        ndim = options.pop("decayed")
        if flavour == "nnx":
            mask = lambda params: jax.tree.map(lambda p: p.ndim >= ndim, params)  # noqa: E731
            rate = lambda step: options["lr"] * schedule(step, shift)  # noqa: E731
            b1, b2 = options["betas"]
            return optax.chain(
                *([optax.clip_by_global_norm(norm)] if norm else []),
                optax.adamw(rate, b1, b2, weight_decay=options["weight_decay"], mask=mask),
            )
        rest = optim.ParamGroup(lambda path, p: p.ndim < ndim, weight_decay=0.0)
        adamw = optim.adamw(**options, param_groups=[rest] if ndim > 1 else [])
        return compare.Scheduled(optax.chain(*clipping, adamw), optim.lr_scheduler.lambda_lr(factor(shift)))
    if name == "resnet":
        options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True, "milestones": [8, 120], **given}
        milestones = [m + shift for m in options.pop("milestones")]
        if flavour == "nnx":
            rate = optax.piecewise_constant_schedule(options["lr"], dict.fromkeys(milestones, 0.5))
            return optax.chain(
                optax.add_decayed_weights(options["weight_decay"]),
                optax.sgd(rate, options["momentum"], options["nesterov"]),
            )
        return compare.Scheduled(optim.sgd(**options), optim.lr_scheduler.multi_step_lr(milestones, gamma=0.5))
    if name == "lstm":
        options = {"lr": 1e-2, "weight_decay": 1e-4, "kind": "adam", **given}
        kind = options.pop("kind")
        if flavour == "nnx" and kind == "adam":
            return optax.chain(
                *([optax.clip_by_global_norm(norm)] if norm else []),
                optax.add_decayed_weights(options["weight_decay"]),
                optax.adam(options["lr"]),
            )
        return optax.chain(*clipping, optim.optimizers[kind](**options))
    options = {"lr": 2e-2, "adjust_lr_fn": "match_rms_adamw", **given}
    if flavour == "nnx":
        return [
            optim.muon(**options, param_groups=[optim.ParamGroup(lambda path, p: p.ndim != 2, frozen=True)]),
            optim.adamw(lr=3e-3, param_groups=[optim.ParamGroup(lambda path, p: p.ndim == 2, frozen=True)]),
        ]
    return optax.partition(
        {"muon": optim.muon(**options), "adamw": optim.adamw(lr=3e-3)},
        lambda params: jax.tree.map(lambda p: "muon" if p.ndim == 2 else "adamw", params),
    )


def factor(shift: int) -> Callable[[float], float]:
    """torch's own rates, in float64."""

    def rate(step: float) -> float:
        step += shift
        if step < WARM_UP:
            return (step + 1) / WARM_UP
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))

    return rate

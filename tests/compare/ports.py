"""The same runs in JAX, in linen and in nnx, and the knobs with which a fault is put into one."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxopt_port as optim
from jaxopt_port import compare
from jaxopt_port.torch_interop import layout

VOCABULARY, CONTEXT, WIDTH, HEADS, BLOCKS = 29, 12, 32, 4, 2
WARM_UP, STEPS = 10, 200
Tree = Any


@dataclass(frozen=True)
class Knobs:
    """What a port does; as they are here it does what torch does. `of` names the layer that a knob is for."""

    of: str = ""
    eps: float = 1e-5
    approximate: bool = False
    scale: float = 1.0  # of the attention's logits
    causal: bool = True
    stop: bool = False  # the gradient through v
    tied: bool = True
    dropout: float = 0.0
    loss: str = "mean"
    smoothing: float = 0.0
    padding: Any = 1
    momentum: float = 0.9
    unbiased: bool = True
    running: bool = False
    pool: str = "max"
    flatten: str = "chw"
    activation: str = "relu"
    gates: str = "ifgo"
    input_scale: float = 1.0
    embed_scale: float = 1.0
    shift: int = 0  # of the positions
    post_norm: bool = False
    residual: bool = True  # around the second half of a block
    constant: bool = False  # LayerNorm's statistics, in the backward pass
    dilation: int = 1
    carry: float = 0.0  # the LSTM's first state
    optimizer: dict[str, Any] = field(default_factory=dict)

    def at(self, name: str, knob: str) -> Any:
        """A knob's value at a layer."""
        return getattr(self, knob) if self.of in ("", name) else getattr(Knobs(), knob)


def schedule(step: Any, shift: int = 0) -> Any:
    """warm_up_cosine of torch's side, for optax."""
    step = step + shift
    cosine = 0.1 + 0.45 * (1 + jnp.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))
    return jnp.where(step < WARM_UP, (step + 1) / WARM_UP, cosine)


def positions(x: jax.Array, knobs: Knobs) -> jax.Array:
    return (jnp.arange(x.shape[1]) + knobs.shift) % CONTEXT


def attention(qkv: jax.Array, knobs: Knobs, name: str) -> jax.Array:
    batch, length, _ = qkv.shape
    q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, HEADS, -1), 2, 0)
    if knobs.at(name, "stop"):
        v = jax.lax.stop_gradient(v)
    scale = knobs.at(name, "scale") / math.sqrt(q.shape[-1])
    return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=knobs.at(name, "causal")).reshape(
        batch, length, -1
    )


class ConstantNorm(nn.Module):
    """LayerNorm whose gradient takes mean and variance for constants."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        mean, var = jax.lax.stop_gradient((x.mean(-1, keepdims=True), x.var(-1, keepdims=True)))
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


class Block(nn.Module):
    name_in_torch: str
    knobs: Knobs

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        at, of = self.knobs.at, self.name_in_torch
        norm = nn.LayerNorm(epsilon=at(f"{of}.ln1", "eps"), use_fast_variance=False, name="ln1")
        y = x if at(of, "post_norm") else norm(x)
        y = attention(nn.Dense(3 * WIDTH, name="qkv")(y), self.knobs, of)
        x = x + nn.Dense(WIDTH, name="proj")(y)
        x = norm(x) if at(of, "post_norm") else x
        if at(f"{of}.ln2", "constant"):
            y = ConstantNorm(name="ln2")(x)
        else:
            y = nn.LayerNorm(epsilon=at(f"{of}.ln2", "eps"), use_fast_variance=False, name="ln2")(x)
        y = nn.gelu(nn.Dense(4 * WIDTH, name="up")(y), approximate=at(of, "approximate"))
        if at(of, "dropout"):
            y = nn.Dropout(at(of, "dropout"), deterministic=False)(y, rng=jax.random.key(0))
        return x + nn.Dense(WIDTH, name="down")(y)


class GPT(nn.Module):
    knobs: Knobs = Knobs()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wte = nn.Embed(VOCABULARY, WIDTH, name="wte")
        h = self.knobs.embed_scale * wte(x) + nn.Embed(CONTEXT, WIDTH, name="wpe")(positions(x, self.knobs))
        for i in range(BLOCKS):
            h = Block(f"blocks.{i}", self.knobs, name=f"blocks_{i}")(h)
        h = nn.LayerNorm(epsilon=self.knobs.at("ln_f", "eps"), use_fast_variance=False, name="ln_f")(h)
        return wte.attend(h) if self.knobs.tied else nn.Dense(VOCABULARY, use_bias=False, name="head")(h)


class NNXBlock(nnx.Module):
    def __init__(self, name: str, knobs: Knobs, rngs: nnx.Rngs):
        self.name_in_torch, self.knobs = name, knobs
        norm = lambda of: nnx.LayerNorm(  # noqa: E731
            WIDTH, epsilon=knobs.at(f"{name}.{of}", "eps"), use_fast_variance=False, rngs=rngs
        )
        self.ln1, self.ln2 = norm("ln1"), norm("ln2")
        self.qkv, self.proj = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        at, of = self.knobs.at, self.name_in_torch
        x = x + self.proj(attention(self.qkv(self.ln1(x)), self.knobs, of))
        y = self.down(nnx.gelu(self.up(self.ln2(x)), approximate=at(of, "approximate")))
        return x + y if at(of, "residual") else y


class NNXGPT(nnx.Module):
    def __init__(self, knobs: Knobs, rngs: nnx.Rngs):
        self.knobs = knobs
        self.wte, self.wpe = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs), nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.List([NNXBlock(f"blocks.{i}", knobs, rngs) for i in range(BLOCKS)])
        self.ln_f = nnx.LayerNorm(WIDTH, epsilon=knobs.at("ln_f", "eps"), use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.wte(x) + self.wpe(positions(x, self.knobs))
        for block in self.blocks:
            h = block(h)
        return self.wte.attend(self.ln_f(h))


def pooled(x: jax.Array, knobs: Knobs) -> jax.Array:
    return (nn.max_pool if knobs.pool == "max" else nn.avg_pool)(x, (2, 2), (2, 2))


def flat(x: jax.Array, knobs: Knobs) -> jax.Array:
    return (x.transpose(0, 3, 1, 2) if knobs.flatten == "chw" else x).reshape(len(x), -1)


class ResNet(nn.Module):
    knobs: Knobs = Knobs()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        knobs, relu = self.knobs, {"relu": nn.relu, "gelu": nn.gelu}

        def norm(name: str, x: jax.Array) -> jax.Array:
            return nn.BatchNorm(
                use_running_average=knobs.at(name, "running"),
                momentum=knobs.at(name, "momentum"),
                epsilon=knobs.at(name, "eps"),
                use_fast_variance=False,
                name=name,
            )(x)

        def conv(name: str, features: int, x: jax.Array, stride: int = 1, size: int = 3) -> jax.Array:
            padding = knobs.at(name, "padding") if size == 3 else 0
            return nn.Conv(features, (size, size), strides=stride, padding=padding, use_bias=False, name=name)(x)

        x = pooled(nn.relu(norm("bn1", conv("conv1", 8, x))), knobs)
        y = nn.relu(norm("bn2", conv("conv2", 16, x, stride=2)))
        y = norm("bn3", conv("conv3", 16, y))
        x = nn.relu(y + conv("down", 16, x, stride=2, size=1))
        h = nn.Dense(16, name="fc1")(flat(x, knobs))
        return nn.Dense(10, name="fc2")(relu[knobs.activation](h))


class NNXResNet(nnx.Module):
    def __init__(self, knobs: Knobs, rngs: nnx.Rngs):
        self.knobs = knobs

        def conv(name: str, a: int, b: int, stride: int = 1, size: int = 3) -> nnx.Conv:
            padding = knobs.at(name, "padding") if size == 3 else 0
            dilation = knobs.at(name, "dilation")
            padding = padding * dilation if dilation > 1 else padding
            return nnx.Conv(
                a,
                b,
                (size, size),
                strides=stride,
                padding=padding,
                kernel_dilation=dilation,
                use_bias=False,
                rngs=rngs,
            )

        def norm(name: str, features: int) -> nnx.BatchNorm:
            return nnx.BatchNorm(
                features,
                momentum=knobs.at(name, "momentum"),
                epsilon=knobs.at(name, "eps"),
                use_fast_variance=False,
                rngs=rngs,
            )

        self.conv1, self.bn1 = conv("conv1", 3, 8), norm("bn1", 8)
        self.conv2, self.bn2 = conv("conv2", 8, 16, stride=2), norm("bn2", 16)
        self.conv3, self.bn3 = conv("conv3", 16, 16), norm("bn3", 16)
        self.down = conv("down", 8, 16, stride=2, size=1)
        self.fc1, self.fc2 = nnx.Linear(16 * 4 * 4, 16, rngs=rngs), nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = pooled(nnx.relu(self.bn1(self.conv1(x))), self.knobs)
        y = self.bn3(self.conv3(nnx.relu(self.bn2(self.conv2(x)))))
        x = nnx.relu(y + self.down(x))
        return self.fc2(nnx.relu(self.fc1(flat(x, self.knobs))))


def lstm(x: jax.Array, weights: tuple[jax.Array, ...], knobs: Knobs) -> jax.Array:
    """torch's LSTM, batch first, with torch's arrays."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights

    def cell(carry: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = carry
        parts = dict(
            zip(knobs.gates, jnp.split(x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh, 4, -1), strict=True)
        )
        c = jax.nn.sigmoid(parts["f"]) * c + jax.nn.sigmoid(parts["i"]) * jnp.tanh(parts["g"])
        h = jax.nn.sigmoid(parts["o"]) * jnp.tanh(c)
        return (h, c), h

    first = jnp.full((x.shape[0], weight_hh.shape[1]), knobs.carry)
    return jax.lax.scan(cell, (first, first), x.swapaxes(0, 1))[1].swapaxes(0, 1)


SHAPES = {"weight_ih_l0": (96, 16), "weight_hh_l0": (96, 24), "bias_ih_l0": (96,), "bias_hh_l0": (96,)}


class Cells(nn.Module):
    knobs: Knobs

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return lstm(x, tuple(self.param(name, nn.initializers.zeros, s) for name, s in SHAPES.items()), self.knobs)


class LSTM(nn.Module):
    knobs: Knobs = Knobs()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Cells(self.knobs, name="lstm")(nn.Embed(VOCABULARY, 16, name="embed")(x))
        return nn.Dense(VOCABULARY, name="out")(x)


class NNXCells(nnx.Module):
    def __init__(self, knobs: Knobs):
        self.knobs = knobs
        for name, shape in SHAPES.items():
            setattr(self, name, nnx.Param(jnp.zeros(shape)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return lstm(x, tuple(getattr(self, name)[...] for name in SHAPES), self.knobs)


class NNXLSTM(nnx.Module):
    def __init__(self, knobs: Knobs, rngs: nnx.Rngs):
        self.embed, self.lstm = nnx.Embed(VOCABULARY, 16, rngs=rngs), NNXCells(knobs)
        self.out = nnx.Linear(24, VOCABULARY, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.lstm(self.embed(x)))


class MLP(nn.Module):
    knobs: Knobs = Knobs()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm(epsilon=self.knobs.eps, use_fast_variance=False, name="norm")(nn.Dense(32, name="fc1")(x))
        x = nn.Dense(32, name="fc2")(nn.gelu(x, approximate=self.knobs.approximate))
        return nn.Dense(10, name="fc3")(jnp.tanh(x))


class NNXMLP(nnx.Module):
    def __init__(self, knobs: Knobs, rngs: nnx.Rngs):
        self.knobs = knobs
        self.fc1, self.fc2, self.fc3 = (nnx.Linear(a, b, rngs=rngs) for a, b in ((20, 32), (32, 32), (32, 10)))
        self.norm = nnx.LayerNorm(32, epsilon=knobs.eps, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.gelu(self.norm(self.fc1(x)), approximate=self.knobs.approximate)
        return self.fc3(jnp.tanh(self.fc2(x)))


MODELS: dict[str, tuple[Any, Any]] = {
    "gpt": (GPT, NNXGPT),
    "resnet": (ResNet, NNXResNet),
    "lstm": (LSTM, NNXLSTM),
    "muon": (MLP, NNXMLP),
}
COUNTS = {"bn1": 16 * 16 * 16, "bn2": 16 * 16, "bn3": 16 * 16}  # values of a channel


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

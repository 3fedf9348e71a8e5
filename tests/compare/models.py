"""The models of `torch_side` in linen and in nnx, and the knobs with which a fault is put into one."""

import math
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

VOCABULARY, CONTEXT, WIDTH, HEADS, BLOCKS = 29, 12, 32, 4, 2


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

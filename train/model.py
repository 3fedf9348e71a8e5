"""The network of PyTorch's CIFAR-10 tutorial, with torch's layouts, defaults and rules."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

Params = dict[str, Any]

# torchvision's ToTensor, as a table: XLA turns x / 255 into x * (1 / 255), which is an ulp off for half of the values.
_PIXEL_VALUES = np.arange(256, dtype=np.float32) / np.float32(255)


class Network(nn.Module):
    """Three convolutions, each max-pooled, and two dense layers, with no activations."""

    @nn.compact
    def __call__(self, images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch 10"]:
        x = jnp.asarray(_PIXEL_VALUES)[images]
        for features in (32, 32, 64):
            init = torch_uniform(fan_in=5 * 5 * x.shape[-1])
            x = max_pool(nn.Conv(features, (5, 5), padding=2, kernel_init=init, bias_init=init)(x))
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # torch flattens channels first
        for features in (64, 10):
            init = torch_uniform(fan_in=x.shape[-1])
            x = nn.Dense(features, kernel_init=init, bias_init=init)(x)
        return x


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """torch's default initialisation of kernels and biases alike: uniform within 1 / sqrt(fan_in) of zero."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def max_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height/2 width/2 channels"]:
    """2x2 max pooling in which the first of equal values gets the gradient, as in torch.

    The gradient of `flax.linen.max_pool` does the same but takes 20 times longer on a CPU.
    """
    batch, height, width, channels = x.shape
    windows = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    largest = windows[:, :, 0, :, 0]
    for row, column in ((0, 1), (1, 0), (1, 1)):
        value = windows[:, :, row, :, column]
        largest = jnp.where((value > largest) | jnp.isnan(value), value, largest)
    return largest


def cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
    """`torch.nn.CrossEntropyLoss()`: the mean over the batch of -log softmax(logits)[label]."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


def init_params(key: PRNGKeyArray) -> Params:
    """The network's initial parameters."""
    return jax.jit(Network().init)(key, jnp.zeros((1, 32, 32, 3), jnp.uint8))["params"]

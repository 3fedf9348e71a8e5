"""The network of PyTorch's CIFAR-10 tutorial, with torch's layouts, defaults and rules."""

import math
from collections.abc import Callable
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
    """Three max-pooled convolutions and two dense layers, with no activations. `init_params` draws its parameters."""

    convolve: Callable[..., Any] = jax.lax.conv_general_dilated

    @nn.compact
    def __call__(self, images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch 10"]:
        x = jnp.asarray(_PIXEL_VALUES)[images]
        for features in (32, 32, 64):
            x = max_pool(nn.Conv(features, (5, 5), padding=2, conv_general_dilated=self.convolve)(x))
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # torch flattens channels first
        for features in (64, 10):
            x = nn.Dense(features)(x)
        return x


def convolve_by_rows(images: Any, kernel: Any, strides: Any, padding: Any, **_: Any) -> Any:
    """The same convolution (stride 1) as a matrix product for every row of the kernel.

    In a loop on a CPU, where XLA convolves on one thread, it is 20 times faster.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    columns = jnp.concatenate([padded[:, :, j : j + width] for j in range(kernel.shape[1])], axis=-1)
    rows = kernel.reshape(kernel.shape[0], -1, kernel.shape[-1])
    return sum(columns[:, i : i + height] @ row for i, row in enumerate(rows))


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


@jax.jit
def init_params(key: PRNGKeyArray) -> Params:
    """Initial parameters as torch draws them by default: kernels and biases uniform within 1 / sqrt(fan_in) of zero.

    One draw serves them all, since XLA takes half a second to compile each.
    """
    shapes = jax.eval_shape(Network().init, key, jnp.zeros((1, 32, 32, 3), jnp.uint8))["params"]
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    rest = jax.random.uniform(key, (size,), jnp.float32, minval=-1.0, maxval=1.0)
    params: Params = {}
    for layer, leaves in shapes.items():
        bound = math.prod(leaves["kernel"].shape[:-1]) ** -0.5
        params[layer] = {}
        for name, leaf in leaves.items():
            drawn, rest = jnp.split(rest, [leaf.size])
            params[layer][name] = bound * drawn.reshape(leaf.shape)
    return params

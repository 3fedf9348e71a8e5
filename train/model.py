"""The network of PyTorch's CIFAR-10 tutorial, with torch's layouts and rules. `layers` says all there is of it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

Params = dict[str, Any]

KERNEL = 5  # pixels, of every convolution, which pads by half of it

# torchvision's ToTensor, as a table: XLA turns x / 255 into x * (1 / 255), which is an ulp off for half of the values.
_PIXEL_VALUES = np.arange(256, dtype=np.float32) / np.float32(255)


class Layer(NamedTuple):
    """A layer with parameters. 2x2 max pooling follows a convolution, and flattening the last of them."""

    name: str
    kind: Literal["conv", "dense"]
    inputs: int
    outputs: int


def layers(classes: int) -> tuple[Layer, ...]:
    """The tutorial's network for pictures of 32x32x3: three convolutions and two dense layers, with no activations."""
    return (
        Layer("Conv_0", "conv", 3, 32),
        Layer("Conv_1", "conv", 32, 32),
        Layer("Conv_2", "conv", 32, 64),
        Layer("Dense_0", "dense", 64 * 4 * 4, 64),
        Layer("Dense_1", "dense", 64, classes),
    )


class Network(nn.Module):
    """The forward pass. `train.start` draws the parameters; with a `dtype` it casts them, and computes in it."""

    classes: int = 10
    convolve: Callable[..., Any] = jax.lax.conv_general_dilated
    dtype: Any = None

    @nn.compact
    def __call__(self, images: UInt8[Array, "batch 32 32 3"]) -> Float[Array, "batch classes"]:
        x = jnp.asarray(_PIXEL_VALUES)[images]
        for layer in layers(self.classes):
            if layer.kind == "conv":
                conv = nn.Conv(
                    layer.outputs,
                    (KERNEL, KERNEL),
                    padding=KERNEL // 2,
                    conv_general_dilated=self.convolve,
                    dtype=self.dtype,
                    name=layer.name,
                )
                x = max_pool(conv(x))
            else:
                if x.ndim == 4:
                    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # torch flattens channels first
                x = nn.Dense(layer.outputs, dtype=self.dtype, name=layer.name)(x)
        return x


def classes_of(params: Params) -> int:
    """How many classes a network with these parameters tells apart."""
    return params[layers(0)[-1].name]["bias"].shape[0]


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

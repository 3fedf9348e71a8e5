"""Random crops and flips of a batch, on the device."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, UInt8

PADDING = 4  # pixels


def augment(key: PRNGKeyArray, images: UInt8[Any, "batch 32 32 3"]) -> UInt8[Array, "batch 32 32 3"]:
    """torchvision's `RandomCrop(32, padding=4)` and `RandomHorizontalFlip()`, each picture with draws of its own.

    Args:
      key: decides the draws.
      images: the batch.
    """
    images = jnp.asarray(images)
    batch, height, width, channels = images.shape
    for_crop, for_flip = jax.random.split(key)
    corners = jax.random.randint(for_crop, (batch, 2), 0, 2 * PADDING + 1)
    flips = jax.random.bernoulli(for_flip, shape=(batch, 1, 1, 1))
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))

    def crop(picture: Any, corner: Any) -> Any:
        return jax.lax.dynamic_slice(picture, (*corner, 0), (height, width, channels))

    cropped = jax.vmap(crop)(padded, corners)
    return jnp.where(flips, cropped[:, :, ::-1], cropped)

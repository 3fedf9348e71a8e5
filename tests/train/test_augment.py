"""Crops and flips: each picture is one of those that torchvision's transforms can make, by the key alone."""

import jax
import numpy as np

from train.augment import PADDING, augment


def test_each_picture_is_a_crop_of_it_or_of_its_mirror_image() -> None:
    images = np.random.default_rng(0).integers(1, 256, (64, 32, 32, 3), np.uint8)  # 0 is the padding's
    made = np.asarray(jax.jit(augment)(jax.random.key(1), images))
    assert (made.shape, made.dtype) == (images.shape, np.uint8)
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    found = []
    for picture, around in zip(made, padded, strict=True):
        crops = {
            (row, column, flipped): around[row : row + 32, column : column + 32][:, :: -1 if flipped else 1]
            for row in range(2 * PADDING + 1)
            for column in range(2 * PADDING + 1)
            for flipped in (False, True)
        }
        found += [where for where, crop in crops.items() if (crop == picture).all()]
    assert len(found) == len(images)
    rows, columns, flips = (set(values) for values in zip(*found, strict=True))
    assert rows == columns == set(range(2 * PADDING + 1))
    assert flips == {False, True}


def test_the_key_decides() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    one, same, other = (np.asarray(augment(jax.random.key(key), images)) for key in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()

"""scikit-learn's bundled digits as a TFDS dataset, prepared without TensorFlow and without a network."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import sklearn.datasets
import tensorflow_datasets as tfds

TEST_EXAMPLES = 360


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1,797 handwritten digits of 8x8 pixels, enlarged to 32x32x3; the last 360 are the test split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(32, 32, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return _LocalInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        images, labels = sklearn.datasets.load_digits(return_X_y=True)
        return {
            "train": self._generate_examples(images[:-TEST_EXAMPLES], labels[:-TEST_EXAMPLES]),
            "test": self._generate_examples(images[-TEST_EXAMPLES:], labels[-TEST_EXAMPLES:]),
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": _png(image.reshape(8, 8)), "label": int(label)}


class _LocalInfo(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Do not look for the dataset's description on the network."""


def prepare(root: Path) -> None:
    """Prepare `root/digits/1.0.0`, whole or not at all."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".digits-", dir=root) as scratch:
        builder = Digits(data_dir=scratch, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress
            builder.download_and_prepare()
        target = root / "digits" / str(builder.version)
        target.parent.mkdir(exist_ok=True)
        try:
            os.rename(builder.data_dir, target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise


def _png(image: np.ndarray) -> io.BytesIO:
    """The picture as a PNG file: TFDS without TensorFlow encodes no arrays."""
    pixels = np.rint(image * (255 / 16)).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert("RGB").save(file, "png")
    file.seek(0)
    return file

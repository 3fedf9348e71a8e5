"""TFDS builders that prepare without TensorFlow: what they make, `tfds.data_source` reads.

Named, versioned and laid out as TFDS's own, so that each reads what the other has prepared. Only `digits` is ours.
"""

import contextlib
import hashlib
import io
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.utils import Size

from train.data import archives
from train.errors import UsageError, one_line

TEST_DIGITS = 360

# Where the archives are, with the sizes and SHA-256 that TFDS has of them.
KRIZ, SVHN = "https://www.cs.toronto.edu/~kriz", "http://ufldl.stanford.edu/housenumbers"
DOWNLOADS: dict[str, dict[str, tuple[int, str]]] = {
    "cifar10": {
        f"{KRIZ}/cifar-10-binary.tar.gz": (
            170052171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        )
    },
    "cifar100": {
        f"{KRIZ}/cifar-100-binary.tar.gz": (
            168513733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        )
    },
    "svhn_cropped": {
        f"{SVHN}/train_32x32.mat": (
            182040794,
            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
        f"{SVHN}/test_32x32.mat": (
            64275384,
            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
    },
}


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Do not look for the dataset's description on the network."""


class _Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Pictures of 32x32x3 with labels.

    Args:
      files: what to read them from.
    """

    classes: Mapping[str, int] = {"label": 10}
    has_ids = True
    shuffles = True

    def __init__(self, files: list[Path], **kwargs: Any):
        self.files = files
        super().__init__(**kwargs)

    def pictures(self, split: str) -> Iterator[archives.Picture]:
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {"image": tfds.features.Image(shape=(32, 32, 3), dtype=np.uint8)}
        features |= {name: tfds.features.ClassLabel(num_classes=number) for name, number in self.classes.items()}
        if self.has_ids:
            features["id"] = tfds.features.Text()
        return _Info(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=not self.shuffles,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        digits = 6 if self.name == "svhn_cropped" else 5
        for index, (image, labels) in enumerate(self.pictures(split)):
            ids = {"id": f"{split}_{index:0{digits}d}"} if self.has_ids else {}
            yield index, {"image": _png(image), **labels, **ids}


class Digits(_Pictures, skip_registration=True):
    """scikit-learn's 1,797 digits of 8x8 pixels, enlarged to 32x32x3; the last 360 are the test split."""

    VERSION = tfds.core.Version("1.0.0")
    has_ids = False
    shuffles = False

    def pictures(self, split: str) -> Iterator[archives.Picture]:
        import sklearn.datasets

        images, labels = sklearn.datasets.load_digits(return_X_y=True)
        rows = slice(0, -TEST_DIGITS) if split == "train" else slice(-TEST_DIGITS, None)
        for image, label in zip(images[rows], labels[rows], strict=True):
            pixels = np.rint(image.reshape(8, 8, 1) * (255 / 16)).astype(np.uint8)
            yield pixels.repeat(4, axis=0).repeat(4, axis=1).repeat(3, axis=2), {"label": int(label)}


class Cifar10(_Pictures, skip_registration=True):
    """CIFAR-10."""

    VERSION = tfds.core.Version("3.0.2")

    def pictures(self, split: str) -> Iterator[archives.Picture]:
        return archives.cifar(self.name, self.files[0], split)


class Cifar100(Cifar10, skip_registration=True):
    """CIFAR-100."""

    VERSION = tfds.core.Version("3.0.2")
    classes: Mapping[str, int] = {"label": 100, "coarse_label": 20}


class SvhnCropped(_Pictures, skip_registration=True):
    """Street View House Numbers, cropped; without the split `extra`."""

    VERSION = tfds.core.Version("3.1.0")

    def pictures(self, split: str) -> Iterator[archives.Picture]:
        return archives.svhn(self.files[0 if split == "train" else 1])


BUILDERS = {"digits": Digits, "cifar10": Cifar10, "cifar100": Cifar100, "svhn_cropped": SvhnCropped}


def prepare(dataset: str, scratch: Path, archive: Path | None, downloads: Path) -> Path:
    """Prepare a dataset.

    Args:
      dataset: its name.
      scratch: where.
      archive: what from, in place of the download.
      downloads: where downloads are kept.

    Returns:
      The prepared directory, inside `scratch`.

    Raises:
      UsageError: the archive cannot be had, or is another.
      OSError: nothing can be written there.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)
    files = [] if dataset == "digits" else [archive] if archive is not None else _downloaded(dataset, downloads)
    builder = BUILDERS[dataset](files, data_dir=scratch, file_format="array_record")
    if dataset != "digits":
        print(f"preparing {dataset}, once", file=sys.stderr)
    try:
        with _quiet():
            builder.download_and_prepare()
    except ValueError as error:
        where = f"--archive {archive}" if archive is not None else f"--dataset {dataset}"
        raise UsageError(f"{where}: {one_line(error)}") from error
    except RuntimeError as error:  # array_record's, on a full disk
        raise OSError(one_line(error)) from error
    return Path(builder.data_dir)


def _downloaded(dataset: str, downloads: Path) -> list[Path]:
    """The dataset's files, from TFDS's download manager, each with the checksum that it has to have."""
    urls = DOWNLOADS[dataset]
    print(f"downloading {', '.join(urls)} to {downloads}, once", file=sys.stderr)

    def get(force: bool) -> list[Path]:
        manager = tfds.download.DownloadManager(
            download_dir=downloads,
            url_infos={url: UrlInfo(Size(size), digest, url.split("/")[-1]) for url, (size, digest) in urls.items()},
            dataset_name=dataset,
            force_download=force,
            force_checksums_validation=True,
        )
        paths: Any = manager.download(list(urls))
        return [Path(path) for path in paths]

    _remove_partial(downloads / dataset)  # of a process that was killed
    try:
        files = get(force=False)
        if not all(_sha256(file) == digest for file, (_, digest) in zip(files, urls.values(), strict=True)):
            files = get(force=True)  # one was damaged since
        return files
    except Exception as error:  # requests, urllib3 and TFDS raise many kinds
        remedy = "give the file with --archive FILE" if dataset.startswith("cifar") else "put them where TFDS does"
        raise UsageError(
            f"--dataset {dataset}: {', '.join(urls)} cannot be had ({one_line(error)}); try again later, give a "
            f"directory that has it prepared with --data-dir DIR, or {remedy}"
        ) from error
    finally:
        _remove_partial(downloads / dataset)


def _remove_partial(folder: Path) -> None:
    for left in folder.rglob("*.tmp.*"):
        shutil.rmtree(left, ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's progress."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _png(image: np.ndarray) -> io.BytesIO:
    """The picture as a PNG file: TFDS without TensorFlow encodes no arrays."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "png")
    file.seek(0)
    return file

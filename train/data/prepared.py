"""Where a dataset's prepared directory is, and having it prepared where it is not there or damaged.

What this program prepares has a checksum of every byte beside it. What others prepared is read, and never changed.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from train import manifest
from train.cache import cache_root
from train.data.locks import alone
from train.errors import UsageError, one_line

VERSIONS = {"digits": "1.0.0", "cifar10": "3.0.2", "cifar100": "3.0.2", "svhn_cropped": "3.1.0"}
BUNDLED = "digits"  # which nobody else prepares


class Place:
    """Where a dataset is, or is prepared.

    Args:
      dataset: its name.
      data_dir: a TFDS directory; by default one in the user's cache.
      archive: what to prepare it from in place of the download.
    """

    def __init__(self, dataset: str, data_dir: Path | None, archive: Path | None = None):
        self.dataset, self.archive = dataset, archive
        self.root = data_dir or cache_root()
        self._named = data_dir is not None

    def directory(self) -> Path:
        """The dataset's newest version; prepared, if it was not.

        Raises:
          UsageError: it cannot be.
        """
        versions = sorted(
            (
                info.parent
                for info in (self.root / self.dataset).glob("*/dataset_info.json")
                if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)  # TFDS works in incomplete.*
            ),
            key=lambda directory: [int(number) for number in directory.name.split(".")],
        )
        return versions[-1] if versions else self.again()

    def sound(self) -> Path:
        """The same, with every byte as it was when this program prepared it."""
        directory = self.directory()
        if self.ours(directory):
            try:
                manifest.verify(directory)
            except manifest.Damaged as error:
                print(f"{directory} is damaged ({error}); it is prepared again", file=sys.stderr)
                return self.again()
        return directory

    def ours(self, directory: Path) -> bool:
        """Whether this program prepared the directory."""
        return self.dataset == BUNDLED or (directory / manifest.FILE).exists()

    def again(self) -> Path:
        """Prepare it, in place of what is there."""
        if self.dataset not in VERSIONS:
            raise UsageError(
                f"--data-dir {self.root}: no {self.dataset}/VERSION/dataset_info.json there; give a directory in which "
                f"`tfds build {self.dataset} --file_format array_record --data_dir DIR` has prepared {self.dataset}"
            )
        target = self.root / self.dataset / VERSIONS[self.dataset]
        try:
            with alone(self.root, self.dataset) as scratch:
                if _is_whole(target):  # by another process, just now
                    return target
                from train.data import builders  # imports TFDS

                whole = builders.prepare(self.dataset, scratch, self.archive, self.root / "downloads")
                manifest.write(whole)
                target.parent.mkdir(exist_ok=True)
                if target.exists():
                    shutil.rmtree(target)
                os.rename(whole, target)
        except OSError as error:
            remedy = "give another" if self._named else "give a directory with --data-dir DIR"
            raise UsageError(
                f"--data-dir {self.root}: {self.dataset} cannot be prepared there ({one_line(error)}); {remedy}"
            ) from error
        return target


def _is_whole(directory: Path) -> bool:
    try:
        manifest.verify(directory)
    except manifest.Damaged:
        return False
    return True

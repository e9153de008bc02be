"""Arrays of your own: one `.npz` file with `x_train`, `y_train`, `x_test`, `y_test`.

Images are uint8 in 0..255 or floats in [0, 1], `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`; the
channel axis is the one of size 1 or 3. Labels are class numbers `(N,)`. Nothing is unpickled.
Where no training images are needed, `x_test` and `y_test` (or `images` and `labels`) are enough.

`shuffle` puts each split into an order of chance, always the same: for a file in the order of its
classes, whose first examples are of one.

In a suite: `dataset = { name = "npz", path = "mine.npz" }`.

>>> channels_first(np.zeros((5, 8, 8, 3)), "x").shape
(5, 3, 8, 8)
"""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from robust_nc.checks import check_images, check_labels
from robust_nc.data.base import SPLITS, DatasetInfo, Split, check_split, numbered, shuffled_order
from robust_nc.exceptions import DataError, InputError

_CHANNELS = (1, 3)
_TEST = {"x_test": "images", "y_test": "labels"}  # what else test may be called


@dataclass(frozen=True)
class Npz:
    """A `.npz` file; a relative `path` starts at the working directory."""

    path: str
    shuffle: bool = False

    def info(self, root: Path) -> DatasetInfo:
        """Describe the data set from its arrays, which must fit together; `root` is not used."""
        labels = {split: self._labels(split) for split in SPLITS}
        sizes = {split: len(part) for split, part in labels.items()}
        count = 1 + max(int(part.max()) for part in labels.values())
        if count > sum(sizes.values()):
            raise DataError(
                f"{self.path} has a label {count - 1} but {sum(sizes.values())} examples in all; "
                "labels must be class numbers from 0 on"
            )
        shapes = {split: tuple(self._images(split).shape[1:]) for split in SPLITS}
        if shapes["train"] != shapes["test"]:
            raise DataError(
                f"images of {self.path} must have one shape (C, H, W): "
                f"x_train has {shapes['train']}, x_test {shapes['test']}"
            )
        channels, height, width = shapes["test"]
        names = tuple(str(index) for index in range(count))
        return DatasetInfo("npz", count, (channels, height, width), names, sizes)

    def read(self, split: str, root: Path) -> Split:
        """Read a split as it is stored: bytes, or float32 in [0, 1]; `root` is not used."""
        check_split(split)
        images, labels = self._images(split), self._labels(split)
        labels = check_labels(labels, len(images), what=f"y_{split}")
        if not self.shuffle:
            return numbered(images, labels)
        order = shuffled_order(len(labels), split)
        return numbered(images[order], labels[order])

    def splits(self) -> tuple[str, ...]:
        """Name the splits that are there."""
        with self._archive() as archive:
            return tuple(split for split in SPLITS if _key(archive, f"x_{split}") in archive)

    def _images(self, split: str) -> Tensor:
        what = f"x_{split} of {self.path}"
        array = channels_first(self._array(f"x_{split}"), what)
        if array.dtype == np.uint8:
            return torch.from_numpy(np.ascontiguousarray(array))
        return check_images(array, what=what)

    def _labels(self, split: str) -> Tensor:
        array = self._array(f"y_{split}")
        return check_labels(array, len(array), what=f"y_{split} of {self.path}")

    def _array(self, key: str) -> np.ndarray:
        with self._archive() as archive:
            if _key(archive, key) not in archive:
                raise DataError(
                    f"{self.path} has no {key}; x_train, y_train, x_test and y_test are needed, "
                    f"found {', '.join(archive) or 'nothing'}"
                )
            array: np.ndarray = archive[_key(archive, key)]
        if array.ndim == 0 or len(array) == 0:
            raise DataError(f"{key} of {self.path} is empty")
        return array

    @contextlib.contextmanager
    def _archive(self) -> Iterator[NpzFile]:
        """Open the file; what is wrong with it, then or while it is read, becomes a `DataError`."""
        path = Path(self.path).expanduser()
        try:
            with path.open("rb") as file:
                archive = np.load(file, allow_pickle=False)
                if isinstance(archive, np.ndarray):
                    raise DataError(f"{path} is a single array; save several with numpy.savez")
                yield archive
        except FileNotFoundError:
            raise DataError(f"npz file {path} is not there") from None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path} cannot be read without unpickling: {error}") from None


def _key(archive: NpzFile, key: str) -> str:
    """Return what an array is called in this file."""
    return key if set(_TEST) & set(archive.files) else _TEST.get(key, key)


def channels_first(array: np.ndarray, what: str) -> np.ndarray:
    """Return images as `(N, C, H, W)`, or raise `InputError` where the channel axis is unclear."""
    if array.ndim == 3:
        return array[:, None]
    if array.ndim != 4:
        raise InputError(f"{what} must have 3 or 4 axes, found the shape {array.shape}")
    before, after = array.shape[1] in _CHANNELS, array.shape[3] in _CHANNELS
    if before == after:
        why = "both axes 1 and 3 could be" if before else "neither axis 1 nor 3 is"
        raise InputError(f"{what} has the shape {array.shape}: {why} the channels (size 1 or 3)")
    return array if before else array.transpose(0, 3, 1, 2)

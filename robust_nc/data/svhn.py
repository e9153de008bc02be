"""SVHN (Netzer et al., 2011): 99,289 colour images of house numbers, cropped, 32 x 32 pixels.

Read from the two official MATLAB files `train_32x32.mat` and `test_32x32.mat`, in `<root>/svhn` or
where torchvision leaves them, `<root>` itself. The files call the digit 0 class 10; here it is 0.
The 531,131 easier images of `extra` are not read.

>>> Svhn().info(Path()).sizes
{'train': 73257, 'test': 26032}
"""

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from robust_nc.data.base import (
    DatasetInfo,
    Source,
    Split,
    check_split,
    content_of,
    md5_of,
    numbered,
    reading,
)
from robust_nc.data.fetch import download
from robust_nc.exceptions import DataError

_OFFICIAL = "http://ufldl.stanford.edu/housenumbers"
_SHAPE = (32, 32, 3)
_UNREADABLE = (ValueError, TypeError, KeyError, NotImplementedError, OSError, zlib.error)


class MatFile(NamedTuple):
    """A MATLAB file of images: its name, how many they are, its MD5."""

    name: str
    rows: int
    md5: str


@dataclass(frozen=True)
class Svhn:
    """The digits 0 to 9, `(3, 32, 32)`; 73,257 train and 26,032 test."""

    TABLE: ClassVar[dict[str, MatFile]] = {
        "train": MatFile("train_32x32.mat", 73_257, "e26dedcc434d2e4c54c9b2d4a06d8373"),
        "test": MatFile("test_32x32.mat", 26_032, "eb5a983be6a315427106f1b164d9cef3"),
    }

    def info(self, root: Path) -> DatasetInfo:
        """Describe the data set."""
        sizes = {split: file.rows for split, file in self.TABLE.items()}
        return DatasetInfo("svhn", 10, (3, 32, 32), tuple("0123456789"), sizes)

    def read(self, split: str, root: Path) -> Split:
        """Read a split as bytes; raises `DataError` where its file is missing or damaged."""
        check_split(split)
        file, folder = self.TABLE[split], self._folder(root)
        with reading("svhn", [folder / file.name], "the official .mat files"):
            return read_mat(folder / file.name, file)

    def files(self, root: Path) -> tuple[Path, ...]:
        """Return the two files, there or not."""
        return tuple(self._folder(root) / file.name for file in self.TABLE.values())

    def verify(self, folder: Path) -> tuple[Path, ...]:
        """Return the two files in `folder`, or raise `DataError`."""
        for file in self.TABLE.values():
            read_mat(folder / file.name, file)
        return tuple(folder / file.name for file in self.TABLE.values())

    def sources(self) -> tuple[Source, ...]:
        """Return the official place."""
        return (Source(f"the official place, {_OFFICIAL}", self._from_official),)

    def _folder(self, root: Path) -> Path:
        """Return the first folder with both files, the first where there is none."""
        names = [file.name for file in self.TABLE.values()]
        folders = (root / "svhn", root)
        whole = (one for one in folders if all((one / name).is_file() for name in names))
        return next(whole, folders[0])

    def _from_official(self, work: Path) -> Path:
        for file in self.TABLE.values():
            download(f"{_OFFICIAL}/{file.name}", work / file.name)
        return work


def read_mat(path: Path, file: MatFile) -> Split:
    """Read a MATLAB file of images `X` (32, 32, 3, N) and labels `y` (N, 1) in 1..10.

    Raises `DataError` for another MD5, other arrays, or another number of images.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    content = content_of(path)
    if md5_of(content) != file.md5:
        raise DataError(f"{path} is damaged: its MD5 is not {file.md5}")
    try:
        arrays = loadmat(io.BytesIO(content), variable_names=["X", "y"])
        images, labels = arrays["X"], arrays["y"].reshape(-1)
    except (*_UNREADABLE, MatReadError) as error:
        raise DataError(f"{path} cannot be read as images X and labels y: {error}") from None
    found = (images.shape, images.dtype, labels.shape)
    if found != ((*_SHAPE, file.rows), np.uint8, (file.rows,)):
        raise DataError(f"{path} holds {found}, not {file.rows} images {_SHAPE} of bytes")
    if not ((labels >= 1) & (labels <= 10)).all():
        raise DataError(f"{path} has labels beyond 1..10")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
    return numbered(pixels, torch.from_numpy(labels.astype(np.int64) % 10))

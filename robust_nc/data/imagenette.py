"""ImageNette (Howard, 2019): ten classes of ImageNet, 13,394 colour photographs.

Read from the official folder of images whose shorter side has 160 pixels, `imagenette2-160/train`
and `/val` with a folder for each class, in `<root>`. Images are made squares of `size` pixels as in
`data.folder`, whose official order it has too.

>>> ImageNette().info(Path()).class_names[:3]
('tench', 'English springer', 'cassette player')
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from robust_nc.data.base import DatasetInfo, Source, Split, check_split, md5_of
from robust_nc.data.fetch import download, unpack_folder
from robust_nc.data.folder import Folder
from robust_nc.exceptions import ConfigError, DataError

_OFFICIAL = "https://s3.amazonaws.com/fast-ai-imageclas"
_FOLDER = "imagenette2-160"
_FOLDERS = {"train": "train", "test": "val"}
_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


@dataclass(frozen=True)
class ImageNette:
    """Ten classes, `(3, size, size)`; 9,469 train and 3,925 test."""

    size: int = 64

    ARCHIVE_MD5: ClassVar[str] = "e793b78cc4c9e9a4ccc0c1155377a412"
    SIZES: ClassVar[dict[str, int]] = {"train": 9_469, "test": 3_925}

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"imagenette: size must be at least 1 pixel, found {self.size}")

    def info(self, root: Path) -> DatasetInfo:
        """Describe the data set."""
        shape = (3, self.size, self.size)
        return DatasetInfo("imagenette", 10, shape, tuple(_CLASSES.values()), dict(self.SIZES))

    def labels(self, split: str, root: Path) -> Tensor:
        """Return the labels of a split from its file names."""
        return self._images(split, root / _FOLDER).labels(split, root)

    def read(self, split: str, root: Path) -> Split:
        """Read a split as bytes; raises `DataError` where images are missing or damaged."""
        return self._images(split, root / _FOLDER).read(split, root)

    def read_at(self, split: str, root: Path, ids: Tensor) -> Split:
        """Read these examples and no others."""
        return self._images(split, root / _FOLDER).read_at(split, root, ids)

    def files(self, root: Path) -> tuple[Path, ...]:
        """Return the folders of train and test, there or not."""
        return tuple(root / _FOLDER / name for name in _FOLDERS.values())

    def verify(self, folder: Path) -> tuple[Path, ...]:
        """Return the folders in `folder` if all files are there, or raise `DataError`."""
        for split in _FOLDERS:
            self._images(split, folder)
        return tuple(folder / name for name in _FOLDERS.values())

    def sources(self) -> tuple[Source, ...]:
        """Return the official place."""
        return (Source(f"the official place, {_OFFICIAL}", self._from_official),)

    def _images(self, split: str, home: Path) -> Folder:
        """Return the folder of images, whose classes and number are checked."""
        check_split(split)
        found = Folder(path=str(home), size=self.size)
        remedy = f"get it with `robust-nc data fetch imagenette`, or put {_FOLDER}/ there"
        if not (home / _FOLDERS[split]).is_dir():
            raise DataError(f"imagenette is not there: no {home / _FOLDERS[split]}; {remedy}")
        listed = found.listing(split)
        if listed.classes != tuple(_CLASSES) or len(listed.paths) != self.SIZES[split]:
            raise DataError(
                f"{home / _FOLDERS[split]} has {len(listed.paths):,} images of "
                f"{len(listed.classes)} classes, not {self.SIZES[split]:,} of 10; {remedy}"
            )
        return found

    def _from_official(self, work: Path) -> Path:
        archive = download(f"{_OFFICIAL}/{_FOLDER}.tgz", work / f"{_FOLDER}.tgz")
        found = md5_of(archive.read_bytes())
        if found != self.ARCHIVE_MD5:
            raise DataError(f"{archive.name} has the MD5 {found}, not {self.ARCHIVE_MD5}")
        return unpack_folder(archive, work) / _FOLDER

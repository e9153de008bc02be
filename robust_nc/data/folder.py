"""Images of your own (or ImageNette), one folder per class.

`path/train/<class>/*.png` and `path/test/<class>/*.png` (or `val`); PNG and JPEG. Each image is
read as RGB, resized so that its shorter side is `size`, and cut to the square in its middle. The
official order goes round the classes (sorted by name) and takes the next image (sorted by name) of
each, so that any first examples are nearly balanced.

In a suite: `dataset = { name = "folder", path = "imagenette2-160", size = 64 }`.

>>> try:
...     Folder(path="no/such/folder").read("test", Path())
... except DataError as error:
...     print(error)
folder no/such/folder has neither test/ nor val/; put one folder per class of images in it
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robust_nc.data.base import DatasetInfo, Split, check_split, numbered
from robust_nc.exceptions import ConfigError, DataError

_ENDINGS = (".jpeg", ".jpg", ".png")
_NAMES = {"train": ("train",), "test": ("test", "val")}


class _Listing(NamedTuple):
    classes: tuple[str, ...]
    paths: list[Path]
    labels: list[int]


@dataclass(frozen=True)
class Folder:
    """A folder of images; a relative `path` starts at the working directory."""

    path: str
    size: int = 32

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"folder: size must be at least 1 pixel, found {self.size}")

    def info(self, root: Path) -> DatasetInfo:
        """Describe the data set from its file names; `root` is not used."""
        listings = {split: self._list(split) for split in _NAMES}
        sizes = {split: len(listing.paths) for split, listing in listings.items()}
        classes = listings["train"].classes
        odd = sorted(set(classes) ^ set(listings["test"].classes))
        if odd:
            raise DataError(
                f"folder {self.path}: train and test need the same classes; only one has "
                f"{', '.join(odd)}"
            )
        return DatasetInfo("folder", len(classes), (3, self.size, self.size), classes, sizes)

    def read(self, split: str, root: Path) -> Split:
        """Read a split as bytes; raises `DataError` that names a broken image or empty class."""
        check_split(split)
        listing = self._list(split)
        images = torch.stack([read_image(path, self.size) for path in listing.paths])
        return numbered(images, torch.tensor(listing.labels))

    def _list(self, split: str) -> _Listing:
        base = Path(self.path).expanduser()
        homes = [base / name for name in _NAMES[split] if (base / name).is_dir()]
        if not homes:
            wanted = " nor ".join(f"{name}/" for name in _NAMES[split])
            lacks = f"neither {wanted}" if len(_NAMES[split]) > 1 else f"no {wanted}"
            raise DataError(
                f"folder {self.path} has {lacks}; put one folder per class of images in it"
            )
        return list_images(homes[0])


def list_images(home: Path) -> _Listing:
    """List the images under `home/<class>/`, going round the classes."""
    folders = sorted(path for path in home.iterdir() if path.is_dir() and path.name[0] != ".")
    if len(folders) < 2:
        raise DataError(f"{home} needs at least two folders, one per class; found {len(folders)}")
    ranked: list[tuple[int, int, Path]] = []
    for label, folder in enumerate(folders):
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
        if not images:
            raise DataError(f"class {folder.name!r} has no {', '.join(_ENDINGS)} file in {folder}")
        ranked += [(rank, label, path) for rank, path in enumerate(images)]
    ranked.sort()
    classes = tuple(folder.name for folder in folders)
    return _Listing(classes, [path for *_, path in ranked], [label for _, label, _ in ranked])


def read_image(path: Path, size: int) -> Tensor:
    """Read one image as bytes `(3, size, size)`: shorter side resized, then the middle cut out."""
    try:
        with Image.open(path) as image:
            # A palette may hold transparency, which a direct conversion to RGB warns of.
            plain = image.convert("RGBA") if image.mode == "P" else image
            scale = size / min(plain.size)
            fitted = plain.convert("RGB").resize(
                (max(size, round(plain.width * scale)), max(size, round(plain.height * scale))),
                Image.Resampling.BILINEAR,
            )
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from None
    left, top = (fitted.width - size) // 2, (fitted.height - size) // 2
    pixels = np.asarray(fitted.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

"""Images of your own, one folder per class.

`path/train/<class>/*.png` and `path/test/<class>/*.png` (or `val`), in PNG, JPEG, WebP, BMP, TIFF,
PPM or GIF (its first frame). Each image is read as RGB, resized so that its shorter side is `size`,
and cut to the square in its middle. Grey images of 16 bits keep their values; of 16-bit colour,
Pillow gives the upper 8 bits. The official order goes round the classes (sorted by name) and takes
the next image (sorted by name) of each, so that any first examples are nearly balanced; `shuffle`
puts it into an order of chance, always the same. Files are listed first, and only the images that
are asked for are read.

In a suite: `dataset = { name = "folder", path = "my/images", size = 64 }`.

>>> try:
...     Folder(path="no/such/folder").read("test", Path())
... except DataError as error:
...     print(error)
folder no/such/folder has neither test/ nor val/; put one folder per class of images in it
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robust_nc.data.base import DatasetInfo, Split, check_split, shuffled_order
from robust_nc.data.load import to_unit
from robust_nc.exceptions import ConfigError, DataError

_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_NAMES = {"train": ("train",), "test": ("test", "val")}
_DEEPEST = 65_535
_TOLD = 3  # files that are left out, by name


class Listing(NamedTuple):
    """The images of a split: classes by label, files with labels `(N,)`, and what is no image."""

    classes: tuple[str, ...]
    paths: list[Path]
    labels: Tensor
    left_out: list[Path]


@dataclass(frozen=True)
class Folder:
    """A folder of images; a relative `path` starts at the working directory."""

    path: str
    size: int = 32
    shuffle: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"folder: size must be at least 1 pixel, found {self.size}")

    def info(self, root: Path) -> DatasetInfo:
        """Describe the data set from its file names; `root` is not used."""
        listings = {split: self.listing(split) for split in _NAMES}
        sizes = {split: len(listing.paths) for split, listing in listings.items()}
        classes = listings["train"].classes
        odd = sorted(set(classes) ^ set(listings["test"].classes))
        if odd:
            raise DataError(
                f"folder {self.path}: train and test need the same classes; only one has "
                f"{', '.join(odd)}"
            )
        return DatasetInfo("folder", len(classes), (3, self.size, self.size), classes, sizes)

    def labels(self, split: str, root: Path) -> Tensor:
        """Return the labels of a split from its file names; `root` is not used."""
        return self.listing(split).labels

    def read(self, split: str, root: Path) -> Split:
        """Read a split as bytes; raises `DataError` that names a broken image or empty class."""
        listing = self.listing(split)
        return _read(listing, torch.arange(len(listing.paths)), self.size)

    def read_at(self, split: str, root: Path, ids: Tensor) -> Split:
        """Read these examples and no others: as bytes, or float32 where one has 16 bits."""
        return _read(self.listing(split), ids, self.size)

    def has(self, split: str) -> bool:
        """Whether a split is there."""
        return self._home(split) is not None

    def listing(self, split: str) -> Listing:
        """List a split in the official order, reading no image."""
        check_split(split)
        home = self._home(split)
        if home is None:
            wanted = " nor ".join(f"{name}/" for name in _NAMES[split])
            lacks = f"neither {wanted}" if len(_NAMES[split]) > 1 else f"no {wanted}"
            raise DataError(
                f"folder {self.path} has {lacks}; put one folder per class of images in it"
            )
        found = list_images(home)
        if not self.shuffle:
            return found
        order = shuffled_order(len(found.paths), split)
        paths = [found.paths[place] for place in order.tolist()]
        return found._replace(paths=paths, labels=found.labels[order])

    def _home(self, split: str) -> Path | None:
        base = Path(self.path).expanduser()
        return next((base / name for name in _NAMES[split] if (base / name).is_dir()), None)


def list_images(home: Path) -> Listing:
    """List the images under `home/<class>/`, going round the classes."""
    entries = {path: path.is_dir() for path in sorted(home.iterdir())}
    folders = [path for path, inner in entries.items() if inner and path.name[0] != "."]
    if len(folders) < 2:
        raise DataError(f"{home} needs at least two folders, one per class; found {len(folders)}")
    left_out = [path for path, inner in entries.items() if not inner]
    ranked: list[tuple[int, int, Path]] = []
    for label, folder in enumerate(folders):
        files = sorted(folder.iterdir())
        images = [path for path in files if _is_image(path)]
        if not images:
            raise DataError(f"class {folder.name!r} has no {', '.join(_ENDINGS)} file in {folder}")
        left_out += [path for path in files if not _is_image(path)]
        ranked += [(rank, label, path) for rank, path in enumerate(images)]
    ranked.sort()
    labels = torch.tensor([label for _, label, _ in ranked])
    classes = tuple(folder.name for folder in folders)
    return Listing(classes, [path for *_, path in ranked], labels, left_out)


def told_left_out(paths: Sequence[Path]) -> str:
    """Count and name files that are no images.

    >>> told_left_out([Path("ant/a.txt"), Path("b.pdf")])
    'left out 2 files: a.txt, b.pdf'
    """
    names = [path.name for path in paths[:_TOLD]] + ["..."] * (len(paths) > _TOLD)
    return f"left out {len(paths):,} file{'s' * (len(paths) != 1)}: {', '.join(names)}"


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _ENDINGS and path.name[0] != "."


def _read(listing: Listing, ids: Tensor, size: int) -> Split:
    """Read images into the memory that all of them take; as float32 where one has 16 bits."""
    images = torch.empty(len(ids), 3, size, size, dtype=torch.uint8)
    for place, row in enumerate(ids.tolist()):
        image = read_image(listing.paths[row], size)
        if image.is_floating_point():
            images = to_unit(images)
        images[place] = to_unit(image) if images.is_floating_point() else image
    return Split(images, listing.labels[ids], ids)


def read_image(path: Path, size: int) -> Tensor:
    """Read one image `(3, size, size)`: shorter side resized, then the middle cut out.

    Bytes, or float32 in [0, 1] of a grey image of 16 bits.
    """
    try:
        with Image.open(path) as image:
            deep = _is_deep(image, path)
            # A palette may hold transparency, which a direct conversion to RGB warns of.
            plain = image.convert("RGBA") if image.mode == "P" else image
            scale = size / min(plain.size)
            fitted = plain.convert("F" if deep else "RGB").resize(
                (max(size, round(plain.width * scale)), max(size, round(plain.height * scale))),
                Image.Resampling.BILINEAR,
            )
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from None
    left, top = (fitted.width - size) // 2, (fitted.height - size) // 2
    pixels = np.asarray(fitted.crop((left, top, left + size, top + size)))
    if deep:
        grey = torch.from_numpy(pixels.copy()).div(_DEEPEST).clamp(0, 1)
        return grey.expand(3, size, size)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _is_deep(image: Image.Image, path: Path) -> bool:
    """Whether an image has 16 bits of grey; one of 32 is refused, since its range is not known."""
    known = image.format in ("PNG", "PPM")  # which Pillow may open as 32 bits, and have at most 16
    if image.mode in ("I", "F") and not known:
        raise DataError(f"{path} has 32 bits a pixel, of no known range; save it with 8 or 16 bits")
    return image.mode.startswith("I")

"""MNIST (LeCun, Cortes, Burges, 1998): 70,000 grey images of handwritten digits, 28 x 28 pixels.

Read from the four official IDX files, plain or compressed with gzip, in `<root>/mnist` or where
torchvision leaves them, `<root>/MNIST/raw`. Checksums are those of the uncompressed files.

>>> from pathlib import Path
>>> Mnist().info(Path()).sizes
{'train': 60000, 'test': 10000}
"""

from functools import partial
from typing import ClassVar

from robust_nc.data.base import Source
from robust_nc.data.fashion_mnist import FashionMnist, IdxFile

_OFFICIAL = "http://yann.lecun.com/exdb/mnist"
_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"


class Mnist(FashionMnist):
    """Digits, `(1, 28, 28)`; 60,000 train and 10,000 test."""

    NAME: ClassVar[str] = "mnist"
    CLASSES: ClassVar[tuple[str, ...]] = tuple("0123456789")
    FOLDERS: ClassVar[tuple[str, ...]] = ("mnist", "MNIST/raw")
    TABLE: ClassVar[dict[str, tuple[IdxFile, IdxFile]]] = {
        "train": (
            IdxFile(
                "train-images-idx3-ubyte", (60_000, 28, 28), "6bbc9ace898e44ae57da46a324031adb"
            ),
            IdxFile("train-labels-idx1-ubyte", (60_000,), "a25bea736e30d166cdddb491f175f624"),
        ),
        "test": (
            IdxFile("t10k-images-idx3-ubyte", (10_000, 28, 28), "2646ac647ad5339dbf082846283269ea"),
            IdxFile("t10k-labels-idx1-ubyte", (10_000,), "27ae3e4e09519cfbb04c329615203637"),
        ),
    }

    def sources(self) -> tuple[Source, ...]:
        """Return the official place, then the mirror that torchvision takes."""
        return (
            Source(f"the official place, {_OFFICIAL}", partial(self._download, _OFFICIAL)),
            Source(f"torchvision's mirror, {_MIRROR}", partial(self._download, _MIRROR)),
        )

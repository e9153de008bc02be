"""Handwritten digits, shipped with scikit-learn: 1,797 real images of 8 x 8 pixels, no download.

They are the test part of UCI's "Optical Recognition of Handwritten Digits"; pixels are counts
0..16, divided by 16. There is no official split. Ours is fixed: in the order of the file, images 0,
5, 10, ... are test (360) and the others train (1,437), so that every writer is in both.

>>> from pathlib import Path
>>> Digits().read("test", Path()).images.shape
torch.Size([360, 1, 8, 8])
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from robust_nc.data.base import DatasetInfo, Split, check_split, numbered

_TRAIN = 1_437
_TEST = 360


@dataclass(frozen=True)
class Digits:
    """The embedded data set: `(1, 8, 8)` images of the digits 0 to 9."""

    def info(self, root: Path) -> DatasetInfo:
        """Describe the data set; `root` is not used."""
        names = tuple(str(digit) for digit in range(10))
        return DatasetInfo("digits", 10, (1, 8, 8), names, {"train": _TRAIN, "test": _TEST})

    def read(self, split: str, root: Path) -> Split:
        """Read four of five images ("train") or every fifth ("test"); `root` is not used."""
        from sklearn.datasets import load_digits

        check_split(split)
        pixels, labels = load_digits(return_X_y=True)
        every_fifth = np.arange(len(labels)) % 5 == 0
        part = every_fifth if split == "test" else ~every_fifth
        images = torch.from_numpy(pixels[part].astype(np.float32)).view(-1, 1, 8, 8) / 16
        return numbered(images, torch.from_numpy(labels[part]))

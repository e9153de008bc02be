"""Gaussian clouds around the vertices of a simplex, as images: for tests and for golden numbers.

The class means are a simplex equiangular tight frame in pixel space, around grey, scaled so that
they stay within 0.5 +- 0.25; pixels get independent Gaussian noise and are clipped to [0, 1].

>>> from pathlib import Path
>>> split = Synthetic(num_classes=4, image_shape=(1, 4, 4), test_size=8).read("test", Path())
>>> split.labels.tolist()
[0, 1, 2, 3, 0, 1, 2, 3]
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robust_nc.data.base import DatasetInfo, Split, check_split, numbered
from robust_nc.exceptions import ConfigError
from robust_nc.runtime.torch_state import generator

_REACH = 0.25


@dataclass(frozen=True)
class Synthetic:
    """`noise` is the standard deviation per pixel; equal options give equal images to the bit."""

    num_classes: int = 10
    image_shape: tuple[int, int, int] = (1, 8, 8)
    train_size: int = 1_000
    test_size: int = 500
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ConfigError(f"synthetic: num_classes must be at least 2: {self.num_classes}")
        if min(self.image_shape) < 1 or math.prod(self.image_shape) < self.num_classes:
            raise ConfigError(
                f"synthetic: image_shape {self.image_shape} needs at least as many pixels as "
                f"classes ({self.num_classes})"
            )
        if min(self.train_size, self.test_size) < 1:
            raise ConfigError(
                "synthetic: train_size and test_size must be at least 1: "
                f"{self.train_size}, {self.test_size}"
            )
        if not 0 <= self.noise < math.inf:
            raise ConfigError(f"synthetic: noise must be finite and at least 0: {self.noise}")

    def info(self, root: Path) -> DatasetInfo:
        """Describe the data set; `root` is not used."""
        names = tuple(str(index) for index in range(self.num_classes))
        sizes = {"train": self.train_size, "test": self.test_size}
        return DatasetInfo("synthetic", self.num_classes, self.image_shape, names, sizes)

    def read(self, split: str, root: Path) -> Split:
        """Draw a split; labels go round the classes, so any first examples are balanced."""
        check_split(split)
        size = self.train_size if split == "train" else self.test_size
        labels = torch.arange(size) % self.num_classes
        draws = generator(self.seed, "synthetic", split)
        means = self.means()[labels]
        noise = torch.randn(means.shape, generator=draws, dtype=torch.float64)
        images = (means + self.noise * noise).clamp(0, 1).to(torch.float32)
        return numbered(images.view(size, *self.image_shape), labels)

    def means(self) -> Tensor:
        """Class means before clipping, float64 `(K, D)`: a simplex ETF around 0.5."""
        draws = generator(self.seed, "synthetic", "means")
        shape = (math.prod(self.image_shape), self.num_classes)
        frame, upper = torch.linalg.qr(torch.randn(shape, generator=draws, dtype=torch.float64))
        # QR of a Gaussian is Haar only once the signs of the diagonal are fixed.
        rows = (frame * upper.diagonal().sign()).T
        centred = rows - rows.mean(0)
        return torch.add(0.5, centred, alpha=_REACH / float(centred.abs().max()))

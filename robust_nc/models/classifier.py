"""The classifier: normalise -> backbone -> head, with named taps.

>>> import torch
>>> from robust_nc.config import ModelConfig
>>> from robust_nc.models.build import build_model
>>> model = build_model(ModelConfig(image_shape=(1, 8, 8)))
>>> read = model.tapped(torch.rand(2, 1, 8, 8), taps=("block2", "penultimate"))
>>> {name: tuple(values.shape) for name, values in read.features.items()}
{'block2': (2, 32), 'penultimate': (2, 64)}
>>> read.logits.shape
torch.Size([2, 10])
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from robust_nc.exceptions import InputError, unknown_name
from robust_nc.models.backbones import Backbone, ImageShape
from robust_nc.models.heads import Head
from robust_nc.models.taps import Tapped, check_feature, pool_features


class Normalise(nn.Module):
    """Subtract `mean` and divide by `std`, one value per channel, in units of pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images."""
        return (images - self.mean) / self.std


class Classifier(nn.Module):
    """Images `(N, C, H, W)` in [0, 1] to logits `(N, K)`; normalisation is part of it.

    `taps` names what can be measured, in depth order, "penultimate" last: the features that the
    head reads, before any normalisation of their length. Raises `InputError` for images that the
    backbone cannot take.
    """

    def __init__(self, normalise: nn.Module, backbone: Backbone, head: Head) -> None:
        super().__init__()
        if head.dim != backbone.dim:
            raise InputError(
                f"the head reads {head.dim} features, but the backbone gives {backbone.dim}; "
                f"build the head with dim={backbone.dim}"
            )
        self.normalise = normalise
        self.backbone = backbone
        self.head = head

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the measurable layers, in depth order."""
        return self.backbone.tap_names

    @property
    def num_classes(self) -> int:
        """K."""
        return self.head.num_classes

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W) that the model was built for."""
        return self.backbone.image_shape

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, K)`."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return the features `(N, D)` that the head reads."""
        self._check(images)
        features: Tensor = self.backbone(self.normalise(images))
        return features

    def tapped(
        self, images: Tensor, *, taps: Collection[str] | None = None, feature: str = "gap"
    ) -> Tapped:
        """Return logits and the features `(N, D)` of some taps (None: all), from one pass.

        `feature` "gap" averages over space, "flatten" keeps all values. Features are float32, also
        under autocast, in depth order, and keep their graph. Logits equal those of `forward`.
        """
        self._check(images)
        check_feature(feature)
        wanted = self.taps if taps is None else taps
        for name in wanted:
            if name not in self.taps:
                raise unknown_name("tap", name, self.taps)
        features = {}
        output = images
        for name, output in self.backbone.blocks(self.normalise(images)):
            if name in wanted:
                features[name] = pool_features(output, feature)
        return Tapped(self.head(output), features)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or not images.is_floating_point():
            raise InputError(
                "images must be float32 of shape (N, C, H, W) in [0, 1], "
                f"found {images.dtype} of shape {tuple(images.shape)}"
            )
        channels, height, width = images.shape[1:]
        self.backbone.check_shape((channels, height, width))

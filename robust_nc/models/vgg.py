"""VGG-11 with batch norm for images of 32 x 32 and more.

With 10 classes and a linear head it has 9,231,114 parameters:

>>> from robust_nc.config import Component, ModelConfig
>>> from robust_nc.models.build import build_model
>>> model = build_model(ModelConfig(backbone=Component(name="vgg11_bn")))
>>> sum(parameter.numel() for parameter in model.parameters())
9231114
"""

from collections.abc import Iterator

from torch import Tensor, nn

from robust_nc.models.backbones import PENULTIMATE, Backbone, ImageShape, initialise
from robust_nc.types import Images

_WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
_POOLED = (True, True, False, True, False, True, False, True)


class Vgg11Bn(Backbone):
    """Eight 3 x 3 convolutions, configuration A (Simonyan, Zisserman, ICLR 2015), on 512 features.

    Each has batch norm and ReLU, five of them are followed by 2 x 2 max pooling; one linear head
    takes the place of the three fully connected layers. Taps: conv1 to conv8 (pooled where the
    stage pools), penultimate (conv8 averaged over space, which at 32 x 32 is one position).
    """

    name = "vgg11_bn"
    min_side = 32

    def __init__(self, image_shape: ImageShape) -> None:
        names = tuple(f"conv{index}" for index in range(1, 9))
        super().__init__(image_shape, dim=_WIDTHS[-1], tap_names=(*names, PENULTIMATE))
        inputs = (image_shape[0], *_WIDTHS)
        for name, before, width, pooled in zip(names, inputs, _WIDTHS, _POOLED, strict=False):
            self.add_module(name, _stage(before, width, pooled=pooled))
        initialise(self)

    def blocks(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        """Yield the eight stages, `(N, width, h, w)`, and the features `(N, 512)`."""
        output = images
        for name in self.tap_names[:-1]:
            output = self.get_submodule(name)(output)
            yield name, output
        yield PENULTIMATE, output.mean((2, 3))


def _stage(inputs: int, width: int, *, pooled: bool) -> nn.Sequential:
    # The convolutions keep the bias that batch norm makes idle, as the published networks do.
    layers = [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pooled else []))

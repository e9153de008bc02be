"""PreActResNet-18 for small images, as adversarial training on CIFAR uses it.

With 10 classes and a linear head it has 11,172,170 parameters:

>>> from robust_nc.config import Component, ModelConfig
>>> from robust_nc.models.build import build_model
>>> model = build_model(ModelConfig(backbone=Component(name="preact_resnet18")))
>>> sum(parameter.numel() for parameter in model.parameters())
11172170
"""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.models.backbones import (
    PENULTIMATE,
    Backbone,
    ImageShape,
    PreActBlock,
    initialise,
)
from robust_nc.types import Images

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # (width, stride of the first block)


class PreActResNet18(Backbone):
    """Residual network with batch norm and ReLU before each convolution (He et al., ECCV 2016).

    A 3 x 3 stem at stride 1, four stages of two blocks, batch norm, ReLU, average over space. The
    first block of a stage normalises before its shortcut; shortcuts have no batch norm. Taps: stem,
    layer1.0 to layer4.1 (sums, before the next activation), penultimate (512 features).
    """

    name = "preact_resnet18"
    min_side = 8

    def __init__(self, image_shape: ImageShape) -> None:
        names = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
        super().__init__(image_shape, dim=512, tap_names=("stem", *names, PENULTIMATE))
        self.stem = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
        inputs = 64
        for stage, (width, stride) in enumerate(_STAGES, start=1):
            pair = nn.Sequential(
                PreActBlock(inputs, width, stride=stride), PreActBlock(width, width)
            )
            self.add_module(f"layer{stage}", pair)
            inputs = width
        self.norm = nn.BatchNorm2d(512)
        initialise(self)

    def blocks(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        """Yield stem, the eight blocks, `(N, width, h, w)`, and the features `(N, 512)`."""
        output = images
        for name in self.tap_names[:-1]:
            output = self.get_submodule(name)(output)
            yield name, output
        yield PENULTIMATE, F.relu(self.norm(output)).mean((2, 3))

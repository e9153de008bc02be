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

from robust_nc.exceptions import InputError
from robust_nc.models.backbones import (
    PENULTIMATE,
    Backbone,
    ImageShape,
    PreActBlock,
    at_least,
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


_STEM = 16
_GROUPS = ((16, 1), (32, 2), (64, 2))  # (width before widening, stride of the first block)


class WideResNet(Backbone):
    """WRN-depth-widen (Zagoruyko, Komodakis, BMVC 2016), by default WRN-28-10.

    A 3 x 3 stem of 16 channels, three groups of (depth - 4) / 6 blocks, 16, 32 and 64 times `widen`
    channels wide, batch norm, ReLU, average over space. `dropout` is the probability that a value
    between the two convolutions of a block is dropped in training. With 10 classes and a linear
    head WRN-28-10 has 36,479,194 parameters. Taps: stem, group1.0 to group3.n (sums, before the
    next activation), penultimate (64 `widen` features).
    """

    name = "wide_resnet"
    min_side = 4

    def __init__(
        self,
        image_shape: ImageShape,
        *,
        depth: int = 28,
        widen: int = 10,
        dropout: float = 0.0,
    ) -> None:
        blocks = _blocks_per_group(depth)
        at_least("widen", widen, 1)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, found {dropout}")
        names = [f"group{group}.{block}" for group in range(1, 4) for block in range(blocks)]
        width = _GROUPS[-1][0] * widen
        super().__init__(image_shape, dim=width, tap_names=("stem", *names, PENULTIMATE))
        self.stem = nn.Conv2d(image_shape[0], _STEM, 3, padding=1, bias=False)
        inputs = _STEM
        for group, (base, stride) in enumerate(_GROUPS, start=1):
            members = nn.Sequential()
            for block in range(blocks):
                step = 1 if block else stride
                members.append(PreActBlock(inputs, base * widen, stride=step, dropout=dropout))
                inputs = base * widen
            self.add_module(f"group{group}", members)
        self.norm = nn.BatchNorm2d(width)
        initialise(self)

    def blocks(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        """Yield stem, the blocks, `(N, width, h, w)`, and the features `(N, 64 widen)`."""
        output = images
        for name in self.tap_names[:-1]:
            output = self.get_submodule(name)(output)
            yield name, output
        yield PENULTIMATE, F.relu(self.norm(output)).mean((2, 3))


def _blocks_per_group(depth: int) -> int:
    blocks, rest = divmod(at_least("depth", depth, 10) - 4, 6)
    if rest:
        raise InputError(
            f"depth must be 6 n + 4 (three groups of n blocks), found {depth}; "
            f"choose {depth - rest} or {depth - rest + 6}"
        )
    return blocks

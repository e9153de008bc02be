"""PreActResNet-18 for small images, as adversarial training on CIFAR uses it.

With 10 classes and a linear head it has 11,172,170 parameters:

>>> from robust_nc.config import Component, ModelConfig
>>> from robust_nc.models.build import build_model
>>> model = build_model(ModelConfig(backbone=Component(name="preact_resnet18")))
>>> sum(parameter.numel() for parameter in model.parameters())
11172170
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.exceptions import InputError
from robust_nc.models.backbones import (
    PENULTIMATE,
    ConvolutionalBackbone,
    ImageShape,
    at_least,
    initialise,
)
from robust_nc.types import Images


class _PreActBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))) (He et al., ECCV 2016), of 3 x 3 convolutions.

    Where the shape changes, x is normalised and activated before its shortcut, a 1 x 1 convolution.
    `dropout` drops values between the two convolutions, in train mode.
    """

    def __init__(self, inputs: int, width: int, *, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        projects = stride != 1 or inputs != width
        self.shortcut = nn.Conv2d(inputs, width, 1, stride=stride, bias=False) if projects else None

    def forward(self, images: Images) -> Tensor:
        """Return the sum of the shortcut and the residual."""
        active = F.relu(self.norm1(images), inplace=True)
        shortcut = images if self.shortcut is None else self.shortcut(active)
        hidden = F.relu(self.norm2(self.conv1(active)), inplace=True)
        return torch.add(shortcut, self.conv2(self.dropout(hidden)))


class _PreActNetwork(ConvolutionalBackbone):
    """A 3 x 3 stem at stride 1, groups of blocks, batch norm, ReLU, average over space.

    `groups`: the width and the stride of the first block of each, all of `blocks` blocks; taps are
    the stem and, named after their `group`, the blocks (sums, before the next activation).
    """

    def __init__(
        self,
        image_shape: ImageShape,
        *,
        stem: int,
        group: str,
        groups: tuple[tuple[int, int], ...],
        blocks: int,
        dropout: float = 0.0,
    ) -> None:
        width = groups[-1][0]
        places = range(1, len(groups) + 1)
        names = [f"{group}{place}.{block}" for place in places for block in range(blocks)]
        super().__init__(image_shape, dim=width, tap_names=("stem", *names, PENULTIMATE))
        self.stem = nn.Conv2d(image_shape[0], stem, 3, padding=1, bias=False)
        inputs = stem
        for place, (outputs, stride) in zip(places, groups, strict=True):
            members = nn.Sequential()
            for block in range(blocks):
                step = 1 if block else stride
                members.append(_PreActBlock(inputs, outputs, stride=step, dropout=dropout))
                inputs = outputs
            self.add_module(f"{group}{place}", members)
        self.norm = nn.BatchNorm2d(width)
        initialise(self)

    def last(self, output: Tensor) -> Tensor:
        """Return the last block, normalised and activated."""
        return F.relu(self.norm(output))


class PreActResNet18(_PreActNetwork):
    """Residual network with batch norm and ReLU before each convolution (He et al., ECCV 2016).

    A 3 x 3 stem at stride 1, four stages of two blocks, batch norm, ReLU, average over space. The
    first block of a stage normalises before its shortcut; shortcuts have no batch norm. Taps: stem,
    layer1.0 to layer4.1 (sums, before the next activation), penultimate (512 features).
    """

    name = "preact_resnet18"
    min_side = 8

    def __init__(self, image_shape: ImageShape) -> None:
        groups = ((64, 1), (128, 2), (256, 2), (512, 2))
        super().__init__(image_shape, stem=64, group="layer", groups=groups, blocks=2)


_WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
_POOLED = (True, True, False, True, False, True, False, True)


class Vgg11Bn(ConvolutionalBackbone):
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


def _stage(inputs: int, width: int, *, pooled: bool) -> nn.Sequential:
    # The convolutions keep the bias that batch norm makes idle, as the published networks do.
    layers = [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pooled else []))


class WideResNet(_PreActNetwork):
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
        groups = ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2))
        super().__init__(
            image_shape, stem=16, group="group", groups=groups, blocks=blocks, dropout=dropout
        )


def _blocks_per_group(depth: int) -> int:
    blocks, rest = divmod(at_least("depth", depth, 10) - 4, 6)
    if rest:
        raise InputError(
            f"depth must be 6 n + 4 (three groups of n blocks), found {depth}; "
            f"choose {depth - rest} or {depth - rest + 6}"
        )
    return blocks

"""Backbones: images to features, block by block, so that every depth can be measured.

A backbone yields its block outputs in depth order; the last one is the feature that the head reads:

>>> import torch
>>> backbone = SmallCnn((1, 8, 8), width=16)
>>> backbone.tap_names
('block1', 'block2', 'block3', 'block4', 'penultimate')
>>> backbone(torch.rand(2, 1, 8, 8)).shape
torch.Size([2, 32])
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.exceptions import InputError
from robust_nc.models.taps import PENULTIMATE
from robust_nc.types import Features, Images

ImageShape = tuple[int, int, int]


class Backbone(nn.Module):
    """Base of all backbones: a subclass sets `name` and `min_side`, and writes `blocks`.

    `image_shape` is (C, H, W); `dim` the width of the features; `tap_names` what `blocks` yields,
    in depth order, "penultimate" last. Where `one_size` is set, it takes images of `image_shape`
    only. Raises `InputError` for images that it cannot take.
    """

    name: ClassVar[str]
    min_side: ClassVar[int] = 1
    one_size: ClassVar[bool] = False

    def __init__(self, image_shape: ImageShape, *, dim: int, tap_names: tuple[str, ...]) -> None:
        super().__init__()
        assert tap_names[-1] == PENULTIMATE
        self.image_shape = image_shape
        self.dim = dim
        self.tap_names = tap_names
        self.check_shape(image_shape)

    def blocks(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, output) of each block, lastly ("penultimate", features `(N, dim)`)."""
        raise NotImplementedError

    def forward(self, images: Images) -> Features:
        """Return the features `(N, dim)`; block outputs are let go on the way."""
        features = images
        for _, block in self.blocks(images):
            features = block
        return features

    def check_shape(self, shape: ImageShape) -> None:
        """Refuse images (C, H, W) of another channel count, too small, or not of the one size."""
        channels, height, width = shape
        if self.one_size and shape != self.image_shape:
            raise InputError(
                f"this {self.name} takes images of shape {self.image_shape}, found {shape}; "
                f"build the model with image_shape={shape}"
            )
        if channels != self.image_shape[0]:
            raise InputError(
                f"this {self.name} takes images of {self.image_shape[0]} channel(s), found "
                f"{channels}; build the model with image_shape={shape}"
            )
        if min(height, width) < self.min_side:
            raise InputError(
                f"{self.name} needs images of at least {self.min_side} x {self.min_side}, "
                f"found {height} x {width}; choose "
                f"{SmallCnn.name if min(height, width) >= SmallCnn.min_side else Mlp.name}"
            )


class ConvolutionalBackbone(Backbone):
    """Base of backbones whose blocks are submodules, one after the other, named as their taps.

    The features are the last block averaged over space, after what `last` makes of it.
    """

    def blocks(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        """Yield the blocks, `(N, width, h, w)`, and the features `(N, dim)`."""
        output = images
        for name in self.tap_names[:-1]:
            output = self.get_submodule(name)(output)
            yield name, output
        yield PENULTIMATE, self.last(output).mean((2, 3))

    def last(self, output: Tensor) -> Tensor:
        """Return what is averaged: the last block itself."""
        return output


def initialise(module: nn.Module) -> None:
    """Draw weights after He et al. (ICCV 2015); biases and shifts 0, batch norm scales 1.

    Normal with variance 2 / fan, fan = outputs of a convolution (kernel included), inputs of a
    linear layer. Draws from the global generator, as torch modules do: `build_model` seeds it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def at_least(name: str, value: int, least: int) -> int:
    """Return an option's value, or raise `InputError` where it is too small."""
    if value < least:
        raise InputError(f"{name} must be at least {least}, found {value}")
    return value


class Mlp(Backbone):
    """Fully connected: `depth` times linear, batch norm, ReLU, each `width` wide.

    Taps: the hidden layers; the last one is the penultimate. Takes one image size only.
    """

    name = "mlp"
    one_size = True

    def __init__(
        self,
        image_shape: ImageShape,
        *,
        width: int = 256,
        depth: int = 3,
        batch_norm: bool = True,
    ) -> None:
        at_least("width", width, 1)
        names = [f"hidden{index}" for index in range(1, at_least("depth", depth, 1))]
        super().__init__(image_shape, dim=width, tap_names=(*names, PENULTIMATE))
        channels, height, columns = image_shape
        inputs = [channels * height * columns] + [width] * (depth - 1)
        self.layers = nn.ModuleList(_dense(size, width, batch_norm=batch_norm) for size in inputs)
        initialise(self)

    def blocks(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        """Yield each hidden layer, `(N, width)`."""
        output = images.flatten(1)
        for name, layer in zip(self.tap_names, self.layers, strict=True):
            output = layer(output)
            yield name, output


class SmallCnn(ConvolutionalBackbone):
    """Four 3 x 3 convolutions, each with batch norm and ReLU, for small images on a CPU.

    Widths w, w, 2w, 2w at strides 2, 1, 2, 1: to halve the image at once makes a step twice as fast
    as to halve it later. Taps: block1 to block4, and the penultimate, which is the average of
    block4 over space (2w features).
    """

    name = "small_cnn"
    min_side = 4

    def __init__(self, image_shape: ImageShape, *, width: int = 32) -> None:
        at_least("width", width, 1)
        names = tuple(f"block{index}" for index in range(1, 5))
        super().__init__(image_shape, dim=2 * width, tap_names=(*names, PENULTIMATE))
        self.block1 = _convolution(image_shape[0], width, stride=2)
        self.block2 = _convolution(width, width, stride=1)
        self.block3 = _convolution(width, 2 * width, stride=2)
        self.block4 = _convolution(2 * width, 2 * width, stride=1)
        initialise(self)


def _dense(inputs: int, outputs: int, *, batch_norm: bool) -> nn.Sequential:
    # A shift before batch norm has no effect, so the layer gets none.
    layers: list[nn.Module] = [nn.Linear(inputs, outputs, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm1d(outputs))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def _convolution(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class PreActBlock(nn.Module):
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
                members.append(PreActBlock(inputs, outputs, stride=step, dropout=dropout))
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
        blocks, rest = divmod(at_least("depth", depth, 10) - 4, 6)
        if rest:
            raise InputError(
                f"depth must be 6 n + 4 (three groups of n blocks), found {depth}; "
                f"choose {depth - rest} or {depth - rest + 6}"
            )
        at_least("widen", widen, 1)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, found {dropout}")
        groups = ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2))
        super().__init__(
            image_shape, stem=16, group="group", groups=groups, blocks=blocks, dropout=dropout
        )

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

from torch import Tensor, nn

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
                f"found {height} x {width}; choose {_fitting(min(height, width))}"
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


def _fitting(side: int) -> str:
    return SmallCnn.name if side >= SmallCnn.min_side else Mlp.name


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

"""Wide residual networks, the usual architecture of robust models on CIFAR.

WideResNet-28-10 is `{ name = "wide_resnet" }`; smaller ones are for a CPU:

>>> import torch
>>> backbone = WideResNet((1, 8, 8), depth=10, widen=2)
>>> backbone.tap_names
('stem', 'group1.0', 'group2.0', 'group3.0', 'penultimate')
>>> backbone(torch.rand(2, 1, 8, 8)).shape
torch.Size([2, 128])
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

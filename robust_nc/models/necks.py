"""Necks: layers between the features of a backbone and the head.

>>> import torch
>>> from robust_nc.models.backbones import SmallCnn
>>> backbone = Necked(SmallCnn((1, 8, 8)), Transform(64, 10))
>>> backbone.tap_names
('block1', 'block2', 'block3', 'block4', 'pooled', 'penultimate')
>>> backbone(torch.rand(2, 1, 8, 8)).shape
torch.Size([2, 10])
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn

from robust_nc.models.backbones import Backbone, ImageShape, at_least, initialise
from robust_nc.models.taps import PENULTIMATE
from robust_nc.types import Features, Images

Transformed = Float[Tensor, "n w"]

POOLED = "pooled"


class Neck(nn.Module):
    """Base of all necks: features `(N, dim)` to features `(N, width)`, each row from its own.

    A subclass writes `forward`. A registered one is built with `dim` and, where it takes it,
    `num_classes`.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.dim = at_least("dim", dim, 1)
        self.width = at_least("width", width, 1)

    def forward(self, features: Features) -> Transformed:
        """Return the features `(N, width)` that the head reads."""
        raise NotImplementedError


class Transform(Neck):
    """Transformation layers of the hierarchy-aware frame (Liang, Davis, ICCV 2023).

    Linear to `width` (None: the number of classes), batch norm, then `blocks` residual blocks
    x + f(x), f = linear, batch norm, PReLU, twice. The paper's 1 x 1 convolution before the average
    over space is the linear map after it. No layer but batch norm has a shift, PReLU has a slope
    per feature.
    """

    def __init__(
        self, dim: int, num_classes: int, *, width: int | None = None, blocks: int = 2
    ) -> None:
        super().__init__(dim, num_classes if width is None else width)
        at_least("blocks", blocks, 0)
        self.project = nn.Linear(dim, self.width, bias=False)
        self.norm = nn.BatchNorm1d(self.width)
        self.blocks = nn.Sequential(*(_Block(self.width) for _ in range(blocks)))
        initialise(self)

    def forward(self, features: Features) -> Transformed:
        """Return transformed features `(N, width)`."""
        transformed: Tensor = self.blocks(self.norm(self.project(features)))
        return transformed


class _Block(nn.Module):
    """x + prelu(norm(linear(prelu(norm(linear(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, width, bias=False)
        self.norm1 = nn.BatchNorm1d(width)
        self.slope1 = nn.PReLU(width)
        self.linear2 = nn.Linear(width, width, bias=False)
        self.norm2 = nn.BatchNorm1d(width)
        self.slope2 = nn.PReLU(width)

    def forward(self, features: Features) -> Features:
        """Return the sum of the features and what the block adds to them."""
        hidden = self.slope1(self.norm1(self.linear1(features)))
        total: Tensor = features + self.slope2(self.norm2(self.linear2(hidden)))
        return total


class Necked(Backbone):
    """A backbone with a neck behind it, itself a backbone.

    Its taps are those of the backbone, whose last one is called "pooled" here, and the penultimate:
    what the neck gives. It takes the images that the backbone takes.
    """

    name = "necked"

    def __init__(self, inner: Backbone, neck: Neck) -> None:
        assert inner.dim == neck.dim
        assert POOLED not in inner.tap_names
        # Past Backbone: its check of the shape is the inner backbone's, which has made it.
        super(Backbone, self).__init__()
        self.image_shape = inner.image_shape
        self.dim = neck.width
        self.tap_names = (*inner.tap_names[:-1], POOLED, PENULTIMATE)
        self.inner = inner
        self.neck = neck

    def blocks(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        """Yield the blocks of the backbone, its features as "pooled", and those of the neck."""
        output = images
        for name, output in self.inner.blocks(images):
            yield (POOLED if name == PENULTIMATE else name), output
        yield PENULTIMATE, self.neck(output)

    def forward(self, images: Images) -> Features:
        """Return the features `(N, dim)` of the neck."""
        features: Tensor = self.neck(self.inner(images))
        return features

    def check_shape(self, shape: ImageShape) -> None:
        """Refuse what the backbone refuses, in its words."""
        self.inner.check_shape(shape)


def without_neck(backbone: Backbone) -> Backbone:
    """Return the backbone alone: the part that `backbone_lr` slows down, say."""
    return backbone.inner if isinstance(backbone, Necked) else backbone

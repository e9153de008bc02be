"""A small vision transformer for small images.

>>> import torch
>>> backbone = Vit((1, 8, 8), patch=2, dim=16, depth=2, heads=2)
>>> backbone.tap_names
('block1', 'block2', 'penultimate')
>>> {name: tuple(output.shape) for name, output in backbone.blocks(torch.rand(3, 1, 8, 8))}
{'block1': (3, 16, 4, 4), 'block2': (3, 16, 4, 4), 'penultimate': (3, 16)}
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_nc.exceptions import InputError
from robust_nc.models.backbones import Backbone, ImageShape, at_least
from robust_nc.models.taps import PENULTIMATE
from robust_nc.types import Images

Tokens = Float[Tensor, "n t d"]

# Near the size of what a patch gives. From the usual 0.02, SGD takes many epochs to tell places
# apart: on digits, 8 epochs led to 82 % instead of 96 %.
_POSITION_STD = 0.5


class Vit(Backbone):
    """Patches, learnt positions and `depth` pre-norm blocks (Dosovitskiy et al., ICLR 2021).

    The image is cut into squares of `patch` pixels, each one token of `dim` features; attention has
    `heads` heads, the MLP of a block `mlp_ratio` times `dim` hidden units. `pooling` "mean"
    averages the tokens after a last layer norm, "cls" reads a class token instead. No batch norm,
    no dropout. Taps: block1 to blockN, as maps `(N, dim, h, w)` without the class token, and the
    penultimate (`dim` features). Takes one image size only.
    """

    name = "vit"
    one_size = True

    def __init__(
        self,
        image_shape: ImageShape,
        *,
        patch: int = 4,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: float = 2.0,
        pooling: Literal["mean", "cls"] = "mean",
    ) -> None:
        names = [f"block{index}" for index in range(1, at_least("depth", depth, 1) + 1)]
        grid = _grid(image_shape, at_least("patch", patch, 1))
        if at_least("dim", dim, 1) % at_least("heads", heads, 1):
            raise InputError(f"dim must be a multiple of heads, found dim {dim} and {heads} heads")
        hidden = round(dim * mlp_ratio)
        if hidden < 1:
            raise InputError(f"mlp_ratio must leave at least 1 hidden unit, found {mlp_ratio}")
        super().__init__(image_shape, dim=dim, tap_names=(*names, PENULTIMATE))
        self.embed = nn.Conv2d(image_shape[0], dim, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(grid[0] * grid[1], dim))
        self.token = nn.Parameter(torch.zeros(dim)) if pooling == "cls" else None
        for name in names:
            self.add_module(name, _Block(dim, heads, hidden))
        self.norm = nn.LayerNorm(dim)
        self._initialise()

    def blocks(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        """Yield the blocks as maps, `(N, dim, h, w)`, and the features `(N, dim)`."""
        patches = self.embed(images)
        size = patches.shape[2:]
        tokens = patches.flatten(2).transpose(1, 2) + self.positions
        first = 0
        if self.token is not None:
            tokens = torch.cat([self.token.expand(len(tokens), 1, -1), tokens], 1)
            first = 1
        for name in self.tap_names[:-1]:
            tokens = self.get_submodule(name)(tokens)
            yield name, tokens[:, first:].transpose(1, 2).unflatten(2, size)
        normed = self.norm(tokens)
        yield PENULTIMATE, normed.mean(1) if self.token is None else normed[:, 0]

    def _initialise(self) -> None:
        # Half of the variance that suits ReLU: with it attention would start out peaked.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="linear")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(self.positions, std=_POSITION_STD)
        if self.token is not None:
            nn.init.normal_(self.token, std=_POSITION_STD)


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on tokens `(N, T, dim)`."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, tokens: Tokens) -> Tokens:
        """Return tokens `(N, T, dim)`."""
        tokens = tokens + self.attention(self.norm1(tokens))
        changed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return changed


class _Attention(nn.Module):
    """Softmax(Q K^T / sqrt(dim / heads)) V of every head, mixed by a linear layer.

    Written out: at a few dozen tokens that is nearly as fast as torch's fused kernels, and it has
    every derivative.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.mix = nn.Linear(dim, dim)

    def forward(self, tokens: Tokens) -> Tokens:
        """Return tokens `(N, T, dim)`."""
        split = self.queries_keys_values(tokens).unflatten(2, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # each (N, heads, T, dim / heads)
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
        mixed: Tensor = self.mix((scores.softmax(3) @ values).transpose(1, 2).flatten(2))
        return mixed


def _grid(image_shape: ImageShape, patch: int) -> tuple[int, int]:
    """Return how many patches an image is high and wide."""
    height, width = image_shape[1:]
    if height % patch or width % patch:
        common = math.gcd(height, width)
        valid = [str(size) for size in range(1, common + 1) if common % size == 0]
        raise InputError(
            f"patch must divide both sides of the image, found {patch} for {height} x {width}; "
            f"choose {', '.join(valid)}"
        )
    return height // patch, width // patch

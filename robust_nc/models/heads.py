"""Heads: features `(N, D)` to logits `(N, K)`, learnable or fixed.

>>> import torch
>>> head = EtfHead(3, 8, seed=0)
>>> head(torch.ones(1, 8)).shape, len(list(head.parameters()))
(torch.Size([1, 3]), 0)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.exceptions import InputError
from robust_nc.models.frames import simplex_etf
from robust_nc.runtime import generator
from robust_nc.types import Features, Logits, Vertices

_SMALLEST_SQUARE = 1e-12
_SCALE_OF_COSINES = 16.0


class Head(nn.Module):
    """Base of all heads: logits = g(features) vertices()^T + bias_vector().

    g is the identity, or features / |features| with `normalise_features`. `temperature` divides
    the logits; it is part of `vertices()` and of `bias_vector()`, so that the line above is exact.
    A subclass sets those two, and `frame()` where its vertices are fixed. Logits are computed in
    the precision of the head, also under autocast, and each row from its own features only.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        normalise_features: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(f"a classifier needs at least 2 classes, found {num_classes}")
        if dim < 1:
            raise InputError(f"a head needs features of at least 1 dimension, found {dim}")
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature must be finite and above 0, found {temperature}")
        self.num_classes = num_classes
        self.dim = dim
        self.normalise_features = normalise_features
        self.temperature = temperature

    def vertices(self) -> Vertices:
        """Rows of the map that is applied, `(K, D)`: one direction per class."""
        raise NotImplementedError

    def bias_vector(self) -> Tensor | None:
        """Shift of the logits, `(K,)`, or None."""
        return None

    def frame(self) -> Vertices | None:
        """Return the fixed target frame, unit rows `(K, D)`; None where vertices are learnt."""
        return None

    def forward(self, features: Features) -> Logits:
        """Return logits."""
        vertices = self.vertices()
        with torch.autocast(features.device.type, enabled=False):
            inputs = features.to(vertices.dtype)
            if self.normalise_features:
                inputs = unit_rows(inputs)
            return F.linear(inputs, vertices, self.bias_vector())

    def extra_repr(self) -> str:
        """Show the sizes when the module is printed."""
        return f"{self.dim} -> {self.num_classes}"


class LinearHead(Head):
    """Learnable weight `(K, D)` and bias, drawn uniformly from +-1/sqrt(D)."""

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        seed: int,
        normalise_features: bool = False,
        temperature: float = 1.0,
        bias: bool = True,
    ) -> None:
        super().__init__(
            num_classes, dim, normalise_features=normalise_features, temperature=temperature
        )
        source = generator(seed, "init-head")
        bound = dim**-0.5
        self.weight = nn.Parameter(_uniform((num_classes, dim), bound, source))
        self.bias = nn.Parameter(_uniform((num_classes,), bound, source)) if bias else None

    def vertices(self) -> Vertices:
        """Weight over temperature."""
        return self.weight / self.temperature

    def bias_vector(self) -> Tensor | None:
        """Bias over temperature."""
        return None if self.bias is None else self.bias / self.temperature


class EtfHead(Head):
    """Fixed simplex ETF, no bias, nothing learnt (Yang et al., NeurIPS 2022).

    The frame is a buffer, drawn uniformly among all orientations. logits = scale / temperature *
    g(features) frame^T. `scale` None stands for 1 with plain features, whose length the backbone
    learns, and for 16 with `normalise_features`: cosines in [-1, 1] alone would leave a
    cross-entropy of 1.4 on a perfectly classified example of 10 classes.
    """

    fixed_frame: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        seed: int,
        normalise_features: bool = False,
        temperature: float = 1.0,
        scale: float | None = None,
    ) -> None:
        super().__init__(
            num_classes, dim, normalise_features=normalise_features, temperature=temperature
        )
        if scale is None:
            scale = _SCALE_OF_COSINES if normalise_features else 1.0
        if not 0 < scale < float("inf"):
            raise InputError(f"scale must be finite and above 0, found {scale}")
        self.scale = scale
        self.register_buffer("fixed_frame", simplex_etf(num_classes, dim, seed=seed))

    def vertices(self) -> Vertices:
        """Frame times scale over temperature."""
        return self.fixed_frame * (self.scale / self.temperature)

    def frame(self) -> Vertices:
        """Return the simplex ETF itself, unit rows."""
        return self.fixed_frame


def unit_rows(rows: Features) -> Features:
    """Divide each row by its length; a row of zeros stays zero, with a finite gradient."""
    return rows * (rows.square().sum(1, keepdim=True) + _SMALLEST_SQUARE).rsqrt()


def _uniform(shape: tuple[int, ...], bound: float, source: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=source) * 2 - 1) * bound

"""Heads whose frame is fixed: drawn once, never learnt.

>>> import torch
>>> head = EtfHead(3, 8, seed=0)
>>> head(torch.ones(1, 8)).shape, len(list(head.parameters()))
(torch.Size([1, 3]), 0)
"""

from collections.abc import Callable

from torch import Tensor

from robust_nc.data.hierarchy.tree import hierarchy_names, read_hierarchy
from robust_nc.exceptions import InputError
from robust_nc.models.frames import haframe, orthogonal_frame, simplex_etf
from robust_nc.models.heads import Head, choose_scale
from robust_nc.types import Vertices


class FixedHead(Head):
    """Base of heads with a fixed frame `(K, D)` of unit rows, no bias, nothing learnt.

    The frame is a buffer. logits = scale / temperature * g(features) frame^T. `scale` None stands
    for 1 with plain features, whose length the backbone learns, and for 16 with
    `normalise_features`: cosines in [-1, 1] alone would leave a cross-entropy of 1.4 on a perfectly
    classified example of 10 classes.
    """

    fixed_frame: Tensor

    def __init__(
        self,
        frame: Vertices,
        *,
        normalise_features: bool = False,
        temperature: float = 1.0,
        scale: float | None = None,
    ) -> None:
        num_classes, dim = frame.shape
        super().__init__(
            num_classes, dim, normalise_features=normalise_features, temperature=temperature
        )
        self.scale = choose_scale(scale, cosines=normalise_features)
        self.register_buffer("fixed_frame", frame)

    def vertices(self) -> Vertices:
        """Frame times scale over temperature."""
        return self.fixed_frame * (self.scale / self.temperature)

    def frame(self) -> Vertices:
        """Return the frame itself, unit rows."""
        return self.fixed_frame


class _DrawnHead(FixedHead):
    """A fixed frame that `draw` makes of sizes and seed."""

    draw: Callable[..., Vertices]

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
            type(self).draw(num_classes, dim, seed=seed),
            normalise_features=normalise_features,
            temperature=temperature,
            scale=scale,
        )


class EtfHead(_DrawnHead):
    """Fixed simplex ETF, drawn uniformly among all orientations (Yang et al., NeurIPS 2022)."""

    draw = staticmethod(simplex_etf)


class OrthogonalHead(_DrawnHead):
    """Fixed orthonormal rows, drawn uniformly; needs at least K dimensions."""

    draw = staticmethod(orthogonal_frame)


class HaFrameHead(FixedHead):
    """Fixed hierarchy-aware frame (Liang and Davis, arXiv 2303.05689).

    `hierarchy` is the tree of the classes: one of the package's names, or a path to a TOML or JSON
    file; a suite's cells take that of their data where it is left out. Cosines fall with the
    distance in it, the faster the larger `gamma`. Raises `InputError` without a tree, and for one
    of another number of classes.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        seed: int,
        hierarchy: str | None = None,
        gamma: float = 2.0,
        normalise_features: bool = False,
        temperature: float = 1.0,
        scale: float | None = None,
    ) -> None:
        if hierarchy is None:
            raise InputError(
                "a hierarchy-aware head needs the tree of its classes; give it the option "
                f"`hierarchy`, one of {', '.join(hierarchy_names())} or a path"
            )
        tree = read_hierarchy(hierarchy)
        tree.check_classes(num_classes)
        super().__init__(
            haframe(tree.distances(), dim, gamma=gamma, seed=seed),
            normalise_features=normalise_features,
            temperature=temperature,
            scale=scale,
        )

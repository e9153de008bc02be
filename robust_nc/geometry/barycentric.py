"""Where features lie between the vertices: for the path of a leap, on its edge and in the plane.

>>> import torch
>>> vertices = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 2, 0]], dtype=torch.float64)
>>> features = torch.tensor([[0.0, 0, 0], [1, 1, 5]])
>>> hull = Hull(vertices)
>>> found = hull.locate(features)
>>> [[abs(round(w, 9)) for w in row] for row in found.weights.tolist()]
[[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
>>> hull.along(found.inner, torch.tensor([0, 1]), torch.tensor([1, 2])).tolist()
[0.0, 0.5]
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.inputs import as_vertices, check_features
from robust_nc.geometry.moments import blocks
from robust_nc.geometry.projection import whitening
from robust_nc.geometry.simplex import centred, squared_distances
from robust_nc.types import Labels, PerExample

_ROUNDING = 64 * torch.finfo(torch.float64).eps


class Position(NamedTuple):
    """Features seen from the vertices, float64.

    `weights` (N, K): barycentric coordinates of the orthogonal projection onto the affine hull of
    the vertices. Rows sum to 1; values below 0 or above 1 lie outside of the simplex. Where the
    vertices are affinely independent, vertex k reads as the k-th unit vector and the way along an
    edge linearly; where they are not (K > D + 1), many coordinates name one point, and those of
    least norm are given. A class without a vertex has 0.

    `residual` (N,): distance from that hull in mean edge lengths, NaN where all vertices coincide.
    `inner` (N, K): products <h - s, mu_k - s>, s the mean vertex, from which `Hull.along` reads.
    """

    weights: Float64[Tensor, "n k"]
    residual: Float64[Tensor, " n"]
    inner: Float64[Tensor, "n k"]


class Hull:
    """The affine hull of vertices `(K, D)`, made once and asked about many features.

    A class without a vertex is a row of NaN. With s the mean of the K' vertices and U S V^T the
    thin SVD of the vertices minus s, cut to its numerical rank, the weights of h are
    1/K' + U S^-1 V^T (h - s): the pseudo-inverse keeps their sum at 1, since U is orthogonal to
    the vector of ones. Raises `InputError` for vertices that cannot be used.
    """

    def __init__(self, vertices: Tensor) -> None:
        vertices = as_vertices(vertices)
        self.num_groups = len(vertices)
        self._kept = torch.isfinite(vertices).all(1).nonzero().flatten()
        present = vertices[self._kept]
        self._shift = present.mean(0)
        self._rows = centred(present)
        solve = whitening(self._rows)
        # A common offset leaves rounding in the vertices, which is no direction of the hull.
        noise = _ROUNDING * torch.linalg.vector_norm(present, dim=1).max()
        self._solve = solve[torch.linalg.vector_norm(solve, dim=1) * noise < 1]
        self._left = self._rows @ self._solve.T
        gram = self._rows @ self._rows.T
        squared = squared_distances(gram).fill_diagonal_(torch.nan)
        length = squared.sqrt().nanmean()
        self._length = length.where(length > 0, torch.nan)
        self._gram = self._spread(self._spread(gram).T)
        self._squared = self._spread(self._spread(squared).T)

    def locate(self, features: Tensor) -> Position:
        """Locate features `(N, D)`, in blocks of rows, on the device of the vertices."""
        check_features(features, dim=len(self._shift))
        count = len(features)
        inner = self._shift.new_full((count, self.num_groups), torch.nan)
        weights, residual = torch.zeros_like(inner), self._shift.new_zeros(count)
        for rows in blocks(count, len(self._shift), scale=2):
            moved = features[rows].detach().to(self._shift.device) - self._shift
            part = (moved @ self._solve.T) @ self._left.T
            weights[rows, self._kept] = part + 1 / len(self._rows)
            inner[rows, self._kept] = moved @ self._rows.T
            outside = torch.linalg.vector_norm(moved - part @ self._rows, dim=1)
            residual[rows] = outside / self._length
        return Position(weights, residual, inner)

    def nearest(self, inner: Float64[Tensor, "n k"]) -> Labels:
        """Index of the nearest vertex, `(N,)`, from `Position.inner`."""
        logits = inner - self._gram.diagonal() / 2
        return logits.nan_to_num(nan=-torch.inf).argmax(1)

    def along(self, inner: Float64[Tensor, "n k"], origins: Labels, ends: Labels) -> PerExample:
        """How far along its edge each feature lies: t = <h - mu_a, mu_b - mu_a> / |mu_b - mu_a|^2.

        `(N,)`, from `Position.inner`; from the *vertex* mu_a (0 at mu_a, 1 at mu_b), not from the
        clean feature as the landing fraction is; `origins` a and `ends` b are `(N,)`. NaN marks
        what has no edge: a = b, a class without a vertex, vertices that coincide.
        """
        way = (inner - self._gram[origins]).gather(1, torch.stack([ends, origins], 1))
        squared = self._squared[origins, ends]
        return (way[:, 0] - way[:, 1]) / squared.where(squared > 0, torch.nan)

    def own_weights(self) -> Float64[Tensor, "k k"]:
        """Weights of the vertices themselves: the identity, where they are independent.

        A class without a vertex is a row of NaN.
        """
        own = self._shift.new_zeros(len(self._rows), self.num_groups)
        own[:, self._kept] = self._left @ self._left.T + 1 / len(self._rows)
        return self._spread(own)

    def _spread(self, rows: Tensor) -> Tensor:
        """Put one row per vertex where its class is; NaN for a class without one."""
        wide = rows.new_full((self.num_groups, rows.shape[1]), torch.nan)
        wide[self._kept] = rows
        return wide


def polygon(weights: Tensor) -> Tensor:
    """Draw barycentric coordinates `(N, K)` in the plane, `(N, 2)` float64.

    Vertex k stands on the unit circle at 90 - 360 k / K degrees (the first on top, then
    clockwise), and every point at the weighted mean of these corners. That is a linear projection
    of the simplex: edges stay straight and ratios along them true, but for K > 3 different points
    of the simplex fall onto one, and distances across it mean nothing.
    """
    if weights.ndim != 2 or weights.shape[1] < 2:
        raise InputError(
            f"weights must have shape (N, K) with 2 classes or more, found {tuple(weights.shape)}"
        )
    groups = weights.shape[1]
    turns = torch.arange(groups, dtype=torch.float64, device=weights.device) / groups
    angles = math.pi / 2 - 2 * math.pi * turns
    return weights.double() @ torch.stack([angles.cos(), angles.sin()], 1)

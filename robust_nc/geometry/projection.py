"""The second pass: exact `nc1` through the span of the class means, without a D x D matrix.

Sigma_W and Sigma_B as in `collapse`. With the thin SVD C_w = U S V^T of the K' means centred at
mu_G, Sigma_B = V S^2 V^T / K', so Tr(Sigma_W Sigma_B^+) = (K'/N) sum_i |S^-1 V^T z_i|^2.

>>> import torch
>>> from robust_nc.geometry.moments import Moments
>>> features, labels = torch.tensor([[1.0], [3], [-1], [-3]]), torch.tensor([0, 0, 1, 1])
>>> moments = Moments(2, 1)
>>> moments.update(features, labels)
>>> projection = Projection(moments)
>>> projection.update(features, labels)
>>> round(projection.nc1(), 6)
0.125
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError
from robust_nc.geometry.inputs import check_features
from robust_nc.geometry.moments import Groups, Moments, blocks

_EPS = torch.finfo(torch.float64).eps
_GRAM_GROUPS, _GRAM_DIM = 100, 4096  # above both, the SVD costs too much time and memory


def whitening(centred: Float64[Tensor, "k d"]) -> Float64[Tensor, "r d"]:
    """Return S^-1 V^T of the thin SVD of centred means, cut to their numerical rank.

    The rank is at most K'-1: the last singular value of centred rows is rounding, and one over its
    square is not. For K' > 100 and D > 4,096 it goes through the K' x K' Gram, which resolves
    singular values down to about 1e-7 of the largest (the SVD: 1e-13).
    """
    groups, dim = centred.shape
    most = max(groups - 1, 0)
    if groups > _GRAM_GROUPS and dim > _GRAM_DIM:
        values, left = torch.linalg.eigh(centred @ centred.T)
        values, left = values.flip(0)[:most], left.flip(1)[:, :most]
        large = values > values[0].clamp_min(0) * groups * _EPS
        projected: Tensor = (left[:, large] / values[large]).T @ centred
        return projected
    if not most:
        return centred[:0]
    _, sizes, right = torch.linalg.svd(centred, full_matrices=False)
    sizes, right = sizes[:most], right[:most]
    large = sizes > sizes[0] * max(groups, dim) * _EPS
    scaled: Tensor = right[large] / sizes[large, None]
    return scaled


class Projection:
    """Accumulates |S^-1 V^T (h - mu_g)|^2 per group, with means that are known before.

    With the moments of the same data this gives `nc1`; with those of clean train data and
    features from elsewhere, `nc1_cleanref`. Examples of groups that have no mean are skipped.
    """

    def __init__(self, moments: Moments) -> None:
        self._prepare(moments.groups())

    @classmethod
    def of(cls, means: Tensor, counts: Tensor | None = None) -> "Projection":
        """Project onto given vertices `(K, D)`; a class without one is a row of NaN.

        `counts` (K,) are the examples behind each vertex: they weight mu_G, at which the vertices
        are centred. None weights them alike.
        """
        present = torch.isfinite(means).all(1)
        sizes = torch.full_like(present, 2, dtype=torch.int64) if counts is None else counts
        projection = cls.__new__(cls)
        projection._prepare(Groups.of(means.double(), torch.where(present, sizes, 0)))
        return projection

    def _prepare(self, groups: Groups) -> None:
        self.matrix = whitening(groups.weighted_rows())
        self.num_groups = len(groups.kept)
        self._centre = groups.centre
        self._means = groups.rows @ self.matrix.T
        self._place = torch.full((groups.num_labels,), -1, device=self.matrix.device)
        self._place[groups.kept] = torch.arange(self.num_groups, device=self.matrix.device)
        self._sums = torch.zeros(groups.num_labels, dtype=torch.float64, device=self.matrix.device)
        self._counts = torch.zeros_like(self._place)

    @property
    def rank(self) -> int:
        """Numerical rank of the centred means, at most K'-1."""
        return len(self.matrix)

    @property
    def count(self) -> int:
        """N, the number of examples seen whose group has a mean."""
        return int(self._counts.sum())

    def update(self, features: Tensor, groups: Tensor) -> None:
        """Add features `(n, D)` with their groups `(n,)`."""
        check_features(features, dim=self.matrix.shape[1])
        groups = check_labels(groups, len(features), len(self._place), what="groups")
        features, groups = features.detach(), groups.to(self.matrix.device)
        if not self.num_groups:
            return
        for rows in blocks(len(features), features.shape[1], scale=4):
            group = groups[rows]
            place = self._place[group]
            shifted = features[rows].to(self.matrix.device) - self._centre
            inside = shifted @ self.matrix.T - self._means[place.clamp_min(0)]
            known = place >= 0
            self._sums.index_add_(0, group, inside.square().sum(1) * known)
            self._counts.index_add_(0, group, known.long())

    def merge(self, other: "Projection") -> "Projection":
        """Add what another accumulator with the same means has seen; in place, returns self."""
        if self.matrix.shape != other.matrix.shape or not torch.allclose(
            self.matrix, other.matrix.to(self.matrix.device)
        ):
            raise InputError("cannot merge projections onto different class means")
        self._sums += other._sums.to(self._sums.device)
        self._counts += other._counts.to(self._counts.device)
        return self

    def nc1(self) -> float | None:
        """Tr(Sigma_W Sigma_B^+) / K'; None without examples or where the means coincide."""
        if not self.rank or not self.count:
            return None
        return float(self._sums.sum()) / self.count

    def nc1_unscaled(self) -> float | None:
        """Tr(Sigma_W Sigma_B^+), without 1/K'."""
        value = self.nc1()
        return None if value is None else value * self.num_groups

    def per_group(self) -> tuple[float | None, ...]:
        """Return each group's own mean contribution; weighted by counts they average to `nc1`."""
        pairs = zip(self._sums.tolist(), self._counts.tolist(), strict=True)
        return tuple(total / n if n and self.rank else None for total, n in pairs)

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

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError
from robust_nc.geometry.inputs import check_features
from robust_nc.geometry.moments import Groups, Moments, Shifted
from robust_nc.geometry.portable import Portable

_EPS = torch.finfo(torch.float64).eps


class Span(NamedTuple):
    """Q = `combine` C_w (r x D) is orthonormal, and `coordinates` = C_w Q^T (K' x r)."""

    combine: Float64[Tensor, "r k"]
    coordinates: Float64[Tensor, "k r"]

    @classmethod
    def of(cls, groups: Groups) -> "Span":
        """Find Q in two passes over the pieces of C_w; r is at most K'-1."""
        return cls.over(lambda: (piece for _, piece in groups.pieces(weighted=True)), groups.norms)

    @classmethod
    def over(cls, pieces: Callable[[], Iterator[Tensor]], like: Tensor) -> "Span":
        """Find Q for centred rows whose columns come in pieces `(K', c)`; `like` is a `(K',)`."""
        gram = like.new_zeros(2 * [len(like)])
        for piece in pieces():
            gram.addmm_(piece, piece.T)
        values, left = torch.linalg.eigh(gram)
        most = max(len(values) - 1, 0)
        values, left = values.flip(0)[:most], left.flip(1)[:, :most]
        large = values > values[:1].clamp_min(0) * len(left) * _EPS
        combine = left[:, large].T / values[large, None].sqrt()
        coordinates = torch.zeros_like(combine.T)
        for piece in pieces():
            coordinates.addmm_(piece, (combine @ piece).T)
        inner = combine @ coordinates  # Q Q^T, the identity but for rounding
        factor = torch.linalg.cholesky((inner + inner.T) / 2)
        return cls(
            torch.linalg.solve_triangular(factor, combine, upper=False),
            torch.linalg.solve_triangular(factor, coordinates.T, upper=False).T,
        )

    def whitening(self) -> Float64[Tensor, "r k"]:
        """Return A with A C_w = S^-1 V^T of the thin SVD C_w = U S V^T, by descending S."""
        _, sizes, right = torch.linalg.svd(self.coordinates, full_matrices=False)
        combined: Tensor = (right / sizes[:, None]) @ self.combine
        return combined


_GRAM_GROUPS, _GRAM_DIM = 100, 4096  # above both, the SVD costs too much time and memory
_GRAM_ROWS = 1024  # examples whose K' products are made at a time


def by_gram(groups: int, dim: int) -> bool:
    """Whether K' x D means are whitened through their Gram."""
    return groups > _GRAM_GROUPS and dim > _GRAM_DIM


def whitening(centred: Float64[Tensor, "k d"]) -> Float64[Tensor, "r d"]:
    """Return S^-1 V^T of the thin SVD of centred means, cut to their numerical rank.

    The rank is at most K'-1: the last singular value of centred rows is rounding, and one over its
    square is not. For K' > 100 and D > 4,096 it goes through the K' x K' Gram (`Span`), which
    resolves singular values down to about 1e-7 of the largest (the SVD: 1e-13).
    """
    groups, dim = centred.shape
    most = max(groups - 1, 0)
    if by_gram(groups, dim):
        span = Span.over(lambda: iter([centred]), centred[:, 0])
        projected: Tensor = span.whitening() @ centred
        return projected
    if not most:
        return centred[:0]
    _, sizes, right = torch.linalg.svd(centred, full_matrices=False)
    sizes, right = sizes[:most], right[:most]
    large = sizes > sizes[0] * max(groups, dim) * _EPS
    scaled: Tensor = right[large] / sizes[large, None]
    return scaled


class Thin(NamedTuple):
    """S^-1 V^T as a matrix (r x D), with the means' images (K' x r)."""

    matrix: Tensor
    centre: Tensor
    means: Tensor
    shifted: Shifted

    @classmethod
    def of(cls, groups: Groups) -> "Thin":
        """Whiten by the thin SVD."""
        matrix = whitening(groups.weighted_rows())
        return cls(matrix, groups.centre, groups.rows @ matrix.T, Shifted())

    @property
    def rank(self) -> int:
        """r, the numerical rank of the centred means."""
        return len(self.matrix)

    def images(self, features: Tensor, place: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and S^-1 V^T (h - mu) there, `(n, r)`; mu is the mean at `place`, 0..K'-1."""
        for rows, shifted in self.shifted.pieces(features, self.centre):
            # With few rows in front, half the time of the product the other way round.
            yield rows, (self.matrix @ shifted.T).T - self.means[place[rows]]

    def same(self, other: object) -> bool:
        """Whether the other has the same means."""
        return (
            isinstance(other, Thin)
            and self.matrix.shape == other.matrix.shape
            and torch.allclose(self.matrix, other.matrix.to(self.matrix.device))
        )


class Pieced(NamedTuple):
    """S^-1 V^T as A (r x K') before C_w, whose pieces come from the shared table at each use."""

    groups: Groups
    combine: Tensor

    @classmethod
    def of(cls, groups: Groups) -> "Pieced":
        """Whiten through the Gram."""
        return cls(groups, Span.of(groups).whitening())

    @property
    def rank(self) -> int:
        """r, the numerical rank of the centred means."""
        return len(self.combine)

    def images(self, features: Tensor, place: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """As `Thin`, with the mean off first: A is large, so what cancels must do so before it."""
        centre = self.groups.centre + self.groups.offset
        for start in range(0, len(features), _GRAM_ROWS):
            rows = slice(start, start + _GRAM_ROWS)
            products = centre.new_zeros(len(place[rows]), len(self.groups.kept))
            for columns, piece in self.groups.pieces(weighted=True):
                shifted = features[rows, columns].to(centre.device) - centre[columns]
                products.addmm_(shifted.sub_(piece[place[rows]]), piece.T)
            yield rows, products @ self.combine.T

    def same(self, other: object) -> bool:
        """Whether the other has the same means."""
        if not isinstance(other, Pieced) or self.combine.shape != other.combine.shape:
            return False
        pairs = zip(self.groups.pieces(), other.groups.pieces(), strict=True)
        return all(torch.allclose(one, two.to(one.device)) for (_, one), (_, two) in pairs)


class Projection(Portable):
    """Accumulates |S^-1 V^T (h - mu_g)|^2 per group, with means that are known before.

    With the moments of the same data this gives `nc1`; with those of clean train data and
    features from elsewhere, `nc1_cleanref`. Examples of groups that have no mean are skipped.
    For K' > 100 and D > 4,096 the means stay where they are, and the moments must not change.
    `rank` is the numerical rank of the centred means, at most K'-1.
    """

    against = ("_whitening", "_source")

    def __init__(self, moments: Moments) -> None:
        self._prepare(moments.groups(), moments)

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

    def _prepare(self, groups: Groups, source: Moments | None = None) -> None:
        self.num_groups, self.dim = len(groups.kept), groups.table.shape[1]
        gram = by_gram(self.num_groups, self.dim)
        self._whitening: Pieced | Thin | None = Pieced.of(groups) if gram else Thin.of(groups)
        self.rank = self._whitening.rank
        self._source = source if gram else None
        self._edition = source.edition if source is not None else 0
        device = groups.table.device
        self._place = torch.full((groups.num_labels,), -1, device=device)
        self._place[groups.kept] = torch.arange(self.num_groups, device=device)
        self._sums = torch.zeros(groups.num_labels, dtype=torch.float64, device=device)
        self._counts = torch.zeros_like(self._place)

    @property
    def count(self) -> int:
        """N, the number of examples seen whose group has a mean."""
        return int(self._counts.sum())

    def update(self, features: Tensor, groups: Tensor) -> None:
        """Add features `(n, D)` with their groups `(n,)`."""
        check_features(features, dim=self.dim)
        groups = check_labels(groups, len(features), len(self._place), what="groups")
        if self._whitening is None:
            raise InputError("a bare projection has no means; it can be merged and read only")
        if not self.num_groups:
            return
        self._check_source()
        groups = groups.to(self._place.device)
        place = self._place[groups]
        known = place >= 0
        for rows, inside in self._whitening.images(features.detach(), place.clamp_min(0)):
            self._sums.index_add_(0, groups[rows], inside.square().sum(1) * known[rows])
        self._counts.index_add_(0, groups, known.long())

    def _check_source(self) -> None:
        """Refuse means that have moved since they were whitened."""
        if self._source is not None and self._source.edition != self._edition:
            raise InputError(
                "the moments have changed since this projection was made of them; "
                "end the first pass over the features before the second"
            )

    def merge(self, other: "Projection") -> "Projection":
        """Add what another accumulator with the same means has seen; in place, returns self."""
        if not self._same(other):
            raise InputError("cannot merge projections onto different class means")
        self._sums += other._sums.to(self._sums.device)
        self._counts += other._counts.to(self._counts.device)
        return self

    def _same(self, other: "Projection") -> bool:
        """Whether the means are the same, as far as both still have them."""
        sizes = ((each.num_groups, each.dim, each.rank, len(each._sums)) for each in (self, other))
        if self._whitening is None or other._whitening is None:
            return next(sizes) == next(sizes)
        return self._whitening is other._whitening or self._whitening.same(other._whitening)

    def fresh(self) -> "Projection":
        """Return a projection onto the same means that has seen nothing."""
        twin = copy.copy(self)
        twin._sums, twin._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Leave the moments behind that the means came from."""
        return super().__getstate__() | {"_source": None}

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

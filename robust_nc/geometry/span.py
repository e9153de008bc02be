"""The span of many centred means, through their K' x K' Gram: no second K' x D matrix.

With C_w the K' means centred at mu_G and G = C_w C_w^T = U L U^T, the rows of Q = L^-1/2 U^T C_w
span what they span. Forming G squares the condition number, so Q is orthonormal only to about
eps (s_1/s_r)^2; once more orthogonalised, as in CholeskyQR2 (Yamamoto et al., 2015, "Roundoff
error analysis of the CholeskyQR2 algorithm"), it is so to rounding, and the coordinates C_w Q^T
have the singular values of C_w to eps s_1. What is lost are directions below 1e-7 of s_1.

>>> import torch
>>> from robust_nc.geometry.groups import Groups
>>> means = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
>>> span = Span.of(Groups.of(means, torch.tensor([2, 2, 2])))
>>> span.coordinates.shape, round(float(span.coordinates.square().sum()), 9)
(torch.Size([3, 2]), 2.0)
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from robust_nc.geometry.groups import Groups

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

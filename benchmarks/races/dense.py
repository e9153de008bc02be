"""Exact NC1 as its formula reads: two passes, two D x D matrices, one pseudo-inverse.

Tr(Sigma_W Sigma_B^+) / K with Sigma_W = (1/N) sum z z^T, z = h - mu_g, and
Sigma_B = (1/K) sum_k (mu_k - mu_G)(mu_k - mu_G)^T. The opponent of `geometry`; kept as plain as a
first implementation would be, in batches, and by any of three inverses.

>>> import torch
>>> features, labels = torch.tensor([[1.0], [3], [-1], [-3]]), torch.tensor([0, 0, 1, 1])
>>> round(nc1([(features, labels)], 2, 1, inverse="eigh"), 6)
0.125
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

Inverse = Literal["eigh", "svd"]
Batches = Iterable[tuple[Tensor, Tensor]]


def nc1(
    batches: Batches,
    groups: int,
    dim: int,
    *,
    inverse: Inverse,
    dtype: torch.dtype = torch.float64,
) -> float:
    """Compute NC1 of features `(n, D)` and labels; `batches` can be gone through twice.

    `inverse` "eigh" is torch's Hermitian pseudo-inverse, "svd" the general one.
    """
    batches = list(batches)
    means, counts = _means(batches, groups, dim, dtype)
    total = torch.zeros(dim, dim, dtype=dtype)
    for features, labels in batches:
        centred = features.to(dtype) - means[labels]
        total += centred.T @ centred
    within = total / counts.sum()
    offset = means - counts @ means / counts.sum()
    between = offset.T @ offset / groups
    inverted = torch.linalg.pinv(between, hermitian=inverse == "eigh")
    return float(torch.trace(within @ inverted)) / groups


def _means(batches: Batches, groups: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Class means `(K, D)` and counts `(K,)`."""
    sums, counts = torch.zeros(groups, dim, dtype=dtype), torch.zeros(groups, dtype=dtype)
    for features, labels in batches:
        sums.index_add_(0, labels, features.to(dtype))
        counts += labels.bincount(minlength=groups)
    return sums / counts[:, None], counts


def gibibytes(dim: int, dtype: torch.dtype = torch.float64) -> float:
    """Size of one D x D matrix; `nc1` holds Sigma_W, Sigma_B and its inverse at once."""
    return dim**2 * dtype.itemsize / 2**30

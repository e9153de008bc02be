"""Fixed target frames for the last layer.

A simplex equiangular tight frame (ETF) has K unit vectors that are as far apart as K vectors can
be: every two of them at cosine -1/(K-1).

>>> frame = simplex_etf(4, 16, seed=0)
>>> [round(value, 4) for value in (frame @ frame[0]).tolist()]
[1.0, -0.3333, -0.3333, -0.3333]
"""

import torch
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.runtime import generator
from robust_nc.types import Vertices


def simplex_etf(num_classes: int, dim: int, *, seed: int) -> Vertices:
    """Return a simplex ETF with a uniformly random orientation, float32 `(K, dim)`, unit rows.

    W = sqrt(K/(K-1)) (I - J/K) U^T with U (dim x K) orthonormal (Yang et al., NeurIPS 2022). Since
    I - J/K = E E^T for an orthonormal basis E of what is orthogonal to (1, ..., 1), and U E is
    Haar distributed when U is, W = sqrt(K/(K-1)) E Q^T with Q (dim x (K-1)) Haar: the same frame
    in law, which also fits dim = K - 1. Raises `InputError` for dim < K - 1: no such frame exists.
    """
    if num_classes < 2:
        raise InputError(f"a simplex needs at least 2 classes, found {num_classes}")
    if dim < num_classes - 1:
        raise InputError(
            f"a simplex ETF of {num_classes} classes needs features of at least "
            f"{num_classes - 1} dimensions, found {dim}; choose a wider backbone"
        )
    basis = _orthogonal_to_ones(num_classes)
    directions = haar_orthonormal(dim, num_classes - 1, seed=seed)
    scale = (num_classes / (num_classes - 1)) ** 0.5
    frame: Tensor = scale * basis @ directions.T
    return frame.float()


def haar_orthonormal(rows: int, columns: int, *, seed: int) -> Tensor:
    """Return uniformly random orthonormal columns, float64 `(rows, columns)`, rows >= columns.

    The QR factor of a Gaussian matrix is uniform only once the signs of R's diagonal are moved
    into Q (Mezzadri, Notices of the AMS 2007).
    """
    gaussian = torch.randn(
        rows, columns, dtype=torch.float64, generator=generator(seed, "init-head")
    )
    q: Tensor
    q, r = torch.linalg.qr(gaussian)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def _orthogonal_to_ones(size: int) -> Tensor:
    """Orthonormal basis of the complement of (1, ..., 1), `(size, size - 1)` (Helmert).

    Column j is (1, ..., 1, -j, 0, ..., 0) / sqrt(j (j + 1)), with j ones.
    """
    order = torch.arange(1, size, dtype=torch.float64)
    ones = torch.ones(size, size - 1, dtype=torch.float64).triu()
    ones[torch.arange(1, size), torch.arange(size - 1)] = -order
    lengths: Tensor = (order * (order + 1)).sqrt()
    return ones / lengths

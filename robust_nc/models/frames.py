"""Target frames for the last layer: K unit vectors, one per class, at angles that are known.

A simplex equiangular tight frame (ETF) has K unit vectors that are as far apart as K vectors can
be: every two of them at cosine -1/(K-1). In a hierarchy-aware frame the cosine falls with the
distance of the two classes in a tree.

>>> frame = simplex_etf(4, 16, seed=0)
>>> [round(value, 4) for value in (frame @ frame[0]).tolist()]
[1.0, -0.3333, -0.3333, -0.3333]
>>> pairs = torch.tensor([[0, 1, 2, 2], [1, 0, 2, 2], [2, 2, 0, 1], [2, 2, 1, 0]])
>>> frame = haframe(pairs, 16, gamma=2.0, seed=0)
>>> [round(value, 4) for value in (frame @ frame[0]).tolist()]
[1.0, -0.0707, -0.4646, -0.4646]
"""

from typing import Any

import torch
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.inputs import as_tensor
from robust_nc.geometry.simplex import centred
from robust_nc.runtime.torch_state import generator
from robust_nc.types import Vertices

_NOTHING = 1e-12  # eigenvalues below this share of the largest are rounding


def simplex_etf(num_classes: int, dim: int, *, seed: int) -> Vertices:
    """Return a simplex ETF with a uniformly random orientation, float32 `(K, dim)`, unit rows.

    W = sqrt(K/(K-1)) (I - J/K) U^T with U (dim x K) orthonormal (Yang et al., NeurIPS 2022). Since
    I - J/K = E E^T for an orthonormal basis E of what is orthogonal to (1, ..., 1), and U E is
    Haar distributed when U is, W = sqrt(K/(K-1)) E Q^T with Q (dim x (K-1)) Haar: the same frame
    in law, which also fits dim = K - 1. Raises `InputError` for dim < K - 1: no such frame exists.
    """
    _check_simplex(num_classes, dim)
    basis = _orthogonal_to_ones(num_classes)
    directions = haar_orthonormal(dim, num_classes - 1, seed=seed)
    scale = (num_classes / (num_classes - 1)) ** 0.5
    frame: Tensor = scale * basis @ directions.T
    return frame.float()


class _Polar(torch.autograd.Function):
    """U V^T of the SVD of a matrix (d, k), d >= k.

    Its gradient has sums of singular values below, where that of the SVD has differences: these
    are all zero at a simplex, which is where training goes.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        ctx.save_for_backward(left, values, right)
        polar: Tensor = left @ right
        return polar

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        left, values, right = ctx.saved_tensors
        (gradient,) = gradients
        least = values.max() * _NOTHING
        turned = gradient @ right.T
        inside = left.T @ turned
        inside = (inside - inside.T) / (values[:, None] + values).clamp_min(least)
        outside = (turned - left @ (left.T @ turned)) / values.clamp_min(least)
        whole: Tensor = (left @ inside + outside) @ right
        return whole


def nearest_etf(
    means: Any, *, toward: Any = None, delta: float | int = 0.0, gradient: bool = False
) -> Tensor:
    """Return the simplex ETF nearest to class means `(K, D)`: `(K, D)`, unit rows.

    With H (D x K) the means centred at their unweighted mean, of unit Frobenius norm, it minimises
    `|H - W^T / sqrt(K)|` over all simplex ETFs W; where the means lie and how far apart does not
    matter. One SVD gives it (Procrustes): W = sqrt(K/(K-1)) E P^T, with P = U V^T from the SVD of
    2/sqrt(K-1) H E + delta P_0, and E (K x (K-1)) an orthonormal basis of what is orthogonal to
    (1, ..., 1), which also fits D = K - 1 (Markou et al., NeurIPS 2024, by a Riemannian solver).
    `delta` draws it to `toward`, an ETF `(K, D)` whose P is P_0: the penalty `delta/2 |P - P_0|^2`.

    Without it, and with means that span fewer than K - 1 directions (or all coincide), several ETFs
    are equally near, and the result is one of them, always the same for the same means on the same
    machine. Computed on the CPU in float64, so that devices agree; returned on the device of the
    means, float64 where they are, else float32, without a gradient unless `gradient` is true and
    the means have one. Raises `InputError` for means that are not finite, D < K - 1, or a `toward`
    of another shape.
    """
    attached = gradient and isinstance(means, Tensor)
    means = means if attached else as_tensor(means, "class means")
    rows = _class_rows(means)
    num_classes = len(rows)
    basis = _orthogonal_to_ones(num_classes)
    size = torch.linalg.matrix_norm(rows).clamp_min(torch.finfo(rows.dtype).tiny)
    pull = 2 / (num_classes - 1) ** 0.5 * (rows / size).T @ basis
    if not 0 <= delta < float("inf"):
        raise InputError(f"delta must be finite and at least 0, found {delta}")
    if delta > 0:
        toward = None if toward is None else as_tensor(toward, "toward")
        if toward is None or toward.shape != means.shape:
            raise InputError(
                f"delta above 0 needs `toward`, an ETF of the means' shape {tuple(means.shape)}, "
                f"found {None if toward is None else tuple(toward.shape)}"
            )
        held = toward.to(pull) * ((num_classes - 1) / num_classes) ** 0.5
        pull = pull + delta * held.T @ basis
    polar: Tensor = _Polar.apply(pull)  # type: ignore[no-untyped-call]
    scale = (num_classes / (num_classes - 1)) ** 0.5
    frame: Tensor = scale * basis @ polar.T
    return frame.to(means.device, torch.float64 if means.dtype == torch.float64 else torch.float32)


def orthogonal_frame(num_classes: int, dim: int, *, seed: int) -> Vertices:
    """Return uniformly random orthonormal rows, float32 `(K, dim)`.

    Raises `InputError` for K < 2 and for dim < K.
    """
    if num_classes < 2:
        raise InputError(f"orthogonal rows need at least 2 classes, found {num_classes}")
    if dim < num_classes:
        raise InputError(
            f"{num_classes} orthogonal rows need features of at least {num_classes} dimensions, "
            f"found {dim}; choose a wider backbone"
        )
    return haar_orthonormal(dim, num_classes, seed=seed).T.float()


def haframe(distances: Any, dim: int, *, gamma: float | int, seed: int) -> Tensor:
    """Return a hierarchy-aware frame, float32 `(K, dim)`, unit rows, randomly oriented.

    Its Gram matrix is `similarities(distances, gamma)`, S = V L V^T (Liang and Davis, arXiv
    2303.05689): W = V L^1/2 Q^T with Q (dim x rank) Haar. Any dim >= K will do, and K - 1 where the
    floor is above -1, because S then has rank K - 1. For gamma to infinity it is a simplex ETF.
    Raises `InputError` for too few dimensions, and for distances that are not those of a tree.
    """
    distances = as_tensor(distances, "distances")
    root = _root(similarities(distances, gamma))
    num_classes, rank = root.shape
    if dim < rank:
        raise InputError(
            f"a hierarchy-aware frame of {num_classes} classes at gamma = {gamma} needs features "
            f"of at least {rank} dimensions, found {dim}; choose a wider backbone"
        )
    rows = root @ haar_orthonormal(dim, rank, seed=seed).T
    frame: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return frame.float().to(distances.device)


def similarities(distances: Any, gamma: float | int) -> Tensor:
    """Cosines of the hierarchy-aware frame, float64 `(K, K)` on the CPU, ones on the diagonal.

    S = (1 - s) exp(-gamma D / d_max) + s with s the smallest that leaves S positive semidefinite
    (`haframe_floor`). Raises `InputError` as `haframe` does.
    """
    decays = _decays(distances, gamma)
    floor = _floor(decays)
    return ((1 - floor) * decays + floor).fill_diagonal_(1)


def haframe_floor(distances: Any, gamma: float | int) -> float:
    """Return s_min, in [-1, 0): the cosine that classes would have at an infinite distance.

    s_min = max(-1, -1 / (m - 1)) with m = 1^T E^-1 1 and E = exp(-gamma D / d_max): S is singular
    there, or s at the end of its range. Raises `InputError` as `haframe` does.
    """
    return _floor(_decays(distances, gamma))


def haar_orthonormal(rows: int, columns: int, *, seed: int) -> Tensor:
    """Return uniformly random orthonormal columns, float64 `(rows, columns)`, rows >= columns.

    The QR factor of a Gaussian matrix is uniform only once the signs of R's diagonal are moved
    into Q (Mezzadri, Notices of the AMS 2007).
    """
    gaussian = torch.randn(
        rows, columns, dtype=torch.float64, generator=generator(seed, "init-head")
    )
    return _positive_qr(gaussian)[0]


def _positive_qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """QR with R's diagonal at least 0, which makes it unique where the columns are independent."""
    q, r = torch.linalg.qr(matrix)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0)
    return q * signs, signs[:, None] * r


def _root(gram: Tensor) -> Tensor:
    """Return R `(K, rank)` with R R^T the positive semidefinite `gram`, to rounding.

    Eigenvectors of a tree are free within its many equal eigenvalues. The triangular form depends
    on `gram` only, so that a seed names the same frame on every machine.
    """
    values, vectors = torch.linalg.eigh(gram)
    kept = values > _NOTHING * values[-1]
    return _positive_qr((vectors[:, kept] * values[kept].sqrt()).T)[1].T


def _floor(decays: Tensor) -> float:
    ones = torch.ones(len(decays), 1, dtype=decays.dtype)
    factor, failed = torch.linalg.cholesky_ex(decays)
    if bool(failed):
        raise InputError(
            "no frame has cosines that fall with these distances, because exp(-gamma D / d_max) is "
            "not positive definite; give the distances of a tree (heights of lowest common "
            "ancestors), or a larger gamma"
        )
    mass = float(torch.cholesky_solve(ones, factor).sum())
    return -1 / (mass - 1) if mass > 2 else -1.0


def _decays(distances: Any, gamma: float | int) -> Tensor:
    """exp(-gamma D / d_max), float64 on the CPU, once D is one that a tree could have."""
    distances = as_tensor(distances, "distances")
    if distances.ndim != 2 or len(distances) != distances.shape[1] or len(distances) < 2:
        raise InputError(
            f"distances must be (K, K) for at least 2 classes, found {tuple(distances.shape)}"
        )
    if not 0 < gamma < float("inf"):
        raise InputError(f"gamma must be finite and above 0, found {gamma}")
    values = distances.cpu().double()
    apart = ~torch.eye(len(values), dtype=torch.bool)
    usable = torch.isfinite(values).all() and torch.allclose(values, values.T)
    if not usable or bool(values.diagonal().any()) or bool((values[apart] <= 0).any()):
        raise InputError(
            "distances must be finite, symmetric, 0 on the diagonal and above 0 elsewhere, "
            "as those of a tree are"
        )
    return torch.exp(-gamma * values / values.max())


def _class_rows(means: Tensor) -> Tensor:
    """Means `(K, D)`, centred, float64 on the CPU, once there is a simplex of their shape."""
    if means.ndim != 2:
        raise InputError(f"class means must be (K, D), found {tuple(means.shape)}")
    _check_simplex(*means.shape)
    rows = means.cpu().double()
    if not bool(torch.isfinite(rows).all()):
        raise InputError("class means must be finite; give every class a mean")
    return centred(rows)


def _check_simplex(num_classes: int, dim: int) -> None:
    if num_classes < 2:
        raise InputError(f"a simplex needs at least 2 classes, found {num_classes}")
    if dim < num_classes - 1:
        raise InputError(
            f"a simplex ETF of {num_classes} classes needs features of at least "
            f"{num_classes - 1} dimensions, found {dim}; choose a wider backbone"
        )


def _orthogonal_to_ones(size: int) -> Tensor:
    """Orthonormal basis of the complement of (1, ..., 1), `(size, size - 1)` (Helmert).

    Column j is (1, ..., 1, -j, 0, ..., 0) / sqrt(j (j + 1)), with j ones.
    """
    order = torch.arange(1, size, dtype=torch.float64)
    ones = torch.ones(size, size - 1, dtype=torch.float64).triu()
    ones[torch.arange(1, size), torch.arange(size - 1)] = -order
    lengths: Tensor = (order * (order + 1)).sqrt()
    return ones / lengths

"""How far rows are from a simplex equiangular tight frame: NC2 and NC3 as pure functions.

All are invariant to rotation and scale, zero at an exact simplex, and NaN where undefined (which
`collapse` turns into None with the reason).

>>> import torch
>>> frame = torch.eye(3, dtype=torch.float64) - 1 / 3
>>> round(norm_spread(frame @ frame.T), 9), round(gram_distance(frame @ frame.T), 9)
(0.0, 0.0)
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

Gram = Float64[Tensor, "k k"]


def cosines(gram: Gram) -> Gram:
    """Cosines between the rows behind a Gram matrix; NaN where a row is zero."""
    norms = gram.diagonal().clamp_min(0).sqrt()
    return gram / norms[:, None] / norms


def pair_angles(gram: Gram) -> Gram:
    """Degrees between the rows behind a Gram matrix; NaN where a row is zero."""
    return cosines(gram).clamp(-1, 1).arccos().rad2deg()


def _pair_mean(values: Gram) -> float:
    """Mean over ordered pairs i != j."""
    apart = ~torch.eye(len(values), dtype=torch.bool, device=values.device)
    return float(values[apart].mean())


def norm_spread(gram: Gram) -> float:
    """Standard deviation (ddof 1) over mean of the norms of the rows: 0 is equinorm."""
    norms = gram.diagonal().clamp_min(0).sqrt()
    return float(norms.std() / norms.mean())


def angle_spread(gram: Gram) -> float:
    """Mean over i != j of |cos_ij + 1/(K'-1)|: 0 is equiangular and maximally separated."""
    return _pair_mean((cosines(gram) + 1 / (len(gram) - 1)).abs())


def gram_distance(gram: Gram) -> float:
    """Frobenius norm of G/|G| - (I - J/K')/sqrt(K'-1); G may be a product W C^T as well."""
    groups = len(gram)
    simplex = torch.eye(groups, dtype=gram.dtype, device=gram.device) - 1 / groups
    difference = gram / torch.linalg.matrix_norm(gram) - simplex / math.sqrt(groups - 1)
    return float(torch.linalg.matrix_norm(difference))


def angle_distance(gram: Gram, target: Gram) -> float:
    """Mean over i != j of |cos_ij - S_ij|, S the cosines behind the target's Gram."""
    return _pair_mean((cosines(gram) - cosines(target)).abs())


def duality_distance(rows: Float64[Tensor, "k d"], head: Float64[Tensor, "k d"]) -> float:
    """|W/|W| - C/|C||^2, Frobenius: 0 where the head's rows are the means up to scale."""
    difference = head / torch.linalg.matrix_norm(head) - rows / torch.linalg.matrix_norm(rows)
    return float(difference.square().sum())


def squared_distances(gram: Gram) -> Gram:
    """|mu_i - mu_j|^2 from the Gram of centred means; what is rounding is zero."""
    sizes = gram.diagonal()
    both = sizes[:, None] + sizes
    squared = both - 2 * gram
    return torch.where(squared <= 1e-14 * both, 0.0, squared)


def centred(rows: Float64[Tensor, "k d"]) -> Float64[Tensor, "k d"]:
    """Rows minus their mean; what is rounding is zero."""
    moved = rows - rows.mean(0)
    tiny = 64 * torch.finfo(torch.float64).eps * torch.linalg.vector_norm(rows, dim=1).max()
    moved[torch.linalg.vector_norm(moved, dim=1) <= tiny] = 0
    return moved

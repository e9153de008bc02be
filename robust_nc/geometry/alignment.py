"""How far the attacked class means moved from the clean ones, and how far means are from a simplex.

Both sets are cut to the classes that have a vertex in both and centred at their own unweighted mean
mu_U; c_k and c'_k are what is left of class k. Columns are read a few at a time, so that beside the
vertices themselves only K x K matrices are held, whatever the dimension.

>>> import torch
>>> clean = torch.eye(3, dtype=torch.float64)
>>> turned = measure_alignment(clean, 5 * clean[[1, 2, 0]] + 1000)
>>> round(turned.angle, 9), turned.procrustes < 1e-12
(120.0, True)
>>> still = measure_alignment(clean, clean)
>>> still.angle, still.distance, round(etf_distance(clean), 12)
(0.0, 0.0, 0.0)
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.inputs import as_tensor, as_vertices
from robust_nc.geometry.moments import blocks
from robust_nc.types import Vertices

Kept = Int[Tensor, " kept"]

_ROUNDING = 64 * torch.finfo(torch.float64).eps
_TOO_FEW = "undefined: fewer than two classes have a vertex in both"
_COINCIDE = "undefined: the class means coincide"
_NO_ANGLE = "undefined: no vertex in both, or a vertex at the centre of the means"


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Clean against attacked vertices; `None` with a reason in `notes` where there is no value.

    - `angles` (K,): degrees between c_k and c'_k, in [0, 180]; `angle` their mean.
    - `distances` (K,): |c'_k - c_k| over the mean of the |c_k|; `distance` their mean.
    - `procrustes`: what no rotation, reflection or change of scale removes, in [0, 1]. With A and B
      the centred vertices at unit Frobenius norm, min over orthogonal R and s of |A - s B R|^2 =
      1 - (sum of the singular values of A^T B)^2 (Schoenemann, Psychometrika 1966; with scale:
      Gower, Psychometrika 1975). Two classes always fit: 0.
    - `num_classes` entered; `absent_classes` have no vertex in one of the two and are left out.

    `notes` and `measures()` go by the names of the rows of a record.
    """

    angle: float | None
    distance: float | None
    procrustes: float | None
    angles: tuple[float | None, ...]
    distances: tuple[float | None, ...]
    num_classes: int
    absent_classes: int
    notes: Mapping[str, str]

    def measures(self) -> dict[str, float | None]:
        """All scalar measures by name."""
        return {
            "alignment_angle": self.angle,
            "alignment_distance": self.distance,
            "procrustes": self.procrustes,
        }


def _read(values: Any, name: str) -> Vertices:
    """As `as_vertices`, but with one class or none: that is a result, not a mistake."""
    rows = as_tensor(values, name)
    alone = rows.ndim == 2 and int((~rows.isnan().all(1)).sum()) < 2
    return rows.double() if alone and rows.is_floating_point() else as_vertices(rows, name)


def _pieces(vertices: Vertices, kept: Kept) -> Iterator[Vertices]:
    """Yield a few columns at a time of the kept rows, centred at their mean."""
    for columns in blocks(vertices.shape[1], len(vertices), scale=8):
        piece = vertices[:, columns][kept]
        yield piece - piece.mean(0)


def _norms(vertices: Vertices, kept: Kept) -> Float64[Tensor, " kept"]:
    """Norms of the centred rows; what is rounding is zero."""
    squared = vertices.new_zeros(len(kept))
    for piece in _pieces(vertices, kept):
        squared += piece.square().sum(1)
    norms = squared.sqrt()
    largest = torch.linalg.vector_norm(vertices, dim=1)[kept].max()
    return torch.where(norms <= _ROUNDING * largest, 0.0, norms)


def _triangle(vertices: Vertices, kept: Kept) -> Float64[Tensor, "rank kept"]:
    """R of the QR decomposition of the transposed centred rows, at unit Frobenius norm.

    It has their singular values, and A^T B those of R_A R_B^T. Column blocks are folded in one
    after the other (TSQR: Demmel, Grigori, Hoemmen, Langou, SIAM J. Sci. Comput. 2012). A Gram
    matrix would square the singular values and lose half of their digits.
    """
    factor = vertices.new_zeros(0, len(kept))
    for piece in _pieces(vertices, kept):
        factor = torch.linalg.qr(torch.cat([factor, piece.T]), mode="r").R
    size: Tensor = torch.linalg.matrix_norm(factor)
    return factor / size


def _numbers(values: Tensor, kept: Kept, num_classes: int) -> tuple[float | None, ...]:
    """Spread the values of the kept classes over all classes; None where there is none."""
    spread = values.new_full((num_classes,), torch.nan)
    spread[kept] = values
    return tuple(value if math.isfinite(value) else None for value in spread.tolist())


def _mean(values: tuple[float | None, ...]) -> float | None:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


def _compare(
    clean: Vertices, attacked: Vertices, kept: Kept
) -> tuple[Tensor, Tensor, float | None]:
    """Angles in degrees and relative distances of the kept rows, NaN where undefined; procrustes.

    The angle between unit vectors u and v is 2 atan2(|u - v|, |u + v|) (Kahan): exact at 0, where
    the cosine has no digits left.
    """
    if len(kept) < 2:
        nowhere = clean.new_full((len(kept),), torch.nan)
        return nowhere, nowhere, None
    before, after = _norms(clean, kept), _norms(attacked, kept)
    own, other = (torch.where(norms > 0, norms, torch.nan)[:, None] for norms in (before, after))
    apart, along, moved = (torch.zeros_like(before) for _ in range(3))
    for c, a in zip(_pieces(clean, kept), _pieces(attacked, kept), strict=True):
        moved += (a - c).square().sum(1)
        apart += (c / own - a / other).square().sum(1)
        along += (c / own + a / other).square().sum(1)
    angles = torch.rad2deg(2 * torch.atan2(apart.sqrt(), along.sqrt()))
    distances = moved.sqrt() / before.mean()
    if not (before.any() and after.any()):
        return angles, distances, None
    product = _triangle(clean, kept) @ _triangle(attacked, kept).T
    shared = float(torch.linalg.svdvals(product).sum())
    return angles, distances, min(max(1 - shared**2, 0.0), 1.0)


def measure_alignment(clean: Any, attacked: Any) -> Alignment:
    """Compare clean and attacked vertices `(K, D)` of the same classes, NumPy or torch.

    A class without a vertex is a row of NaN; classes without one in either are left out. Raises
    `InputError` for shapes that do not agree, and for values that are not finite.
    """
    first, second = _read(clean, "clean"), _read(attacked, "attacked")
    if first.shape != second.shape:
        raise InputError(
            "clean and attacked must be vertices of the same classes, "
            f"found shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    second = second.to(first.device)
    kept = (torch.isfinite(first).all(1) & torch.isfinite(second).all(1)).nonzero().flatten()
    turned, moved, procrustes = _compare(first, second, kept)
    angles, distances = (_numbers(values, kept, len(first)) for values in (turned, moved))
    found = Alignment(
        angle=_mean(angles),
        distance=_mean(distances),
        procrustes=procrustes,
        angles=angles,
        distances=distances,
        num_classes=len(kept),
        absent_classes=len(first) - len(kept),
        notes={},
    )
    return dataclasses.replace(found, notes=_notes(found))


def _notes(found: Alignment) -> dict[str, str]:
    """Reasons for every None, and how many classes are behind the rest."""
    classes, absent = found.num_classes, found.absent_classes
    reason = _TOO_FEW if classes < 2 else _COINCIDE
    notes = {name: reason for name, value in found.measures().items() if value is None}
    if absent:
        everyone = len(found.angles)
        notes["num_classes"] = f"{absent} of {everyone} classes left out: no vertex in both"
    if None in found.angles:
        notes["alignment_angle_class"] = _NO_ANGLE
    central = found.angles.count(None) - absent
    if 0 < central < classes:
        left = f"{central} of {classes} classes left out"
        notes["alignment_angle"] = f"{left}: a vertex at the centre of the means"
    return notes


def etf_distance(vertices: Any) -> float | None:
    """Squared distance of vertices `(K, D)` to the nearest simplex equiangular tight frame.

    With H (D x K) the vertices centred at mu_U, at unit Frobenius norm, M = I - J/K and sigma the
    singular values of H M: sum over i < K of (sigma_i - 1/sqrt(K-1))^2 + |H - H M|^2, whose last
    term is 0 by the centring (the frame nearest to H is that of Markou et al., NeurIPS 2024). In
    [0, 2 - 2/sqrt(K-1)], so always 0 for two classes. A row of NaN is a class without a vertex and
    is left out; None where fewer than two remain or all coincide. Raises `InputError` for values
    that are not finite.
    """
    rows = _read(vertices, "vertices")
    kept = torch.isfinite(rows).all(1).nonzero().flatten()
    if len(kept) < 2 or not bool(_norms(rows, kept).any()):
        return None
    rank = len(kept) - 1
    sigma = torch.linalg.svdvals(_triangle(rows, kept))[:rank]
    missing = (rank - len(sigma)) / rank  # fewer dimensions than a simplex fills
    return float((sigma - 1 / math.sqrt(rank)).square().sum()) + missing

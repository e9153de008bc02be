"""What attacked collapse would read if nothing but relabelling, or nothing but noise, happened.

NC1 by true label after an attack mostly counts misclassification, and grouping by nearest vertex
collapses anything: neither is read without its null.

>>> import torch
>>> vertices = 3 * torch.eye(3, dtype=torch.float64)
>>> leap_null(torch.tensor([[5, 0, 0], [0, 5, 0], [0, 0, 5]]), vertices).nc1
0.0
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.moments import Groups, Moments, blocks
from robust_nc.geometry.projection import Projection, Span, by_gram, whitening
from robust_nc.runtime.torch_state import keyed_normal
from robust_nc.types import Labels, Vertices

_BLOCKS = 32  # times as many draws at a time where each pass over the vertices is expensive


class Variability(NamedTuple):
    """`nc1` and `nc1_trace`; None where the group means coincide or fewer than two are left."""

    nc1: float | None
    nc1_trace: float | None


def joint_counts(labels: Labels, destination: Labels, num_classes: int) -> Int[Tensor, "g k"]:
    """Count examples by label (rows) and nearest vertex b' (columns)."""
    pairs = torch.bincount(labels * num_classes + destination, minlength=num_classes**2)
    return pairs.view(num_classes, num_classes)


def leap_null(joint: Int[Tensor, "g k"], vertices: Vertices) -> Variability:
    """NC1 by group of examples that lie exactly on vertices: collapse lost by relabelling alone.

    `joint[g, k]` counts the examples of group g whose attacked feature is nearest to vertex k; each
    is replaced by mu_k, in closed form. A class without a vertex is a row of NaN and has no count.
    """
    weights = joint.double()
    absent = torch.isnan(vertices).any(1)
    if bool(weights[:, absent].any()):
        raise InputError("examples are counted at a vertex that does not exist (a row of NaN)")
    points = _points(vertices, absent)
    means = weights @ points / weights.sum(1).clamp_min(1)[:, None]
    groups = Groups.of(means, joint.sum(1))
    if len(groups.kept) < 2:
        return Variability(None, None)
    share = weights[groups.kept] / groups.total
    between = float(groups.weighted_norms.square().mean())
    if between == 0:
        return Variability(None, None)
    matrix, rows, points = whitening(groups.weighted_rows()), groups.rows, points - groups.centre
    inside = _squared_distances(rows @ matrix.T, points @ matrix.T)
    within = _squared_distances(rows, points)
    return Variability(float((share * inside).sum()), float((share * within).sum()) / between)


def _points(vertices: Vertices, absent: Bool[Tensor, " k"]) -> Float64[Tensor, "k r"]:
    """Vertices around their mean, zero where absent; where they are large, in their own span."""
    groups = Groups.of(vertices.double(), torch.where(absent, 0, 2))
    rows = Span.of(groups).coordinates if by_gram(*vertices.shape) else groups.rows
    points = rows.new_zeros(len(vertices), rows.shape[1])
    points[groups.kept] = rows
    return points


def _squared_distances(rows: Tensor, points: Tensor) -> Tensor:
    return torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist").square()


def isotropic_draws(
    ids: Int[Tensor, " n"], mean: Float64[Tensor, " d"], total_variance: float, seed: int
) -> Float64[Tensor, "n d"]:
    """Draws from N(mean, (total_variance / D) I), keyed by (seed, id)."""
    draws = mean.new_empty(len(ids), len(mean))
    for rows in blocks(*draws.shape):  # what keys and draws take on the way is several times this
        draws[rows] = keyed_normal(seed, ids[rows], "isotropic-null", len(mean))
    return draws.mul_(math.sqrt(total_variance / len(mean))).add_(mean)


def isotropic_null(
    moments: Moments, vertices: Vertices, *, seed: int, num_examples: int | None = None
) -> Variability:
    """Null of `nc1_landed`: isotropic noise with the mean and total variance of attacked features.

    `moments` are those of the attacked features (any grouping with groups of two or more; by
    nearest vertex, say). As many draws as they hold examples, or `num_examples`, are grouped by
    their nearest clean vertex. Made anew in each of two passes and never held: about 60 ns a value.
    """
    found = moments.groups()
    count = moments.total if num_examples is None else num_examples
    mean, variance = found.centre + found.offset, moments.total_variance
    at = Groups.of(vertices.double(), torch.where(torch.isnan(vertices).any(1), 0, 2))
    if len(at.kept) < 2:
        return Variability(None, None)
    scale = _BLOCKS if by_gram(*vertices.shape) else 1

    def draws() -> Iterator[Tensor]:
        for rows in blocks(count, moments.dim, scale=scale):
            ids = torch.arange(rows.start, min(rows.stop, count), device=mean.device)
            yield isotropic_draws(ids, mean, variance, seed)

    null, landed = Moments(len(vertices), moments.dim, device=mean.device), []
    for features in draws():
        landed.append(at.nearest(features))
        null.update(features, landed[-1])
    projection = Projection(null)
    for features, groups in zip(draws(), landed, strict=True):
        projection.update(features, groups)
    measured = collapse(null, projection=projection)
    return Variability(measured.nc1, measured.nc1_trace)

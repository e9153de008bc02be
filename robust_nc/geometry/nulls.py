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
from jaxtyping import Float64, Int
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.moments import Groups, Moments, blocks
from robust_nc.geometry.nearest import nearest_vertex
from robust_nc.geometry.projection import Projection, whitening
from robust_nc.runtime import keyed_normal
from robust_nc.types import Features, Labels, Vertices


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
    shift = vertices[~absent].double().mean(0)
    points = torch.where(absent[:, None], 0.0, vertices.double() - shift)
    means = weights @ points / weights.sum(1).clamp_min(1)[:, None]
    groups = Groups.of(means, joint.sum(1), shift=shift)
    if len(groups.kept) < 2:
        return Variability(None, None)
    share = weights[groups.kept] / groups.total
    between = float(groups.weighted_rows().square().sum(1).mean())
    if between == 0:
        return Variability(None, None)
    matrix = whitening(groups.weighted_rows())
    centre = groups.centre - shift
    inside = _squared_distances(groups.rows @ matrix.T, (points - centre) @ matrix.T)
    within = _squared_distances(groups.rows, points - centre)
    return Variability(float((share * inside).sum()), float((share * within).sum()) / between)


def _squared_distances(rows: Tensor, points: Tensor) -> Tensor:
    return torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist").square()


def recollapse(features: Features, vertices: Vertices) -> Variability:
    """NC1 of features `(n, D)` grouped by their nearest vertex: `nc1_landed`, in memory.

    Over batches, feed `Moments` and then `Projection` with `nearest_vertex` as the groups.
    """
    groups = nearest_vertex(features, vertices)
    moments = Moments(len(vertices), features.shape[1])
    moments.update(features, groups)
    projection = Projection(moments)
    projection.update(features, groups)
    measured = collapse(moments, projection=projection)
    return Variability(measured.nc1, measured.nc1_trace)


def isotropic_draws(
    ids: Int[Tensor, " n"], mean: Float64[Tensor, " d"], total_variance: float, seed: int
) -> Float64[Tensor, "n d"]:
    """Draws from N(mean, (total_variance / D) I), keyed by (seed, id)."""
    noise = keyed_normal(seed, ids, "isotropic-null", len(mean)).double()
    return mean + math.sqrt(total_variance / len(mean)) * noise


def isotropic_null(
    moments: Moments, vertices: Vertices, *, seed: int, num_examples: int | None = None
) -> Variability:
    """Null of `nc1_landed`: isotropic noise with the mean and total variance of attacked features.

    `moments` are those of the attacked features (any grouping with groups of two or more; by
    nearest vertex, say). As many draws as they hold examples, or `num_examples`, are grouped by
    their nearest clean vertex. Made anew in each of two passes and never held: about 60 ns a value.
    """
    count = moments.total if num_examples is None else num_examples
    mean, variance = moments.global_mean, moments.total_variance

    def draws() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in blocks(count, moments.dim):
            ids = torch.arange(rows.start, min(rows.stop, count), device=mean.device)
            features = isotropic_draws(ids, mean, variance, seed)
            yield features, nearest_vertex(features, vertices)

    null = Moments(len(vertices), moments.dim, device=mean.device)
    for features, groups in draws():
        null.update(features, groups)
    projection = Projection(null)
    for features, groups in draws():
        projection.update(features, groups)
    measured = collapse(null, projection=projection)
    return Variability(measured.nc1, measured.nc1_trace)

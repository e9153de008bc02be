"""What one attacked example did between two vertices: pure functions behind `leaps`.

All of it comes from inner products with the centred vertices, so that the cost is two products
with K rows however many edges are asked for.

>>> import torch
>>> frame = make_frame(torch.tensor([[0.0, 0], [4, 0]], dtype=torch.float64))
>>> clean, attacked = torch.zeros(1, 2), torch.tensor([[1.0, 2.0]])
>>> row = measure_rows(clean, attacked, torch.tensor([0]), torch.tensor([1]), None, frame)
>>> float(row.t), float(row.off)
(0.25, 0.5)
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from robust_nc.geometry.nearest import Centred, centre
from robust_nc.geometry.simplex import squared_distances
from robust_nc.types import Features, Labels, Vertices

LANDING_QUANTILE = 0.95


class Frame(NamedTuple):
    """Centred vertices, and `squared` (K, K) |mu_i - mu_j|^2, NaN where there is no edge."""

    centred: Centred
    squared: Float64[Tensor, "k k"]


def make_frame(vertices: Vertices) -> Frame:
    """Prepare vertices `(K, D)` float64; a class without one is a row of NaN."""
    centred = centre(vertices)
    squared = squared_distances(centred.rows @ centred.rows.T)
    absent = torch.isinf(centred.bias)
    squared[absent] = squared[:, absent] = torch.nan
    return Frame(centred, squared.fill_diagonal_(torch.nan))


class Way(NamedTuple):
    """Ways along edges a -> b, `(n,)` float64 each; not finite where there is no edge.

    `t` the fraction of the edge, `off` the distance from it in edge lengths; `length` is that of
    the edge, |mu_b - mu_a|.
    """

    t: Tensor
    off: Tensor
    length: Tensor


def along_edges(
    inner: Float64[Tensor, "n k"],
    moved: Float64[Tensor, " n"],
    start: Labels,
    end: Labels,
    frame: Frame,
) -> Way:
    """Measure displacements d along edges from `start` a to `end` b, `(n,)` each.

    `inner` are <d, mu_k> with the centred vertices, `moved` |d|. With e = mu_b - mu_a:
    t = <d, e> / |e|^2, off^2 = (|d|^2 - t^2 |e|^2) / |e|^2. An attacked example that leaps and a
    mislabelled one that is memorised are both displaced along an edge.
    """
    squared = frame.squared[start, end]
    far, near = inner.gather(1, torch.stack([end, start], 1)).unbind(1)
    t = (far - near) / squared
    off = (moved.square() / squared - t.square()).clamp_min(0).sqrt()
    return Way(t, off, squared.sqrt())


class ExampleLeaps(NamedTuple):
    """What is kept of each example, `(n,)` each: a few numbers, never features."""

    labels: Tensor
    origin: Tensor
    destination: Tensor
    clean_distance: Tensor
    attacked_distance: Tensor
    moved: Tensor
    t: Tensor
    off: Tensor
    t_selected: Tensor
    flipped: Tensor

    @classmethod
    def none(cls, device: torch.device) -> "ExampleLeaps":
        """Return what is kept of no example."""
        nobody = torch.zeros(0, dtype=torch.int64, device=device)
        none = nobody.double()
        return cls(nobody, nobody, nobody, none, none, none, none, none, none, nobody.bool())


class _Seen(NamedTuple):
    """Features seen from the vertices: inner products `(n, K)`, nearest vertex, distance to it."""

    inner: Float64[Tensor, "n k"]
    nearest: Labels
    distance: Float64[Tensor, " n"]


def _see(features: Features, centred: Centred) -> _Seen:
    shifted = features - centred.shift
    inner = shifted @ centred.rows.T
    best = (inner + centred.bias).max(1)
    size = torch.linalg.vector_norm(shifted, dim=1).square()
    return _Seen(inner, best.indices, (size - 2 * best.values).clamp_min(0).sqrt())


def measure_rows(
    clean: Features,
    attacked: Features,
    labels: Labels,
    destinations: Labels | None,
    flipped: Tensor | None,
    frame: Frame,
) -> ExampleLeaps:
    """Measure some examples in float64: displacements h' - h from the nearest clean vertex a."""
    before, after = _see(clean, frame.centred), _see(attacked, frame.centred)
    inner = after.inner - before.inner
    moved = torch.linalg.vector_norm(attacked.double() - clean, dim=1)
    t = off = torch.full_like(moved, torch.nan)
    if destinations is not None:
        t, off, _ = along_edges(inner, moved, before.nearest, destinations, frame)
    return ExampleLeaps(
        labels=labels,
        origin=before.nearest,
        destination=after.nearest,
        clean_distance=before.distance,
        attacked_distance=after.distance,
        moved=moved,
        t=t,
        off=off,
        t_selected=along_edges(inner, moved, before.nearest, after.nearest, frame).t,
        flipped=torch.zeros_like(labels, dtype=torch.bool) if flipped is None else flipped.bool(),
    )


def landing_radii(row: ExampleLeaps, num_classes: int) -> Float64[Tensor, " k"]:
    """95th percentile of the clean distances of each class; NaN for a class without any."""
    own = row.origin == row.labels
    ordered = row.clean_distance[own].sort()
    by_class = row.labels[own][ordered.indices].argsort(stable=True)
    distances = ordered.values[by_class]
    counts = torch.bincount(row.labels[own], minlength=num_classes)
    first = counts.cumsum(0) - counts
    place = LANDING_QUANTILE * (counts - 1).clamp_min(0).double()
    if not len(distances):
        return torch.full_like(place, torch.nan)
    last = len(distances) - 1
    low = distances[(first + place.floor().long()).clamp_max(last)]
    high = distances[(first + place.ceil().long()).clamp_max(last)]
    radii = low + (high - low) * place.frac()
    return torch.where(counts > 0, radii, torch.nan)


def row_entropies(matrix: Tensor) -> tuple[float | None, ...]:
    """Entropy in nats of where the leaps from each vertex go; None without leaps."""
    leaps = matrix.double() - torch.diag(matrix.diagonal()).double()
    shares = leaps / leaps.sum(1, keepdim=True)
    entropy = torch.special.entr(shares).sum(1)
    return tuple(None if value != value else value for value in entropy.tolist())

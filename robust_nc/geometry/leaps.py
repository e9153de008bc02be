"""Where an attacked example goes: onto which vertex, how far along the edge, how far off it.

For one tap, a is the nearest vertex of the clean example and b' that of its attacked twin, both
against the same clean vertices; b is a class that does not depend on the tap: the target, or else
the network's attacked prediction. All of it comes from inner products with the centred vertices, so
that the cost is two products with K rows however many edges are asked for.

>>> import torch
>>> vertices = torch.tensor([[0.0, 0], [4, 0]])
>>> clean, labels = torch.tensor([[0.0, 1], [0, -1]]), torch.tensor([0, 0])
>>> attacked = clean + torch.tensor([[3.0, 0], [0, 0]])
>>> leaps = measure_leaps(clean, attacked, labels, vertices, destinations=torch.tensor([1, 1]))
>>> leaps.leap_rate, leaps.t.tolist(), leaps.off_edge
(0.5, [0.75, 0.0], 0.0)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError
from robust_nc.geometry.inputs import as_features, as_vertices, check_features
from robust_nc.geometry.moments import blocks
from robust_nc.geometry.nearest import Centred, centre
from robust_nc.geometry.portable import Portable, moved
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Leaps:
    """Leaps of one tap; `None` with a reason in `notes` where there is no value.

    - `leap_rate`: share of examples with b' != a; `matrix` (K, K) int64 counts T[a, b'].
    - `row_entropy`: per a, entropy in nats of b' among the leaps from a (None without leaps);
      `mean_row_entropy` weights by leaps. `nearest_share`: share of leaps onto the vertex nearest
      to that of a.
    - `t` and `off_edges` (M,): landing fraction and off-edge residual of every example with b != a;
      `landing_fraction`, `landing_median`, `off_edge` their mean, median, mean; `undefined` counts
      the examples with b = a. `t_selected`: mean landing fraction towards b' of leaped examples,
      selected by the outcome, hence only beside `landing_fraction`.
    - `landed`: share of leaped examples no further from mu_b' than the 95th percentile of the clean
      distances of class b', those of the clean examples with label b' and nearest vertex b' (and a
      millionth of an edge, for rounding); leaps onto a class without any such are not counted.
    - `displacement`: mean `|h' - h|` over the mean distance between vertices.
    - `agreement`: among examples that leaped or whose prediction flipped, share that did both.
    - `labels`, `origin` a, `destination` b' (N,), for leap layers and null models.
    - `counts`: by measure, the examples that it is over, where these are not all N.
    """

    leap_rate: float | None
    mean_row_entropy: float | None
    nearest_share: float | None
    landing_fraction: float | None
    landing_median: float | None
    off_edge: float | None
    t_selected: float | None
    landed: float | None
    displacement: float | None
    agreement: float | None
    num_examples: int
    undefined: int
    row_entropy: tuple[float | None, ...]
    matrix: Tensor
    t: Tensor
    off_edges: Tensor
    labels: Tensor
    origin: Tensor
    destination: Tensor
    counts: Mapping[str, int]
    notes: Mapping[str, str]

    def measures(self) -> dict[str, float | None]:
        """All scalar measures by name."""
        return {name: getattr(self, name) for name in MEASURES}


_ROUNDING = 1e-6
_NO_EXAMPLES = "undefined: no examples"
_NO_LEAPS = "undefined: no example leaped"
_NO_EDGES = "needs destinations that differ from the nearest clean vertex"
_NOTES = {
    "leap_rate": _NO_EXAMPLES,
    "mean_row_entropy": _NO_LEAPS,
    "nearest_share": _NO_LEAPS,
    "landing_fraction": _NO_EDGES,
    "landing_median": _NO_EDGES,
    "off_edge": _NO_EDGES,
    "t_selected": "needs destinations, to stand beside landing_fraction, and leaps",
    "landed": "undefined: no leap onto a class with clean examples at its vertex",
    "displacement": "undefined: no examples, or all vertices coincide",
    "agreement": "needs flipped predictions, and a leap or a flip",
}
MEASURES = tuple(_NOTES)


class LeapMeter(Portable):
    """Accumulates leaps against vertices `(K, D)`; a class without a vertex is a row of NaN."""

    against = ("vertices", "_frame")

    def __init__(self, vertices: Tensor) -> None:
        self.vertices: Tensor | None = as_vertices(vertices)
        self._frame: Frame | None = make_frame(self.vertices)
        self._squared = self._frame.squared
        self._rows: list[ExampleLeaps] = []
        self._destined = False
        self._predicted = False

    def update(
        self,
        clean: Tensor,
        attacked: Tensor,
        labels: Tensor,
        destinations: Tensor | None = None,
        *,
        flipped: Tensor | None = None,
    ) -> None:
        """Add clean and attacked features `(n, D)` of the same examples with labels `(n,)`.

        `destinations` (n,): targets, or attacked predictions. `flipped` (n,) bool: whether the
        network's prediction changed.
        """
        frame = self._frame
        if self.vertices is None or frame is None:
            raise InputError("a bare meter has no vertices; it can be merged and read only")
        groups, dim = self.vertices.shape
        check_features(clean, "clean", dim=dim)
        check_features(attacked, "attacked", dim=dim)
        if len(attacked) != len(clean):
            raise InputError(f"found {len(clean)} clean and {len(attacked)} attacked examples")
        device, count = self._squared.device, len(clean)
        labels = check_labels(labels, count, groups).to(device)
        if destinations is not None:
            destinations = check_labels(destinations, count, groups, what="destinations")
            destinations = destinations.to(device)
            self._destined = True
        if flipped is not None:
            if flipped.shape != labels.shape:
                raise InputError(
                    f"flipped must have shape ({count},), found {tuple(flipped.shape)}"
                )
            self._predicted = True
        for rows in blocks(count, dim, scale=4):
            self._rows.append(
                measure_rows(
                    clean[rows].detach().to(device),
                    attacked[rows].detach().to(device),
                    labels[rows],
                    None if destinations is None else destinations[rows],
                    None if flipped is None else flipped[rows].to(device),
                    frame,
                )
            )

    def merge(self, other: "LeapMeter") -> "LeapMeter":
        """Append what another meter of the same vertices has seen; in place, returns self."""
        if not self._same(other):
            raise InputError("cannot merge leaps measured against different vertices")
        self._rows += moved(other._rows, self._squared.device)
        self._destined |= other._destined
        self._predicted |= other._predicted
        return self

    def _same(self, other: "LeapMeter") -> bool:
        """Whether the vertices are the same, or, where one has left them, what is between them."""
        if self.vertices is not None and other.vertices is not None:
            theirs = other.vertices.to(self.vertices.device)
            return torch.equal(self.vertices.nan_to_num(), theirs.nan_to_num())
        own, theirs = self._squared, other._squared.to(self._squared.device)
        return own.shape == theirs.shape and torch.allclose(own, theirs, equal_nan=True)

    def compute(self) -> Leaps:
        """Return the measures of everything seen."""
        rows = self._rows or [ExampleLeaps.none(self._squared.device)]
        row = ExampleLeaps(*(torch.cat(column) for column in zip(*rows, strict=True)))
        return summarise(row, self._squared, destined=self._destined, predicted=self._predicted)


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if values.numel() else None


def summarise(row: ExampleLeaps, squared: Tensor, *, destined: bool, predicted: bool) -> Leaps:
    """Compute the measures from what is kept of each example, and `Frame.squared`."""
    groups = len(squared)
    leaped = row.origin != row.destination
    pairs = torch.bincount(row.origin * groups + row.destination, minlength=groups * groups)
    matrix = pairs.view(groups, groups)
    scale = squared.sqrt().nanmean()
    neighbour = squared.nan_to_num(torch.inf, posinf=torch.inf).argmin(1)
    on_edge = torch.isfinite(row.t)
    radius = landing_radii(row, groups)[row.destination]
    near = row.attacked_distance <= radius + _ROUNDING * scale
    entropies = row_entropies(matrix)
    leaps_per_row = (matrix.sum(1) - matrix.diagonal()).tolist()
    weighted = [e * n for e, n in zip(entropies, leaps_per_row, strict=True) if e is not None]
    t, selected = row.t[on_edge], row.t_selected[leaped & torch.isfinite(row.t_selected)]
    judged, either = leaped & torch.isfinite(radius), leaped | row.flipped
    several = ("mean_row_entropy", "nearest_share")
    values: dict[str, float | None] = {
        "leap_rate": _mean(leaped),
        "mean_row_entropy": sum(weighted) / sum(leaps_per_row) if weighted else None,
        "nearest_share": _mean((neighbour[row.origin] == row.destination)[leaped]),
        "landing_fraction": _mean(t),
        "landing_median": float(t.quantile(0.5)) if len(t) else None,
        "off_edge": _mean(row.off[on_edge]),
        "t_selected": _mean(selected) if destined else None,
        "landed": _mean(near[judged]),
        "displacement": _mean(row.moved / scale) if scale > 0 else None,
        "agreement": _mean((leaped & row.flipped)[either]) if predicted else None,
    }
    return Leaps(
        **values,
        num_examples=len(leaped),
        undefined=int((~on_edge).sum()) if destined else 0,
        row_entropy=entropies,
        matrix=matrix,
        t=t,
        off_edges=row.off[on_edge],
        labels=row.labels,
        origin=row.origin,
        destination=row.destination,
        counts=dict.fromkeys(several, int(leaped.sum()))
        | dict.fromkeys(("landing_fraction", "landing_median", "off_edge"), len(t))
        | {"t_selected": len(selected), "landed": int(judged.sum())}
        | {"agreement": int(either.sum()) if predicted else 0},
        notes={name: _NOTES[name] for name in MEASURES if values[name] is None},
    )


def measure_leaps(
    clean: Any, attacked: Any, labels: Any, vertices: Any, *, destinations: Any = None
) -> Leaps:
    """Measure leaps between clean and attacked features `(N, D)` of the same examples.

    `labels` (N,) integers; `vertices` (K, D) clean class means (`Moments.means`); `destinations`
    (N,): targets of a targeted attack, else the network's attacked predictions; without them there
    is no landing fraction. NumPy or torch. Raises `InputError` for shapes that do not agree, labels
    out of range, and values that are not finite.
    """
    clean, attacked = as_features(clean, "clean"), as_features(attacked, "attacked")
    if clean.shape != attacked.shape:
        raise InputError(
            "clean and attacked must be features of the same examples, "
            f"found shapes {tuple(clean.shape)} and {tuple(attacked.shape)}"
        )
    meter = LeapMeter(as_vertices(vertices).to(clean.device))
    count, groups = len(clean), len(meter._squared)
    labels = check_labels(labels, count, groups)
    if destinations is not None:
        destinations = check_labels(destinations, count, groups, what="destinations")
    meter.update(clean, attacked, labels, destinations)
    return meter.compute()


NO_LEAP, NOT_COUNTED = -1, -2  # in place of a leap layer


def leap_layer(origins: list[Labels], landings: list[Labels], labels: Labels) -> Labels:
    """Per example the first tap l with b' != a at l and at every later tap, `(N,)` int64.

    `origins` and `landings` hold the nearest vertices of clean and attacked features, one `(N,)`
    tensor per tap in order of depth. -1: at the last tap b' = a. -2: not counted, because the clean
    vertex at the last tap is not the label.
    """
    if not origins or len(origins) != len(landings):
        raise InputError(
            f"leap_layer needs one origin and one landing per tap, "
            f"found {len(origins)} and {len(landings)}"
        )
    apart = torch.stack(origins) != torch.stack(landings)
    stays = apart.flip(0).long().cumprod(0).sum(0)
    layer = torch.where(stays > 0, len(origins) - stays, NO_LEAP)
    return torch.where(origins[-1] == labels, layer, NOT_COUNTED)

"""The measures of one tap under one condition, in parts that can be swept in turn.

A part takes two sweeps over the features (`first`, then `second`) and then gives its rows. Each
holds a few K x D sums of its own, so that parts that do not fit together are swept one by one.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from robust_nc.geometry.alignment import etf_distance
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.leaps import LeapMeter, Leaps
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.nearest import NearestMeter
from robust_nc.geometry.nulls import isotropic_null, joint_counts, leap_null
from robust_nc.geometry.projection import Projection
from robust_nc.geometry.scatter import MAX_DIM, TotalScatter
from robust_nc.grid.rows import Row, class_rows, valued
from robust_nc.registry import METRICS

_FLOAT = 8
_COPIES = 12  # K x D matrices of float64 that a part holds at its peak: a slow test measures it
_NO_VERTEX = "undefined: no example of a class with a vertex"
_NOTES = {
    "ncc": _NO_VERTEX,
    "nc4": _NO_VERTEX,
    "etf_distance": "undefined: the class means coincide",
}


class Batch(NamedTuple):
    """One batch at one tap: features `(n, D)` clean, here, here with noise on top; `(n,)` the rest.

    `noisy` and `target` are None where the condition has none.
    """

    clean: Tensor
    here: Tensor
    noisy: Tensor | None
    labels: Tensor
    clean_predicted: Tensor
    predicted: Tensor
    target: Tensor | None


class Head(NamedTuple):
    """The rows of the last map `(K, D)`, and its fixed frame where it has one."""

    weight: Tensor
    frame: Tensor | None


class Part(Protocol):
    """What one round of sweeps accumulates."""

    def first(self, batch: Batch) -> None:
        """Add a batch in the first sweep."""

    def second(self, batch: Batch) -> None:
        """Add a batch in the second sweep."""

    def rows(self) -> list[Row]:
        """Return all values."""


def part_bytes(num_groups: int, dim: int) -> int:
    """Most bytes that a part holds at a time."""
    return _FLOAT * (_COPIES * num_groups * dim + (dim**2 if dim <= MAX_DIM else 0))


class GroupPart:
    """Collapse of one grouping, with vertices from the features themselves.

    `reference` are the moments of the clean training features: their means are the vertices for
    grouping by where an example landed. `means` and `per_class` are there after both sweeps.
    """

    def __init__(self, grouping: str, reference: Moments, head: Head | None, *, seed: int) -> None:
        self.grouping = grouping
        self._vertices = reference.groups() if grouping == "landed" else None
        self._reference = reference
        self._head = head
        self._seed = seed
        self._moments = Moments(reference.num_groups, reference.dim, device=reference.device)
        self._scatter = TotalScatter(reference.dim)
        self._projection: Projection | None = None

    def first(self, batch: Batch) -> None:
        """Add a batch to the sums."""
        self._moments.update(batch.here, self._groups(batch))
        self._scatter.update(batch.here)

    def second(self, batch: Batch) -> None:
        """Add a batch to the exact NC1."""
        if self._projection is None:
            self._projection = Projection(self._moments)
        self._projection.update(batch.here, self._groups(batch))

    @property
    def means(self) -> Tensor:
        """Means of the groups, `(K, D)` float64, NaN where there is none."""
        return self._moments.means

    @property
    def counts(self) -> list[int]:
        """Examples of each group."""
        sizes: list[int] = self._moments.counts.tolist()
        return sizes

    @property
    def per_class(self) -> tuple[float | None, ...]:
        """Each group's own contribution to `nc1`."""
        assert self._projection is not None
        return self._projection.per_group()

    def rows(self) -> list[Row]:
        """All collapse measures, and for the true label those of single classes."""
        frame = None if self._head is None else self._head.frame
        measured = collapse(
            self._moments,
            projection=self._projection,
            scatter=self._scatter,
            weight=None if self._head is None else self._head.weight,
            target=frame,
        )
        common = {"grouping": self.grouping, "vertices": "same", "n": measured.num_examples}
        rows = [
            common | {"measure": name, "value": value, "note": measured.notes.get(name, "")}
            for name, value in measured.measures().items()
            if name not in {"ncc", "nc4"}
        ]
        rows += [common | row for row in _registered(self._moments)]
        if self.grouping == "true":
            rows.append(common | valued("etf_distance", etf_distance(self.means), _NOTES))
            rows += class_rows(common | {"measure": "nc1_class"}, self.per_class, self.counts)
        if self.grouping == "landed":
            noise = isotropic_null(self._moments, self._reference.means, seed=self._seed)
            values = {"nc1_landed_null": noise.nc1, "nc1_trace_landed_null": noise.nc1_trace}
            common = common | {"vertices": "clean-train"}
            rows += [common | valued(name, value, {}) for name, value in values.items()]
        return rows

    def _groups(self, batch: Batch) -> Tensor:
        if self._vertices is not None:
            return self._vertices.nearest(batch.here)
        if self.grouping == "target":
            assert batch.target is not None
            return batch.target
        return batch.labels if self.grouping == "true" else batch.predicted


class ReferencePart:
    """What is measured against the clean training vertices: accuracy, collapse, leaps.

    `reference` are the moments of the clean training features by true label; `own` says that the
    features are those that the vertices were made of; `leaping` that they have clean twins.
    """

    def __init__(self, reference: Moments, *, own: bool, leaping: bool) -> None:
        self._reference = reference
        self._cleanref = Projection(reference)
        self._nearest = NearestMeter(reference, leave_one_out=own)
        self._meter = LeapMeter(reference.means) if leaping else None
        self._groups = reference.groups()
        self._noisy: list[Tensor] = []

    def first(self, batch: Batch) -> None:
        """Add a batch; everything here needs one sweep."""
        self._nearest.update(batch.here, batch.labels, predictions=batch.predicted)
        self._cleanref.update(batch.here, batch.labels)
        if self._meter is None:
            return
        self._meter.update(
            batch.clean,
            batch.here,
            batch.labels,
            batch.predicted if batch.target is None else batch.target,
            flipped=batch.predicted != batch.clean_predicted,
        )
        if batch.noisy is not None:
            self._noisy.append(self._groups.nearest(batch.noisy))

    def second(self, batch: Batch) -> None:
        """Nothing to add."""

    def leaps(self) -> Leaps | None:
        """What leaped, or None for clean features."""
        return None if self._meter is None else self._meter.compute()

    def noisy(self) -> Tensor | None:
        """Nearest vertices with noise on top of the attack, `(N,)`, or None."""
        return torch.cat(self._noisy) if self._noisy else None

    def rows(self) -> list[Row]:
        """Measures against the clean training vertices, and the null of leaping alone."""
        common: Row = {"grouping": "true", "vertices": "clean-train"}
        seen, compared = self._nearest.counted
        values = {
            "ncc": (self._nearest.ncc(), seen),
            "nc4": (self._nearest.nc4(), compared),
            "nc1_cleanref": (self._cleanref.nc1(), self._cleanref.count),
        }
        rows = [
            common | {"n": count} | valued(name, value, _NOTES)
            for name, (value, count) in values.items()
        ]
        leaps = self.leaps()
        if leaps is None:
            return rows
        vertices = self._reference.means
        null = leap_null(joint_counts(leaps.labels, leaps.destination, len(vertices)), vertices)
        common = common | {"n": leaps.num_examples}
        nulls = {"nc1_leap_null": null.nc1, "nc1_trace_leap_null": null.nc1_trace}
        return rows + [common | valued(name, value, {}) for name, value in nulls.items()]


def _registered(moments: Moments) -> list[Row]:
    """Values of the measures that come with a function of their own."""
    known = [METRICS.load(name) for name in METRICS.names()]
    notes = dict.fromkeys([measure.name for measure in known], "undefined for these features")
    return [
        valued(measure.name, measure.compute(moments), notes)
        for measure in known
        if measure.compute is not None
    ]

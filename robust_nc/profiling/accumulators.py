"""The measures of one tap under one condition, in parts that can be swept in turn.

A part takes two sweeps over the features (`first`, then `second`) and then gives its rows. Each
holds a few K x D sums of its own, so that parts that do not fit together are swept one by one. The
first sweep is made shard by shard and merged, then the second with the means of all.

>>> reference = Moments(2, 1)
>>> features, labels = torch.tensor([[1.0], [3], [-1], [-3]]), torch.tensor([0, 0, 1, 1])
>>> reference.update(features, labels)
>>> halves = [GroupPart("true", reference, None, seed=0) for _ in range(2)]
>>> for part, rows in zip(halves, (slice(0, 1), slice(1, 4))):
...     x, y = features[rows], labels[rows]
...     part.first(Batch(x, x, None, y, y, y, None))
>>> whole, other = (part.bare() for part in halves)
>>> whole.merge(other)
>>> whole.means.tolist()
[[2.0], [-2.0]]
"""

import copy
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from robust_nc.geometry.alignment import etf_distance
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.groups import Groups
from robust_nc.geometry.leaps import LeapMeter, Leaps
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.nearest import NearestMeter
from robust_nc.geometry.nulls import isotropic_null, joint_counts, leap_null
from robust_nc.geometry.portable import Portable
from robust_nc.geometry.projection import Projection
from robust_nc.geometry.scatter import MAX_DIM, TotalScatter
from robust_nc.profiling.rows import Row, class_rows, valued
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


class Grouping(NamedTuple):
    """What examples are grouped by; "landed" needs the vertices that they may have landed on."""

    name: str
    vertices: Groups | None = None

    @classmethod
    def by(cls, name: str, reference: Moments) -> "Grouping":
        """Group by name; `reference` are the moments that the clean vertices are means of."""
        return cls(name, reference.groups() if name == "landed" else None)

    def of(self, batch: Batch) -> Tensor:
        """Return the groups `(n,)` of a batch."""
        if self.vertices is not None:
            return self.vertices.nearest(batch.here)
        if self.name == "target":
            assert batch.target is not None
            return batch.target
        return batch.labels if self.name == "true" else batch.predicted


class Exact(NamedTuple):
    """The second sweep of one grouping: exact NC1 with means that are known from the first."""

    grouping: Grouping
    projection: Projection

    def second(self, batch: Batch) -> None:
        """Add a batch."""
        self.projection.update(batch.here, self.grouping.of(batch))


class Part(Protocol):
    """What one round of sweeps accumulates, shard by shard."""

    def first(self, batch: Batch) -> None:
        """Add a batch in the first sweep."""

    def bare(self) -> "Part":
        """Return the sums, without what they were made against: to go back, and to be merged."""

    def merge(self, other: Any) -> None:
        """Add the sums of a part of the same kind, of other examples."""

    def exact(self) -> Projection | None:
        """Return what the second sweep is to fill, after the first; None where it needs none."""

    def beside(self, reference: Moments, head: Head | None) -> None:
        """Give back what a bare part has left behind, for the rows."""

    def rows(self) -> list[Row]:
        """Return all values."""


def part_bytes(num_groups: int, dim: int) -> int:
    """Most bytes that a part holds at a time."""
    return _FLOAT * (_COPIES * num_groups * dim + (dim**2 if dim <= MAX_DIM else 0))


class GroupPart(Portable):
    """Collapse of one grouping, with vertices from the features themselves.

    `reference` are the moments of the clean training features: their means are the vertices for
    grouping by where an example landed. `expected` is the number of all examples, where that is
    known. `means` and `per_class` are there after both sweeps.
    """

    def __init__(
        self,
        grouping: str,
        reference: Moments,
        head: Head | None,
        *,
        seed: int,
        expected: int | None = None,
    ) -> None:
        self.grouping = grouping
        self._by: Grouping | None = Grouping.by(grouping, reference)
        self._reference: Moments | None = reference
        self._head = head
        self._seed = seed
        self._moments = Moments(reference.num_groups, reference.dim, device=reference.device)
        self._scatter = TotalScatter(reference.dim, expected=expected)
        self._projection: Projection | None = None

    def first(self, batch: Batch) -> None:
        """Add a batch to the sums."""
        assert self._by is not None
        self._moments.update(batch.here, self._by.of(batch))
        self._scatter.update(batch.here)

    def second(self, batch: Batch) -> None:
        """Add a batch to the exact NC1."""
        assert self._by is not None
        Exact(self._by, self.exact()).second(batch)

    def bare(self) -> "GroupPart":
        """Return the sums alone."""
        twin = copy.copy(self)
        twin._by = twin._reference = twin._head = None
        return twin

    def merge(self, other: "GroupPart") -> None:
        """Add the sums that another part has from its first sweep; in place."""
        self._moments.merge(other._moments)
        self._scatter.merge(other._scatter)

    def exact(self) -> Projection:
        """Return the exact NC1, made of the means that the first sweep has found."""
        if self._projection is None:
            self._projection = Projection(self._moments)
        return self._projection

    def beside(self, reference: Moments, head: Head | None) -> None:
        """Give back what a bare part has left behind, for the rows."""
        self._reference, self._head = reference, head

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
            assert self._reference is not None
            noise = isotropic_null(self._moments, self._reference.means, seed=self._seed)
            values = {"nc1_landed_null": noise.nc1, "nc1_trace_landed_null": noise.nc1_trace}
            common = common | {"vertices": "clean-train"}
            rows += [common | valued(name, value, {}) for name, value in values.items()]
        return rows


class ReferencePart(Portable):
    """What is measured against the clean training vertices: accuracy, collapse, leaps.

    `reference` are the moments of the clean training features by true label; `own` says that the
    features are those that the vertices were made of; `leaping` that they have clean twins.
    """

    def __init__(self, reference: Moments, *, own: bool, leaping: bool) -> None:
        self._reference: Moments | None = reference
        self._cleanref = Projection(reference)
        self._nearest = NearestMeter(reference, leave_one_out=own)
        self._meter = LeapMeter(reference.means) if leaping else None
        self._groups: Groups | None = reference.groups()
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
            assert self._groups is not None
            self._noisy.append(self._groups.nearest(batch.noisy))

    def second(self, batch: Batch) -> None:
        """Nothing to add."""

    def bare(self) -> "ReferencePart":
        """Return what was counted, without the vertices."""
        twin = copy.copy(self)
        twin._reference = twin._groups = None
        twin._cleanref, twin._nearest = self._cleanref.bare(), self._nearest.bare()
        twin._meter = None if self._meter is None else self._meter.bare()
        twin._noisy = list(self._noisy)
        return twin

    def merge(self, other: "ReferencePart") -> None:
        """Append what another part has seen; in place."""
        self._cleanref.merge(other._cleanref)
        self._nearest.merge(other._nearest)
        if self._meter is not None and other._meter is not None:
            self._meter.merge(other._meter)
        self._noisy += [noisy.to(self._noisy[0].device) for noisy in other._noisy]

    def exact(self) -> None:
        """Return nothing: one sweep is enough."""

    def beside(self, reference: Moments, head: Head | None) -> None:
        """Give back what a bare part has left behind, for the rows."""
        self._reference = reference

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
        assert self._reference is not None
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

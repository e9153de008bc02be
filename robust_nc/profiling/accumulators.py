"""Meters of the features of one tap: `update` with a batch, `merge` with those of other examples.

Each holds a few K x D sums. Rows are made of them in `rows` and `leap_rows`; exact NC1 needs the
means of all examples first, and is the meter of a second sweep.

>>> reference = Moments(2, 1)
>>> features, labels = torch.tensor([[1.0], [3], [-1], [-3]]), torch.tensor([0, 0, 1, 1])
>>> reference.update(features, labels)
>>> halves = [GroupMeter(reference, grouping="true") for _ in range(2)]
>>> for meter, rows in zip(halves, (slice(0, 1), slice(1, 4))):
...     x, y = features[rows], labels[rows]
...     meter.update(FeatureBatch(x, x, None, y, y, y, None))
>>> halves[0].merge(halves[1])
>>> halves[0].moments.means.tolist()
[[2.0], [-2.0]]
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from robust_nc.geometry.leaps import LeapMeter, Leaps
from robust_nc.geometry.moments import Groups, Moments
from robust_nc.geometry.nearest import NearestMeter, nearest_vertex
from robust_nc.geometry.portable import Portable
from robust_nc.geometry.projection import Projection
from robust_nc.geometry.scatter import MAX_DIM, TotalScatter

BUDGET = 2**31  # bytes of sums held at a time; a meter that needs more is swept alone
_FLOAT = 8
_COPIES = 12  # K x D matrices of float64 that a meter holds at its peak: a slow test measures it


class FeatureBatch(NamedTuple):
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


class Accumulator(Protocol):
    """What one sweep over the features of a tap accumulates."""

    def update(self, batch: FeatureBatch) -> None:
        """Add a batch."""

    def merge(self, other: Any) -> None:
        """Add what a meter of the same kind has seen of other examples; in place."""


class TapMeter(NamedTuple):
    """How the meter of a tap is made where its features are: `make(moments of clean training)`.

    `nbytes` is the most that it holds at a time.
    """

    tap: str
    make: Callable[..., Accumulator]
    nbytes: int = 0


def part_bytes(num_groups: int, dim: int) -> int:
    """Most bytes that a meter holds at a time."""
    return _FLOAT * (_COPIES * num_groups * dim + (dim**2 if dim <= MAX_DIM else 0))


def rounds(meters: Sequence[TapMeter], *, budget: int = BUDGET) -> Iterator[list[TapMeter]]:
    """Cut meters, in order, into those that are swept together within the budget."""
    chosen: list[TapMeter] = []
    for meter in meters:
        if chosen and sum(each.nbytes for each in (*chosen, meter)) > budget:
            yield chosen
            chosen = []
        chosen.append(meter)
    if chosen:
        yield chosen


class ClassMeter(Portable):
    """Moments by true label, of features whose dimension is not known before."""

    def __init__(self, _: Moments | None, *, num_classes: int) -> None:
        self.num_classes = num_classes
        self.moments: Moments | None = None

    def update(self, batch: FeatureBatch) -> None:
        """Add a batch."""
        if self.moments is None:
            self.moments = Moments(self.num_classes, batch.here.shape[1])
        self.moments.update(batch.here, batch.labels)

    def merge(self, other: "ClassMeter") -> None:
        """Add what another meter has seen; in place."""
        assert self.moments is not None
        assert other.moments is not None
        self.moments.merge(other.moments)


class Grouping(NamedTuple):
    """What examples are grouped by; "landed" needs the vertices that they may have landed on."""

    name: str
    vertices: Groups | None = None

    @classmethod
    def by(cls, name: str, reference: Moments) -> "Grouping":
        """Group by name; `reference` are the moments that the clean vertices are means of."""
        return cls(name, reference.groups() if name == "landed" else None)

    def of(self, batch: FeatureBatch) -> Tensor:
        """Return the groups `(n,)` of a batch."""
        if self.vertices is not None:
            return self.vertices.nearest(batch.here)
        if self.name == "target":
            assert batch.target is not None
            return batch.target
        return batch.labels if self.name == "true" else batch.predicted


class GroupMeter(Portable):
    """Moments and total scatter of one grouping.

    `reference` are the moments of the clean training features, whose means examples land on.
    `expected` is the number of all examples, where that is known.
    """

    against = ("_by",)

    def __init__(self, reference: Moments, *, grouping: str, expected: int | None = None) -> None:
        self.grouping = grouping
        self.moments = Moments(reference.num_groups, reference.dim, device=reference.device)
        self.scatter = TotalScatter(reference.dim, expected=expected)
        self._by = Grouping.by(grouping, reference)

    def update(self, batch: FeatureBatch) -> None:
        """Add a batch."""
        self.moments.update(batch.here, self._by.of(batch))
        self.scatter.update(batch.here)

    def merge(self, other: "GroupMeter") -> None:
        """Add what another meter has seen; in place."""
        self.moments.merge(other.moments)
        self.scatter.merge(other.scatter)


class ExactMeter(Portable):
    """Exact NC1 of one grouping, onto means that a first sweep has found; by true label NC4 too."""

    against = ("_by",)

    def __init__(
        self, reference: Moments, *, grouping: str, onto: Projection, own: Moments | None = None
    ) -> None:
        self.projection = onto.on(reference.device).fresh()
        self.nearest: NearestMeter | None = None
        if own is not None:
            self.nearest = NearestMeter(own.on(reference.device), leave_one_out=False)
        self._by = Grouping.by(grouping, reference)

    def update(self, batch: FeatureBatch) -> None:
        """Add a batch."""
        self.projection.update(batch.here, self._by.of(batch))
        if self.nearest is not None:
            self.nearest.update(batch.here, batch.labels, predictions=batch.predicted)

    def merge(self, other: "ExactMeter") -> None:
        """Add what another meter has seen; in place."""
        self.projection.merge(other.projection)
        if self.nearest is not None and other.nearest is not None:
            self.nearest.merge(other.nearest)


class VertexMeter(Portable):
    """What is measured against the clean training vertices: accuracy, collapse, leaps.

    `reference` are the moments of the clean training features by true label; `own` says that the
    features are those that the vertices were made of; `leaping` that they have clean twins.
    """

    against = ("_groups",)

    def __init__(self, reference: Moments, *, own: bool, leaping: bool) -> None:
        self.cleanref = Projection(reference)
        self.nearest = NearestMeter(reference, leave_one_out=own)
        self._leaps = LeapMeter(reference.means) if leaping else None
        self._groups = reference.groups()
        self._noisy: list[Tensor] = []

    def update(self, batch: FeatureBatch) -> None:
        """Add a batch."""
        self.nearest.update(batch.here, batch.labels, predictions=batch.predicted)
        self.cleanref.update(batch.here, batch.labels)
        if self._leaps is None:
            return
        self._leaps.update(
            batch.clean,
            batch.here,
            batch.labels,
            batch.predicted if batch.target is None else batch.target,
            flipped=batch.predicted != batch.clean_predicted,
        )
        if batch.noisy is not None:
            self._noisy.append(self._groups.nearest(batch.noisy))

    def merge(self, other: "VertexMeter") -> None:
        """Add what another meter has seen; in place."""
        self.cleanref.merge(other.cleanref)
        self.nearest.merge(other.nearest)
        if self._leaps is not None and other._leaps is not None:
            self._leaps.merge(other._leaps)
        self._noisy += [noisy.to(self._noisy[0].device) for noisy in other._noisy]

    def leaps(self) -> Leaps | None:
        """What leaped, or None for clean features."""
        return None if self._leaps is None else self._leaps.compute()

    def noisy(self) -> Tensor | None:
        """Nearest vertices with noise on top of the attack, `(N,)`, or None."""
        return torch.cat(self._noisy) if self._noisy else None


class OnePassMeter(Portable):
    """All that one sweep can measure: leaps, moments by true label and by where examples landed."""

    def __init__(self, reference: Moments) -> None:
        groups, dim, device = reference.num_groups, reference.dim, reference.device
        self.leaps = LeapMeter(reference.means)
        self.true, self.landed = (Moments(groups, dim, device=device) for _ in range(2))

    def update(self, batch: FeatureBatch) -> None:
        """Add a batch."""
        assert self.leaps.vertices is not None
        self.leaps.update(batch.clean, batch.here, batch.labels)
        self.true.update(batch.here, batch.labels)
        self.landed.update(batch.here, nearest_vertex(batch.here, self.leaps.vertices))

    def merge(self, other: "OnePassMeter") -> None:
        """Add what another meter has seen; in place."""
        self.leaps.merge(other.leaps)
        self.true.merge(other.true)
        self.landed.merge(other.landed)

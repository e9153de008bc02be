"""Memorization of wrong labels, and the dilation of collapse that comes with it.

After Nguyen, Levie, Lienen, Kutyniok, Huellermeier, arXiv 2206.05530. A corrupted example has the
original class o and was assigned the class c; vertices mu are the class means of the *uncorrupted*
examples. Where a network memorises, the features of corrupted examples move from mu_o to mu_c: the
geometry of a leap, measured by the same function (`leaps.along_edges`), except that the way
begins at mu_o, since there is no feature that the example would have had under its own label.

>>> import torch
>>> features = torch.tensor([[0.0, 0], [0, 0], [4, 0], [4, 0], [3, 0]])
>>> assigned, original = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 0])
>>> found = measure_memorization(features, assigned, original, num_classes=2)
>>> found.memorization, found.corruption_bias, found.memorised_way
(3.0, 1.0, 0.75)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.inputs import as_features, as_vertices, check_features
from robust_nc.geometry.leaps import along_edges, make_frame
from robust_nc.geometry.moments import Moments, blocks
from robust_nc.types import Features, Labels

_NO_MEMORY = "undefined: no corrupted example of a class with two uncorrupted ones"
_NO_EDGE = "undefined: no corrupted example between two vertices that differ"
_NOTES = {
    "memorization": _NO_MEMORY,
    "memorization_relative": f"{_NO_MEMORY}, or all vertices coincide",
    "corruption_bias": _NO_EDGE,
    "memorised_way": _NO_EDGE,
    "memorised_off_edge": _NO_EDGE,
}
MEASURES = tuple(_NOTES)


@dataclass(frozen=True, kw_only=True, eq=False)
class Memorization:
    """What became of the corrupted examples; `None` with a reason in `notes` without a value.

    - `memorization`: |m - mu_o|, the mean over the corrupted examples of each original class, then
      the unweighted mean over the classes that have some; in units of the features.
      `memorization_relative`: over the mean distance between vertices, to compare networks.
    - `corruption_bias`: mean over corrupted examples of <m - mu_c, (mu_o - mu_c) / |mu_o - mu_c|>,
      in units of the features: 0 memorised, |mu_o - mu_c| not at all.
    - `memorised_way`: mean way of m along the edge from mu_o to mu_c: 0 not memorised, 1
      wholly. `memorised_off_edge`: mean distance from that edge, in edge lengths.
    - `per_class` (K): memorization by original class, None without; `counts` (K) its examples.
    - `biases`, `t` (M,) float64 of the examples that have an edge; `undefined` counts the others
      among the `num_examples` corrupted ones.
    """

    memorization: float | None
    memorization_relative: float | None
    corruption_bias: float | None
    memorised_way: float | None
    memorised_off_edge: float | None
    per_class: tuple[float | None, ...]
    counts: tuple[int, ...]
    num_examples: int
    undefined: int
    biases: Tensor
    t: Tensor
    notes: Mapping[str, str]

    def measures(self) -> dict[str, float | None]:
        """All scalar measures by name."""
        return {name: getattr(self, name) for name in MEASURES}


class _Row(NamedTuple):
    """What is kept of each corrupted example, `(n,)` each: original class, |m - mu_o|, its way."""

    original: Tensor
    distance: Tensor
    bias: Tensor
    t: Tensor
    off: Tensor


class CorruptionMeter:
    """Accumulates corrupted examples against the vertices `(K, D)` of the uncorrupted ones.

    A class without a vertex is a row of NaN. Two passes over the data: first the `Moments` of the
    uncorrupted examples, whose `means` are the vertices; a few numbers are kept of each example.
    """

    def __init__(self, vertices: Tensor) -> None:
        self.vertices = as_vertices(vertices)
        self._frame = make_frame(self.vertices)
        nothing = self.vertices[:0, 0]
        nobody = torch.zeros(0, dtype=torch.int64, device=self.vertices.device)
        self._rows = [_Row(nobody, nothing, nothing, nothing, nothing)]

    def update(self, features: Tensor, assigned: Tensor, original: Tensor) -> None:
        """Add features `(n, D)` with assigned and original classes `(n,)`.

        Examples whose two classes agree are not corrupted, and passed over.
        """
        groups, dim = self.vertices.shape
        check_features(features, dim=dim)
        given, own = _both(assigned, original, len(features), groups)
        corrupted = (given != own).nonzero().flatten()
        for rows in blocks(len(corrupted), dim, scale=4):
            chosen = corrupted[rows]
            part = features[chosen.to(features.device)].detach().to(self.vertices.device)
            ends = (labels[chosen].to(self.vertices.device) for labels in (own, given))
            self._rows.append(self._measured(part, *ends))

    def _measured(self, features: Features, original: Labels, assigned: Labels) -> _Row:
        """With t along the edge of length L from mu_o to mu_c, the bias is (1 - t) L."""
        moves = features.double() - self.vertices[original]
        distance = torch.linalg.vector_norm(moves, dim=1)
        inner = moves @ self._frame.centred.rows.T
        way = along_edges(inner, distance, original, assigned, self._frame)
        return _Row(original, distance, (1 - way.t) * way.length, way.t, way.off)

    def compute(self) -> Memorization:
        """Return the measures of everything seen."""
        row = _Row(*(torch.cat(column) for column in zip(*self._rows, strict=True)))
        there = torch.isfinite(row.distance)  # of those whose original class has a vertex
        original, groups = row.original[there], len(self.vertices)
        total = torch.zeros_like(self.vertices[:, 0]).index_add_(0, original, row.distance[there])
        sums, counts = total.tolist(), torch.bincount(original, minlength=groups).tolist()
        per_class = [s / n if n else None for s, n in zip(sums, counts, strict=True)]
        known = [value for value in per_class if value is not None]
        mean = sum(known) / len(known) if known else None
        scale = float(self._frame.squared.sqrt().nanmean())
        edge = torch.isfinite(row.t)
        values = {
            "memorization": mean,
            "memorization_relative": mean / scale if mean is not None and scale > 0 else None,
            "corruption_bias": _mean(row.bias[edge]),
            "memorised_way": _mean(row.t[edge]),
            "memorised_off_edge": _mean(row.off[edge]),
        }
        return Memorization(
            **values,
            per_class=tuple(per_class),
            counts=tuple(counts),
            num_examples=len(row.t),
            undefined=int((~edge).sum()),
            biases=row.bias[edge],
            t=row.t[edge],
            notes={name: _NOTES[name] for name in MEASURES if values[name] is None},
        )


def measure_memorization(
    features: Any, assigned: Any, original: Any, *, num_classes: int
) -> Memorization:
    """Measure memorization from all training features `(N, D)`, corrupted or not, in memory.

    `assigned` and `original` (N,) are the labels that training saw, and the right ones. NumPy or
    torch. Raises `InputError` for shapes that do not agree, labels outside of 0..K-1, values that
    are not finite, and fewer than two classes with two uncorrupted examples.
    """
    features = as_features(features, "features")
    assigned, original = _both(assigned, original, len(features), num_classes)
    right = assigned == original
    moments = Moments(num_classes, features.shape[1])
    moments.update(features[right.to(features.device)], original[right])
    if int(moments.keep.sum()) < 2:
        raise InputError(
            f"{int(moments.keep.sum())} classes have two uncorrupted examples, and two such "
            "classes are needed; use more examples or less noise"
        )
    meter = CorruptionMeter(moments.means)
    meter.update(features, assigned, original)
    return meter.compute()


def dilation(moments: Moments) -> float | None:
    """Within-class variability of *test* features by true label: their trace NC1.

    None where fewer than two classes have two examples, or all class means coincide.
    """
    return collapse(moments).nc1_trace


def _both(assigned: Any, original: Any, count: int, groups: int) -> tuple[Tensor, Tensor]:
    given = check_labels(assigned, count, groups, what="assigned classes")
    return given, check_labels(original, count, groups, what="original classes").to(given.device)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None

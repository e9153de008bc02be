"""Rows: one value each, with the columns of `record.COLUMNS` that it fills.

>>> valued("ncc", None, {"ncc": "undefined: no example"})
{'measure': 'ncc', 'value': None, 'note': 'undefined: no example'}

Of the network's own answers: how often it is right, and how bad its mistakes are in a tree.

>>> import torch
>>> labels, distances = torch.tensor([0, 1, 1]), torch.tensor([[0.0, 1], [1, 0]])
>>> clean = torch.tensor([[2.0, 1], [0, 1], [1, 0]])
>>> rows = output_rows(clean.flip(1), labels, distances, clean=clean)
>>> for row in rows[:2]:
...     print(row["measure"], round(row["value"], 2), row["n"])
accuracy 0.33 3
ece 0.4 3
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robust_nc.geometry.alignment import etf_distance
from robust_nc.geometry.calibration import expected_calibration_error
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.leaps import Leaps
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.nulls import isotropic_null, joint_counts, leap_null
from robust_nc.geometry.projection import Projection
from robust_nc.geometry.severity import least_cost, mean_severity, output_measures
from robust_nc.geometry.simplex import pair_angles
from robust_nc.profiling.accumulators import GroupMeter, VertexMeter
from robust_nc.registry import METRICS

Row = dict[str, Any]

_NO_SPREAD = "undefined: the means coincide, or fewer than two groups have two examples"
_NO_VERTEX = "undefined: no example of a class with a vertex"
_NOTES = {
    "ncc": _NO_VERTEX,
    "nc4": _NO_VERTEX,
    "etf_distance": "undefined: the class means coincide",
    "induced_severity": "undefined: no example that is right on clean images became wrong",
}


def measured_rows(
    common: Row,
    values: Mapping[str, float | None],
    notes: Mapping[str, str],
    counts: Mapping[str, int] | None = None,
) -> list[Row]:
    """One row per measure with its note, and with its own count of examples where it has one."""
    return [
        common
        | {"measure": name, "value": value, "note": notes.get(name, "")}
        | ({"n": counts[name]} if counts and name in counts else {})
        for name, value in values.items()
    ]


def valued(name: str, value: float | None, notes: Mapping[str, str]) -> Row:
    """Return the measure and value of a row, with the reason where there is none."""
    note = notes.get(name, _NO_SPREAD) if value is None else ""
    return {"measure": name, "value": value, "note": note}


def class_rows(common: Row, values: tuple[float | None, ...], sizes: list[int]) -> list[Row]:
    """One row per class `i`; `sizes` are the examples behind each."""
    return [
        common
        | {"i": i, "value": value, "n": size}
        | {"note": "" if value is not None else "undefined: too few examples, or no spread"}
        for i, (value, size) in enumerate(zip(values, sizes, strict=True))
    ]


def pair_rows(common: Row, moments: Moments) -> list[Row]:
    """Angle of each pair of classes i < j, and of each class i the norm over their mean norm.

    Both of the class means around their mean; only for classes with two examples or more.
    """
    groups = moments.groups()
    if len(groups.kept) < 2:
        return []
    gram, kept, common = groups.gram(), groups.kept.tolist(), common | {"n": moments.total}
    norms = gram.diagonal().clamp_min(0).sqrt()
    shares = (norms / norms.mean()).tolist()
    rows = [
        common | {"i": kept[i]} | _finite("mean_norm_class", share)
        for i, share in enumerate(shares)
    ]
    angles = pair_angles(gram).tolist()
    return rows + [
        common | {"i": kept[i], "j": kept[j]} | _finite("mean_angle_pair", angles[i][j])
        for i, j in itertools.combinations(range(len(kept)), 2)
    ]


def _finite(name: str, value: float) -> Row:
    note = "undefined: a class mean lies at the centre of all"
    return valued(name, value if math.isfinite(value) else None, {name: note})


def group_rows(
    meter: GroupMeter,
    projection: Projection,
    vertices: Tensor,
    *,
    weight: Tensor | None,
    frame: Tensor | None,
    seed: int,
) -> list[Row]:
    """All collapse measures of one grouping, and for the true label those of single classes.

    `projection` is that of the second sweep; `vertices` (K, D) are the clean training ones;
    `weight` and `frame` are those of the head, as `head_rows` returns them.
    """
    measured = collapse(
        meter.moments,
        projection=projection,
        scatter=meter.scatter,
        weight=weight,
        target=frame,
    )
    common = {"grouping": meter.grouping, "vertices": "same", "n": measured.num_examples}
    values = {n: v for n, v in measured.measures().items() if n not in {"ncc", "nc4"}}
    rows = measured_rows(common, values, measured.notes)
    rows += [common | row for row in _registered(meter.moments)]
    if meter.grouping == "true":
        rows.append(common | valued("etf_distance", etf_distance(meter.moments.means), _NOTES))
        sizes = meter.moments.counts.tolist()
        rows += class_rows(common | {"measure": "nc1_class"}, projection.per_group(), sizes)
    if meter.grouping == "landed":
        noise = isotropic_null(meter.moments, vertices, seed=seed)
        nulls = {"nc1_landed_null": noise.nc1, "nc1_trace_landed_null": noise.nc1_trace}
        common = common | {"vertices": "clean-train"}
        rows += [common | valued(name, value, {}) for name, value in nulls.items()]
    return rows


def vertex_rows(meter: VertexMeter, leaps: Leaps | None, vertices: Tensor) -> list[Row]:
    """Measures against the clean training vertices (K, D), and the null of leaping alone."""
    common: Row = {"grouping": "true", "vertices": "clean-train"}
    seen, compared = meter.nearest.counted
    values = {
        "ncc": (meter.nearest.ncc(), seen),
        "nc4": (meter.nearest.nc4(), compared),
        "nc1_cleanref": (meter.cleanref.nc1(), meter.cleanref.count),
    }
    rows = [
        common | {"n": count} | valued(name, value, _NOTES)
        for name, (value, count) in values.items()
    ]
    if leaps is None:
        return rows
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


def output_rows(
    logits: Tensor, labels: Tensor, distances: Tensor | None, *, clean: Tensor | None = None
) -> list[Row]:
    """Accuracy, calibration; with distances (K, K) of classes also severity of mistakes, ranking.

    `logits` `(N, K)` under a condition; `clean` of the clean images, where they are others.
    `crm_...` are the same after re-ranking by the least expected distance (`least_cost`), of points
    that were made against the network as it is. `induced_severity` is `mistake_severity` over the
    examples that are right on clean images: the mistakes that the condition made.
    """
    predicted = logits.argmax(1)
    right, count = int((predicted == labels).sum()), len(labels)
    rows: list[Row] = [{"measure": "accuracy", "value": right / count, "n": count}]
    rows.append(rows[0] | {"measure": "ece", "value": expected_calibration_error(logits, labels)})
    if distances is not None:
        found = output_measures(logits, labels, distances)
        values = {name: value for name, value in found.values.items() if name != "accuracy"}
        rows += measured_rows({}, values, found.notes, found.counts)
        again = output_measures(least_cost(logits, distances), labels, distances)
        ranked = measured_rows({}, again.values, again.notes, again.counts)
        rows += [row | {"measure": f"crm_{row['measure']}"} for row in ranked]
        if clean is not None:
            kept = clean.argmax(1) == labels
            value = mean_severity(labels[kept], predicted[kept], distances)
            mistakes = int((kept & (labels != predicted)).sum())
            rows.append(valued("induced_severity", value, _NOTES) | {"n": mistakes})
    return [{"tap": "output"} | row for row in rows]

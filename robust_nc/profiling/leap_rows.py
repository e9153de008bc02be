"""Rows of what leaped: rates, matrix, landing, per class, severity, return, leap layers."""

import torch
from torch import Tensor

from robust_nc.geometry.classwise import leap_rates, vulnerability
from robust_nc.geometry.leaps import NO_LEAP, Leaps, leap_layer
from robust_nc.geometry.severity import mean_severity, return_rate, severity_null
from robust_nc.profiling.rows import Row, class_rows, measured_rows, valued

DENSE_CLASSES = 20  # leap matrices of more classes leave out their zeros
LANDING_BINS, LANDING_RANGE = 40, (-0.5, 1.5)

_NO_LEAPS = "undefined: no example leaped"
_NOTES = dict.fromkeys(("severity", "severity_null", "return_rate"), _NO_LEAPS)
_BY_LABEL = {
    "leap_rate_wrong": "undefined: no example was given a wrong label",
    "leap_rate_right": "undefined: every example was given a wrong label",
    "leap_rate_memorised": "undefined: no wrong label is what the network says",
}


def leap_rows(
    leaps: Leaps,
    collapse: tuple[float | None, ...],
    *,
    distances: Tensor | None = None,
    noisy: Tensor | None = None,
    given: Tensor | None = None,
    predicted: Tensor | None = None,
) -> list[Row]:
    """Rates, matrix and landing histogram of one tap under one condition, and what goes with them.

    `collapse` is each class's own clean `nc1`; `distances` (K, K) between classes; `noisy` (N,)
    nearest vertices with noise on top of the attack. Where training saw wrong labels, `given` (N,)
    are those that it saw, and `predicted` (N,) what the network says of the clean images.
    """
    common: Row = {"grouping": "none", "vertices": "clean-train", "n": leaps.num_examples}
    rows = measured_rows(common, leaps.measures(), leaps.notes, leaps.counts)
    rows.append(common | {"measure": "undefined", "value": leaps.undefined})
    sparse = len(leaps.matrix) > DENSE_CLASSES
    for i, line in enumerate(leaps.matrix.tolist()):
        rows += [
            common | {"measure": "leap_matrix", "i": i, "j": j, "value": count}
            for j, count in enumerate(line)
            if count or not sparse
        ]
    low, high = LANDING_RANGE
    counts = torch.histc(leaps.t.double().clamp(low, high), LANDING_BINS, low, high)
    rows += [
        common | {"measure": "landing_histogram", "i": i, "value": count, "n": len(leaps.t)}
        for i, count in enumerate(counts.tolist())
    ]
    leaped = leaps.origin != leaps.destination
    some = common | {"n": int(leaped.sum())}
    if distances is not None:
        for name, measure in {"severity": mean_severity, "severity_null": severity_null}.items():
            value = measure(leaps.origin, leaps.destination, distances)
            rows.append(some | valued(name, value, _NOTES))
    if noisy is not None:
        value = return_rate(leaps.origin, leaps.destination, noisy)
        rows.append(some | valued("return_rate", value, _NOTES))
    if given is not None and predicted is not None:
        rows += _by_label(leaps, leaped, given, predicted, common)
    rates = leap_rates(leaps.labels, leaped, len(leaps.matrix))
    rows += class_rows(common | {"measure": "leap_rate_class"}, rates.rates, list(rates.counts))
    # Whether classes that collapsed less leap more.
    related = vulnerability(collapse, rates.rates)
    why = related.notes.get("spearman", "")
    row = {"measure": "vulnerability_correlation", "value": related.spearman, "note": why}
    return [*rows, common | row | {"n": related.num_classes}]


def _by_label(
    leaps: Leaps, leaped: Tensor, given: Tensor, predicted: Tensor, common: Row
) -> list[Row]:
    """Leap rates by whether the label was wrong, and of wrong ones that the network has learnt."""
    labels, predicted = given.to(leaped.device), predicted.to(leaped.device)
    wrong = labels != leaps.labels.to(leaped.device)
    groups = (wrong, ~wrong, wrong & (predicted == labels))
    rows = []
    for name, chosen in zip(_BY_LABEL, groups, strict=True):
        count = int(chosen.sum())
        rate = int((leaped & chosen).sum()) / count if count else None
        rows.append(common | valued(name, rate, _BY_LABEL) | {"n": count})
    return rows


def layer_rows(leaps: dict[str, Leaps], depths: dict[str, int]) -> list[Row]:
    """Count examples by their leap layer; tap "none" for those that end where they began."""
    found = list(leaps.values())
    layers = leap_layer(
        [each.origin for each in found], [each.destination for each in found], found[-1].labels
    )
    counts = torch.bincount(layers[layers >= 0], minlength=len(found)).tolist()
    counts.append(int((layers == NO_LEAP).sum()))
    places = [*((tap, depths[tap]) for tap in leaps), ("none", -1)]
    common = {"measure": "leap_layer", "vertices": "clean-train", "grouping": "none"}
    common["n"] = sum(counts)
    return [
        common | {"tap": tap, "depth": depth, "value": count}
        for (tap, depth), count in zip(places, counts, strict=True)
    ]

"""How bad a leap is: the distance, in a hierarchy of the classes, between where it began and ended.

The distances are any symmetric matrix with a zero diagonal: the height of the lowest common
ancestor in a tree of classes (Bertinetto et al., CVPR 2020), for instance.

>>> import torch
>>> distances = check_distances([[0, 1, 2], [1, 0, 2], [2, 2, 0]], 3)
>>> origin, destination = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 1])
>>> mean_severity(origin, destination, distances), severity_null(origin, destination, distances)
(1.5, 1.5)
>>> farthest_classes(distances, origin).tolist()
[2, 2, 2]
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError
from robust_nc.geometry.inputs import as_tensor


def check_distances(distances: Any, num_classes: int) -> Tensor:
    """Return distances between classes as float64 `(K, K)`, on the device they came on.

    Raises `InputError`, which names the first entry at fault, unless they are finite, 0 or more, 0
    on the diagonal and symmetric to the last bit.
    """
    found = as_tensor(distances, "distances").double()
    if tuple(found.shape) != (num_classes, num_classes):
        raise InputError(
            f"distances must have shape ({num_classes}, {num_classes}), one row and one column "
            f"per class, found {tuple(found.shape)}"
        )
    diagonal = torch.eye(num_classes, dtype=torch.bool, device=found.device)
    for fault, rule in (
        (~found.isfinite(), "be finite"),
        (found < 0, "be 0 or more"),
        (diagonal & (found != 0), "be 0 on the diagonal"),
        (found != found.T, "be symmetric; (d + d.T) / 2 makes them so"),
    ):
        if bool(fault.any()):
            i, j = fault.nonzero()[0].tolist()
            entry = f"distances[{i}, {j}] = {float(found[i, j]):g}"
            other = f" and distances[{j}, {i}] = {float(found[j, i]):g}" if i != j else ""
            raise InputError(f"distances must {rule}; found {entry}{other}")
    return found


def _leaps(origin: Tensor, destination: Tensor, num_classes: int | None) -> tuple[Tensor, Tensor]:
    """Return origin and destination `(M,)` of the examples that leaped."""
    origin = check_labels(origin, len(origin), num_classes, what="origins")
    destination = check_labels(destination, len(origin), num_classes, what="destinations")
    destination = destination.to(origin.device)
    leaped = origin != destination
    return origin[leaped], destination[leaped]


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


def mean_severity(origin: Tensor, destination: Tensor, distances: Tensor) -> float | None:
    """Mean class distance over the examples that leaped, None where none did.

    `origin` and `destination` (N,) are the nearest vertices before and after, `distances` (K, K) as
    `check_distances` returns them. Raises `InputError` for classes out of range.
    """
    before, after = _leaps(origin, destination, len(distances))
    return _mean(distances.to(before.device)[before, after])


def severity_null(origin: Tensor, destination: Tensor, distances: Tensor) -> float | None:
    """`mean_severity` of the same leaps if each had ended at any other class with equal chance.

    An expectation, not a draw. None where no example leaped.
    """
    before, _ = _leaps(origin, destination, len(distances))
    others = max(len(distances) - 1, 1)
    return _mean((distances.sum(1) / others).to(before.device)[before])


def return_rate(origin: Tensor, destination: Tensor, noisy: Tensor) -> float | None:
    """Among examples that leaped, the share whose noisy twin is nearest to its origin again.

    `noisy` (N,) are the nearest vertices of the attacked examples after noise. None where no
    example leaped. Raises `InputError` for lengths that differ.
    """
    before, _ = _leaps(origin, destination, None)
    leaped = origin != destination.to(origin.device)
    noisy = check_labels(noisy, len(origin), what="noisy classes").to(origin.device)
    return _mean(noisy[leaped] == before)


def farthest_classes(distances: Tensor, labels: Tensor) -> Tensor:
    """Return for labels `(N,)` the class at the largest distance, ties to the lowest, `(N,)` int64.

    `distances` (K, K) as `check_distances` returns them. Raises `InputError` for labels out of
    range, and where all classes are at distance 0 from a label.
    """
    labels = check_labels(labels, len(labels), len(distances))
    alone = (distances == 0).all(1).to(labels.device)[labels]
    if bool(alone.any()):
        first = int(labels[alone][0])
        raise InputError(f"class {first} has distance 0 to every class; give it another distance")
    farthest: Tensor = distances.argmax(1).to(labels.device)[labels]
    return farthest


PLACES = (1, 5, 20)  # the k of HD@k

_HD = {f"hd_{k}": k for k in PLACES}
_NDCG = "hier_ndcg"


class OutputMeasures(NamedTuple):
    """Values by name; over how many examples; and why a value is None."""

    values: dict[str, float | None]
    counts: dict[str, int]
    notes: dict[str, str]


def least_cost(logits: Tensor, distances: Tensor) -> Tensor:
    """Return minus the expected distance of each class, `(N, K)` float64, under the softmax.

    Its largest entry is the class of least risk: conditional risk minimisation (Karthik et al.,
    ICLR 2021).
    """
    shares = logits.double().softmax(1)
    return -(shares @ distances.to(shares))


def output_measures(
    logits: Tensor, labels: Tensor, distances: Tensor, *, at_once: int = 4096
) -> OutputMeasures:
    """Return accuracy, `mistake_severity`, `hd_1`, `hd_5`, `hd_20` and `hier_ndcg` of logits.

    `logits` `(N, K)` with labels `(N,)`, ranked in float64, so many `at_once`; `distances` (K, K)
    as `check_distances` returns them. Raises `InputError` for logits of another number of classes
    or that are NaN, and for labels out of range.
    """
    num_classes = len(distances)
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise InputError(
            f"logits must have shape (N, {num_classes}), one column per class of the distances, "
            f"found {tuple(logits.shape)}"
        )
    if bool(logits.isnan().any()):
        raise InputError("logits must be numbers, found NaN")
    labels = check_labels(labels, len(logits), num_classes).to(logits.device)
    distances = distances.to(logits.device).double()
    count, mistakes, severity, totals = len(logits), 0, 0.0, dict[str, float]()
    for z, y in zip(torch.split(logits, at_once), torch.split(labels, at_once), strict=True):
        away, predicted = distances[y], z.argmax(1)
        wrong = predicted != y
        mistakes += int(wrong.sum())
        severity += float(away.gather(1, predicted[:, None]).squeeze(1)[wrong].sum())
        best = away.sort(dim=1).values
        for name, value in _rankings(_by_place(z, away), best, distances.max()).items():
            totals[name] = totals.get(name, 0.0) + float(value.sum())
    nothing = "undefined: no example"
    values: dict[str, float | None] = {
        "accuracy": (count - mistakes) / count if count else None,
        "mistake_severity": severity / mistakes if mistakes else None,
    }
    counts = {"accuracy": count, "mistake_severity": mistakes}
    notes = {"accuracy": nothing, "mistake_severity": "undefined: no mistake"}
    for name in (*_HD, _NDCG):
        total = totals.get(name)
        values[name] = None if total is None or not count else total / count
        counts[name] = count
        fewer = f"undefined: fewer than {_HD.get(name)} classes"
        absent = "undefined: all classes are at distance 0" if name == _NDCG else fewer
        notes[name] = nothing if total is not None else absent
    return OutputMeasures(values, counts, {n: notes[n] for n, v in values.items() if v is None})


def _by_place(logits: Tensor, away: Tensor) -> Tensor:
    """Distances `(N, K)` of the classes in the order of their logits; tied ones have their mean."""
    ranked, order = logits.sort(dim=1, descending=True, stable=True)
    fresh = torch.ones_like(ranked, dtype=torch.bool)
    fresh[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    run = fresh.cumsum(1) - 1  # numbers the runs of equal logits
    placed = away.gather(1, order)
    total = torch.zeros_like(placed).scatter_add(1, run, placed)
    size = torch.zeros_like(placed).scatter_add(1, run, torch.ones_like(placed))
    mean: Tensor = (total / size.clamp_min(1)).gather(1, run)
    return mean


def _rankings(placed: Tensor, best: Tensor, largest: Tensor) -> dict[str, Tensor]:
    """HD@k and NDCG `(N,)` of distances by place, here and at best; only those that are defined."""
    num_classes = placed.shape[1]
    found = {name: placed[:, :k].mean(1) for name, k in _HD.items() if k <= num_classes}
    if largest > 0:
        places = torch.arange(num_classes, dtype=torch.float64, device=placed.device)
        discount = 1 / torch.log2(places + 2)
        gain, most = ((1 - each / largest) @ discount for each in (placed, best))
        found[_NDCG] = gain / most
    return found

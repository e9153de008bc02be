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

from typing import Any

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

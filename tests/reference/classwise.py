"""Per-class leaps, rank correlation and severity straight from the definitions, in loops."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def leap_rates(labels: Labels, leaped: NDArray[np.bool_], count: int) -> list[float | None]:
    found: list[float | None] = []
    for k in range(count):
        own = [bool(x) for x, label in zip(leaped, labels, strict=True) if label == k]
        found.append(sum(own) / len(own) if own else None)
    return found


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    u, v = np.asarray(x) - np.mean(x), np.asarray(y) - np.mean(y)
    return float(np.sum(u * v) / np.sqrt(np.sum(u * u) * np.sum(v * v)))


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; ties share the mean of their places."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def severity(origin: Labels, destination: Labels, distances: Array) -> tuple[float, float]:
    """Mean severity, and its expectation if every leap went to a random other class."""
    count = len(distances)
    found, null = [], []
    for a, b in zip(origin, destination, strict=True):
        if a != b:
            found.append(distances[a, b])
            null.append(np.mean([distances[a, k] for k in range(count) if k != a]))
    return float(np.mean(found)), float(np.mean(null))


def return_rate(origin: Labels, destination: Labels, noisy: Labels) -> float:
    back = [c == a for a, b, c in zip(origin, destination, noisy, strict=True) if a != b]
    return sum(back) / len(back)


def farthest_classes(labels: Labels, distances: Array) -> list[int]:
    """Per label the farthest class; the first of ties."""
    far = []
    for label in labels:
        others = [(d, k) for k, d in enumerate(distances[label]) if d > 0]
        far.append(min(k for d, k in others if d == max(others)[0]))
    return far

"""Measures of outputs in a tree, straight from their definitions: float64, one example at a time.

Where logits are tied, a measure is the mean over every order of the tied classes.
"""

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def height_of_common_ancestor(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """The lowest height at which two classes, given by their groups, are in one group."""
    for height, (one, other) in enumerate(zip(first, second, strict=True), 1):
        if one == other:
            return height
    return len(first) + 1


def orders(logits: Array) -> list[list[int]]:
    """Every order of the classes by falling logit."""
    levels = [np.flatnonzero(logits == value).tolist() for value in sorted(set(logits))[::-1]]
    parts = itertools.product(*(itertools.permutations(level) for level in levels))
    return [[c for level in each for c in level] for each in parts]


def hd(logits: Array, labels: Labels, distances: Array, k: int) -> float:
    values = [
        np.mean([np.mean([distances[y, c] for c in order[:k]]) for order in orders(z)])
        for z, y in zip(logits, labels, strict=True)
    ]
    return float(np.mean(values))


def severity(logits: Array, labels: Labels, distances: Array) -> float | None:
    found = [
        distances[y, np.argmax(z)] for z, y in zip(logits, labels, strict=True) if np.argmax(z) != y
    ]
    return float(np.mean(found)) if found else None


def ndcg(logits: Array, labels: Labels, distances: Array) -> float:
    largest = distances.max()

    def gain(y: int, order: list[int]) -> float:
        return sum(
            (1 - distances[y, c] / largest) / math.log2(place + 1)
            for place, c in enumerate(order, 1)
        )

    values = []
    for z, y in zip(logits, labels, strict=True):
        ideal = gain(y, sorted(range(len(z)), key=lambda c, y=y: distances[y, c]))
        values.append(np.mean([gain(y, order) for order in orders(z)]) / ideal)
    return float(np.mean(values))

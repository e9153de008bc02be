"""Frames and trees from their definitions: float64 NumPy, searches where we have formulas."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def similarities(distances: Array, gamma: float, floor: float) -> Array:
    return (1 - floor) * np.exp(-gamma * distances / distances.max()) + floor


def floor(distances: Array, gamma: float) -> float:
    """Smallest s in [-1, 0] that leaves the similarities positive semidefinite, by bisection."""
    low, high = -1.0, 0.0
    if np.linalg.eigvalsh(similarities(distances, gamma, low))[0] >= 0:
        return low
    for _ in range(60):
        middle = (low + high) / 2
        positive = np.linalg.eigvalsh(similarities(distances, gamma, middle))[0] >= 0
        low, high = (low, middle) if positive else (middle, high)
    return high


def nearest_etf(means: Array) -> Array:
    """Procrustes over orthonormal P (D x K), which needs D >= K; rows of the frame."""
    count = len(means)
    M = np.eye(count) - np.ones((count, count)) / count
    H = (means - means.mean(0)).T
    U, _, Vt = np.linalg.svd(2 / np.sqrt(count - 1) * H / np.linalg.norm(H) @ M, False)
    return np.sqrt(count / (count - 1)) * (U @ Vt @ M).T


def etf_gap(means: Array, frame: Array) -> float:
    """|H - W^T / sqrt(K)|^2, H the centred means at unit norm."""
    H = means - means.mean(0)
    return float(np.sum((H / np.linalg.norm(H) - frame / np.sqrt(len(frame))) ** 2))


def balanced_tree(*sizes: int) -> Array:
    """Distances in a tree whose groups at height 1, 2, ... have these numbers of groups below."""
    labels, block = np.arange(np.prod(sizes)), 1
    distances = np.zeros((len(labels), len(labels)))
    for size in sizes:
        distances += labels[:, None] // block != labels // block
        block *= size
    return distances


def random_tree(num_classes: int, seed: int) -> Array:
    """Distances after merging random groups, two at a time, at random, rising heights."""
    rng = np.random.default_rng(seed)
    distances, height = np.zeros((num_classes, num_classes)), 0.0
    groups = [[label] for label in range(num_classes)]
    while len(groups) > 1:
        height += rng.uniform(0.1, 1.1)
        one, other = (groups.pop(rng.integers(len(groups))) for _ in range(2))
        distances[np.ix_(one, other)] = distances[np.ix_(other, one)] = height
        groups.append(one + other)
    return distances

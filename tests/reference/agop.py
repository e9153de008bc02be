"""Gradient outer products straight from their formulas: float64 NumPy, finite differences."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def jacobian(function: Callable[[Array], Array], point: Array, *, step: float = 1e-5) -> Array:
    """(K x P) by central differences; `function` takes (P,) to (K,)."""
    columns = []
    for p in range(len(point)):
        move = np.zeros_like(point)
        move[p] = step
        columns.append((function(point + move) - function(point - move)) / (2 * step))
    return np.stack(columns, 1)


def agop(function: Callable[[Array], Array], points: Array) -> Array:
    """(P x P), the mean over examples of J^T J."""
    total = np.zeros((points.shape[1],) * 2)
    for point in points:
        rows = jacobian(function, point)
        total += rows.T @ rows
    return total / len(points)


def patch_agop(function: Callable[[Array], Array], patches: Array) -> Array:
    """(in x in) of patches `(N, places, in)`: the mean over examples and places of J^T J."""
    count, places, inputs = patches.shape
    total = np.zeros((inputs, inputs))
    for patch in patches:
        rows = jacobian(lambda u: function(u.reshape(places, inputs)), patch.reshape(-1))
        for place in range(places):
            part = rows[:, place * inputs : (place + 1) * inputs]
            total += part.T @ part
    return total / (count * places)


def root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def pearson(left: Array, right: Array) -> float:
    return float(np.corrcoef(left.ravel(), right.ravel())[0, 1])


def correlations(weight: Array, initial: Array, outer: Array) -> dict[str, float]:
    """All of one layer with weights (out, in), those before training, and its AGOP."""
    nfm, moved = weight.T @ weight, (weight - initial).T @ (weight - initial)
    return {
        "nfm_agop": pearson(nfm, outer),
        "nfm_agop_root": pearson(nfm, root(outer)),
        "nfm_agop_centred": pearson(moved, outer),
        "nfm_agop_root_centred": pearson(moved, root(outer)),
    }


def nc1_trace(features: Array, labels: NDArray[np.int64]) -> float:
    groups = [features[labels == k] for k in np.unique(labels)]
    within = sum(float(np.sum((group - group.mean(0)) ** 2)) for group in groups)
    centre = features.mean(0)
    between = np.mean([np.sum((group.mean(0) - centre) ** 2) for group in groups])
    return within / len(features) / float(between)

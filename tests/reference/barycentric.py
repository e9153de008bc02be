"""Barycentric coordinates straight from their definition: float64 NumPy, one example at a time."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def barycentric(features: Array, vertices: Array) -> Array:
    """Weights of least norm, of sum 1, whose weighted vertices are nearest to each feature.

    Weights of sum 1 are 1/K + Z u with Z an orthonormal basis of what is orthogonal to ones.
    """
    count = len(vertices)
    ones = np.ones((count, 1))
    basis = np.linalg.qr(np.hstack([ones, np.eye(count)[:, 1:]]))[0][:, 1:]
    middle = vertices.mean(0)
    edges = (vertices - middle).T @ basis
    found = [np.linalg.lstsq(edges, h - middle, rcond=1e-10)[0] for h in features]
    return np.array([1 / count + basis @ u for u in found])


def mean_edge(vertices: Array) -> float:
    count = len(vertices)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    return float(np.mean([np.linalg.norm(vertices[i] - vertices[j]) for i, j in pairs]))


def residual(features: Array, vertices: Array) -> Array:
    weights = barycentric(features, vertices)
    gaps = [
        np.linalg.norm(h - sum(w * mu for w, mu in zip(row, vertices, strict=True)))
        for h, row in zip(features, weights, strict=True)
    ]
    return np.array(gaps) / mean_edge(vertices)


def edge_position(h: Array, a: int, b: int, vertices: Array) -> float:
    edge = vertices[b] - vertices[a]
    return float((h - vertices[a]) @ edge / (edge @ edge))

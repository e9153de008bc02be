"""Alignment straight from the definitions: float64 NumPy, D x D matrices, one class at a time."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def alignment(clean: Array, attacked: Array) -> dict[str, object]:
    kept = [k for k in range(len(clean)) if np.isfinite(clean[k]).all()]
    kept = [k for k in kept if np.isfinite(attacked[k]).all()]
    C, A = (rows[kept] - rows[kept].mean(0) for rows in (clean, attacked))
    scale = np.mean([np.linalg.norm(row) for row in C])
    angles: list[float | None] = [None] * len(clean)
    distances: list[float | None] = [None] * len(clean)
    for k, c, a in zip(kept, C, A, strict=True):
        cosine = c @ a / np.linalg.norm(c) / np.linalg.norm(a)
        angles[k] = math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))
        distances[k] = float(np.linalg.norm(a - c) / scale)
    return {
        "angles": angles,
        "distances": distances,
        "angle": np.mean([angles[k] for k in kept]),
        "distance": np.mean([distances[k] for k in kept]),
        "procrustes": _fit(C / np.linalg.norm(C), A / np.linalg.norm(A)),
        "num_classes": len(kept),
    }


def _fit(wanted: Array, given: Array) -> float:
    """What the best turn, reflection and scale leave, carried out."""
    U, sigma, Vt = np.linalg.svd(given.T @ wanted)
    return float(np.sum((wanted - sigma.sum() * given @ U @ Vt) ** 2))


def etf_distance(vertices: Array) -> float:
    """Distance by the singular values."""
    H, M = _unit(vertices)
    count = len(vertices)
    sigma = np.linalg.svd(H @ M, compute_uv=False)
    sigma = np.concatenate([sigma, np.zeros(count)])[: count - 1]
    return float(np.sum((sigma - 1 / np.sqrt(count - 1)) ** 2) + np.sum((H - H @ M) ** 2))


def distance_to_the_nearest_etf(vertices: Array) -> float:
    """Distance to the frame itself, which needs at least as many dimensions as classes."""
    H, M = _unit(vertices)
    U, _, Vt = np.linalg.svd(H @ M, full_matrices=False)
    return float(np.sum((H - U @ Vt @ M / np.sqrt(len(vertices) - 1)) ** 2))


def _unit(vertices: Array) -> tuple[Array, Array]:
    count = len(vertices)
    H = (vertices - vertices.mean(0)).T
    return H / np.linalg.norm(H), np.eye(count) - np.ones((count, count)) / count

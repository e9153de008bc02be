"""Deep recursive feature machines in NumPy, one example at a time (arXiv 2402.13728)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Machine(NamedTuple):
    """By layer the three points of the training rows, M, and train accuracy; then the outputs."""

    points: list[tuple[Array, Array, Array]]
    matrices: list[Array]
    accuracies: list[float]
    outputs: Array


def kernel(x: Array, z: Array, name: str, bandwidth: float) -> float:
    distance = np.sqrt(((x - z) ** 2).sum())
    if name == "laplace":
        return float(np.exp(-distance / bandwidth))
    return float(np.exp(-(distance**2) / (2 * bandwidth**2)))


def gradient(x: Array, z: Array, name: str, bandwidth: float) -> Array:
    """Of the kernel in x; zero at the kink of Laplace."""
    distance = np.sqrt(((x - z) ** 2).sum())
    if distance == 0:
        return np.zeros_like(x)
    value = kernel(x, z, name, bandwidth)
    if name == "laplace":
        return -value / bandwidth * (x - z) / distance
    return -value / bandwidth**2 * (x - z)


def sphere(rows: Array) -> Array:
    """A row of zeros stays zero."""
    return np.stack([row / np.linalg.norm(row) if row.any() else row for row in rows])


def phi(rows: Array, weight: Array, phase: Array | None) -> Array:
    if phase is None:
        return np.maximum(rows @ weight.T, 0)
    return np.sqrt(2 / len(weight)) * np.cos(rows @ weight.T + phase)


def table(x: Array, z: Array, name: str, bandwidth: float) -> Array:
    return np.array([[kernel(a, b, name, bandwidth) for b in z] for a in x])


def solve(x: Array, targets: Array, name: str, bandwidth: float, ridge: float) -> Array:
    return np.linalg.inv(table(x, x, name, bandwidth) + ridge * np.eye(len(x))) @ targets


def agop(x: Array, alpha: Array, name: str, bandwidth: float) -> Array:
    """Sum over examples and classes of outer products of gradients, over its largest entry."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for point in x:
        slopes = np.array([gradient(point, center, name, bandwidth) for center in x])
        for column in alpha.T:
            found = column @ slopes
            total += np.outer(found, found)
    return total / total.max()


def deep_rfm(
    features: Array,
    labels: Array,
    others: Array,
    maps: Sequence[tuple[Array, Array | None]],
    *,
    name: str,
    bandwidth: float,
    ridge: float,
    use_agop: bool,
) -> Machine:
    """Fit on features and labels; the outputs are those of the last machine for `others`."""
    classes = labels.max() + 1
    targets = np.array([[1.0 if label == k else -1.0 for k in range(classes)] for label in labels])
    x, test = features, others
    points, matrices, accuracies = [], [], []
    for weight, phase in maps:
        x, test = sphere(x), sphere(test)
        alpha = solve(x, targets, name, bandwidth, ridge)
        accuracies.append((table(x, x, name, bandwidth) @ alpha).argmax(1) == labels)
        matrix = agop(x, alpha, name, bandwidth) if use_agop else np.eye(x.shape[1])
        values, vectors = np.linalg.eigh(matrix)
        root = vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T
        points.append((x, x @ root, phi(x @ root, weight, phase)))
        matrices.append(matrix)
        x, test = phi(x @ root, weight, phase), phi(test @ root, weight, phase)
    x, test = sphere(x), sphere(test)
    alpha = solve(x, targets, name, bandwidth, ridge)
    outputs = table(test, x, name, bandwidth) @ alpha
    return Machine(points, matrices, [float(right.mean()) for right in accuracies], outputs)


def nc1_trace(rows: Array, labels: Array) -> float:
    """tr(Sigma_W) / tr(Sigma_B), means of groups about the mean of all."""
    groups = [rows[labels == k] for k in np.unique(labels)]
    within = sum(((group - group.mean(0)) ** 2).sum() for group in groups) / len(rows)
    between = [((group.mean(0) - rows.mean(0)) ** 2).sum() for group in groups]
    return float(within / np.mean(between))

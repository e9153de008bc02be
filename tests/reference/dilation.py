"""Memorization straight from its definitions: float64 NumPy, one example at a time."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def memorization(
    features: Array, assigned: Labels, original: Labels, classes: int
) -> dict[str, object]:
    clean = assigned == original
    means = [
        features[clean & (original == k)].mean(0) if (clean & (original == k)).sum() >= 2 else None
        for k in range(classes)
    ]
    distances: list[list[float]] = [[] for _ in range(classes)]
    biases, fractions, off = [], [], []
    for m, c, o in zip(features[~clean], assigned[~clean], original[~clean], strict=True):
        if means[o] is None:
            continue
        distances[o].append(float(np.linalg.norm(m - means[o])))
        if means[c] is None:
            continue
        edge = means[c] - means[o]
        length = np.linalg.norm(edge)
        biases.append(float((m - means[c]) @ (means[o] - means[c]) / length))
        fractions.append(float((m - means[o]) @ edge / length**2))
        off.append(float(np.linalg.norm(m - means[o] - fractions[-1] * edge) / length))
    per_class = [float(np.mean(found)) if found else None for found in distances]
    there = [mean for mean in means if mean is not None]
    lengths = [np.linalg.norm(x - y) for x in there for y in there if x is not y]
    value = float(np.mean([each for each in per_class if each is not None]))
    return {
        "memorization": value,
        "memorization_relative": value / float(np.mean(lengths)),
        "corruption_bias": float(np.mean(biases)),
        "memorised_way": float(np.mean(fractions)),
        "memorised_off_edge": float(np.mean(off)),
        "per_class": per_class,
        "counts": [len(found) for found in distances],
        "undefined": int((~clean).sum()) - len(biases),
    }


def trace_nc1(features: Array, labels: Labels) -> float:
    classes = np.unique(labels)
    means = {k: features[labels == k].mean(0) for k in classes}
    centre = features.mean(0)
    pairs = zip(features, labels, strict=True)
    within = np.mean([np.sum((h - means[k]) ** 2) for h, k in pairs])
    between = np.mean([np.sum((means[k] - centre) ** 2) for k in classes])
    return float(within / between)

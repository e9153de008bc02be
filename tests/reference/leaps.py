"""Leaps straight from their definitions: float64 NumPy, one example at a time."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def _nearest(h: Array, vertices: Array) -> int:
    return int(np.argmin([np.sum((h - mu) ** 2) for mu in vertices]))


def leaps(
    clean: Array,
    attacked: Array,
    labels: Labels,
    vertices: Array,
    destinations: Labels,
    flipped: NDArray[np.bool_],
) -> dict[str, object]:
    count = len(vertices)
    a = [_nearest(h, vertices) for h in clean]
    landing = [_nearest(h, vertices) for h in attacked]
    matrix = np.zeros((count, count), np.int64)
    t, off, selected, near = [], [], [], []
    for i in range(len(clean)):
        matrix[a[i], landing[i]] += 1
        move = attacked[i] - clean[i]
        for end, store in ((int(destinations[i]), t), (landing[i], selected)):
            if end != a[i]:
                edge = vertices[end] - vertices[a[i]]
                way = move @ edge / (edge @ edge)
                store.append(way)
                if store is t:
                    off.append(np.linalg.norm(move - way * edge) / np.linalg.norm(edge))
        if landing[i] != a[i]:
            own = [
                np.linalg.norm(clean[j] - vertices[landing[i]])
                for j in range(len(clean))
                if a[j] == labels[j] == landing[i]
            ]
            if own:
                limit = np.quantile(own, 0.95)
                near.append(np.linalg.norm(attacked[i] - vertices[landing[i]]) <= limit)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    lengths = [np.linalg.norm(vertices[i] - vertices[j]) for i, j in pairs]
    leaped = [x != y for x, y in zip(a, landing, strict=True)]
    both = [x and y for x, y in zip(leaped, flipped, strict=True)]
    either = [x or y for x, y in zip(leaped, flipped, strict=True)]
    neighbour = [
        min((np.linalg.norm(vertices[i] - vertices[j]), j) for j in range(count) if j != i)[1]
        for i in range(count)
    ]
    return {
        "leap_rate": np.mean(leaped),
        "matrix": matrix,
        "row_entropy": [_entropy(matrix, i) for i in range(count)],
        "nearest_share": np.mean(
            [neighbour[x] == y for x, y in zip(a, landing, strict=True) if x != y]
        ),
        "landing_fraction": np.mean(t),
        "landing_median": np.median(t),
        "t": t,
        "off_edge": np.mean(off),
        "off_edges": off,
        "t_selected": np.mean(selected),
        "landed": np.mean(near),
        "displacement": np.mean([np.linalg.norm(m) for m in attacked - clean]) / np.mean(lengths),
        "agreement": sum(both) / sum(either),
        "undefined": sum(int(b) == x for b, x in zip(destinations, a, strict=True)),
    }


def _entropy(matrix: NDArray[np.int64], row: int) -> float | None:
    leaps = [int(n) for j, n in enumerate(matrix[row]) if j != row]
    total = sum(leaps)
    return -sum(n / total * math.log(n / total) for n in leaps if n) if total else None


def leap_layer(origins: list[Labels], landings: list[Labels], labels: Labels) -> list[int]:
    found = []
    depth = len(origins)
    for i in range(len(labels)):
        if origins[-1][i] != labels[i]:
            found.append(-2)
            continue
        starts = [
            first
            for first in range(depth)
            if all(origins[tap][i] != landings[tap][i] for tap in range(first, depth))
        ]
        found.append(min(starts) if starts else -1)
    return found

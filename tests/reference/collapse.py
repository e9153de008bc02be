"""Collapse measures straight from their formulas: float64 NumPy, loops, D x D matrices."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(count) if i != j]


def _cos(u: Array, v: Array) -> float:
    return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))


def _frame(rows: Array, suffix: str) -> dict[str, float]:
    count = len(rows)
    norms = [np.linalg.norm(row) for row in rows]
    gram = np.array([[u @ v for v in rows] for u in rows])
    simplex = (np.eye(count) - np.ones((count, count)) / count) / np.sqrt(count - 1)
    angles = [abs(_cos(rows[i], rows[j]) + 1 / (count - 1)) for i, j in _pairs(count)]
    return {
        f"nc2_norm{suffix}": float(np.std(norms, ddof=1) / np.mean(norms)),
        f"nc2_angle{suffix}": float(np.mean(angles)),
        f"nc2_gram{suffix}": float(np.linalg.norm(gram / np.linalg.norm(gram) - simplex)),
    }


def _apart(u: Array, v: Array) -> float:
    return float(np.sum((u / np.linalg.norm(u) - v / np.linalg.norm(v)) ** 2))


def _pseudo_inverse(matrix: Array, rank: int) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    top = np.argsort(values)[::-1][:rank]
    return (vectors[:, top] / values[top]) @ vectors[:, top].T


def collapse(
    features: Array,
    labels: NDArray[np.int64],
    *,
    weight: Array | None = None,
    target: Array | None = None,
) -> dict[str, float]:
    features = np.asarray(features, np.float64)
    kept = [k for k in np.unique(labels) if np.sum(labels == k) >= 2]
    inside = np.isin(labels, kept)
    features, labels = features[inside], labels[inside]
    groups = [features[labels == k] for k in kept]
    count, total = len(kept), len(features)
    means = np.array([group.mean(0) for group in groups])
    sizes = np.array([len(group) for group in groups])
    spread = np.array([np.mean(np.sum((g - g.mean(0)) ** 2, 1)) for g in groups])
    unbiased = spread * sizes / (sizes - 1)
    mu_g, mu_u = features.mean(0), means.mean(0)
    C, C_w = means - mu_u, means - mu_g

    sigma_w = np.zeros((features.shape[1],) * 2)
    for group in groups:
        for h in group:
            z = h - group.mean(0)
            sigma_w += np.outer(z, z) / total
    sigma_b = sum(np.outer(c, c) for c in C_w) / count
    sigma_bn = sum(n * np.outer(c, c) for n, c in zip(sizes, C_w, strict=True)) / total
    sigma_t = (features - mu_g).T @ (features - mu_g) / total
    rank = min(count - 1, features.shape[1])
    exact = float(np.trace(sigma_w @ _pseudo_inverse(sigma_b, rank)))
    bias = np.mean(unbiased / sizes - 2 * unbiased / total) + sizes @ unbiased / total**2
    cdnv = [
        (spread[i] + spread[j]) / (2 * np.sum((means[i] - means[j]) ** 2)) for i, j in _pairs(count)
    ]
    found = {
        "nc1": exact / count,
        "nc1_unscaled": exact,
        "nc1_trace": float(np.trace(sigma_w) / np.trace(sigma_b)),
        "nc1_trace_debiased": float(np.mean(unbiased) / (np.trace(sigma_b) - bias)),
        "cdnv": float(np.mean(cdnv)),
        "vci": float(1 - np.trace(np.linalg.pinv(sigma_t, hermitian=True) @ sigma_bn) / rank),
        "vci_unweighted": float(
            1 - np.trace(np.linalg.pinv(sigma_t, hermitian=True) @ (C.T @ C / count)) / rank
        ),
        "ncc": _leave_one_out(features, labels, kept),
        **_frame(C, ""),
        **_frame(C_w, "_w"),
    }
    if weight is not None:
        W = np.asarray(weight, np.float64)[kept]
        W_c = W - W.mean(0)
        found |= _frame(W_c, "_head") | _frame(W, "_head_raw")
        found["nc3_w_head_raw"] = _apart(W, C_w)
        product = W @ C.T
        ideal = (np.eye(count) - 1 / count) / np.sqrt(count - 1)
        found["nc3_product"] = float(np.linalg.norm(product / np.linalg.norm(product) - ideal))
        found |= {"nc3": _apart(W_c, C), "nc3_w": _apart(W_c, C_w), "nc3_raw": _apart(W, means)}
    if target is not None:
        S = np.asarray(target, np.float64)[kept]
        S_c = S - S.mean(0)
        found["nc2_target"] = float(
            np.mean([abs(_cos(C[i], C[j]) - _cos(S_c[i], S_c[j])) for i, j in _pairs(count)])
        )
        found["nc2_target_raw"] = float(
            np.mean([abs(_cos(means[i], means[j]) - _cos(S[i], S[j])) for i, j in _pairs(count)])
        )
    return found


def _leave_one_out(features: Array, labels: NDArray[np.int64], kept: list[int]) -> float:
    correct = 0
    for i in range(len(features)):
        others = np.arange(len(features)) != i
        distances = [
            np.linalg.norm(features[i] - features[others & (labels == k)].mean(0)) for k in kept
        ]
        correct += kept[int(np.argmin(distances))] == labels[i]
    return correct / len(features)


def nc4(
    features: Array, labels: NDArray[np.int64], weight: Array, bias: Array, vertices: Array
) -> float:
    differ = 0
    for h in features:
        nearest = int(np.argmin([np.linalg.norm(h - mu) for mu in vertices]))
        differ += nearest != int(np.argmax(weight @ h + bias))
    return differ / len(features)


def cleanref(features: Array, labels: NDArray[np.int64], clean: Array, sizes: Array) -> float:
    """NC1 around clean means: z = h' - mu_clean, Sigma_B of the clean means."""
    C_w = clean - sizes @ clean / np.sum(sizes)
    sigma_b = sum(np.outer(c, c) for c in C_w) / len(clean)
    z = features - clean[labels]
    sigma_w = z.T @ z / len(features)
    return float(np.trace(sigma_w @ _pseudo_inverse(sigma_b, len(clean) - 1))) / len(clean)

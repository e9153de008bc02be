"""Training losses straight from their formulas: float64 NumPy, one example at a time."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def one_hot(label: int, classes: int) -> Array:
    return np.eye(classes)[label]


def divergence(q: Array, p: Array) -> float:
    """KL(q || p); 0 log 0 = 0."""
    return float(sum(a * np.log(a / b) for a, b in zip(q, p, strict=True) if a > 0))


def cross_entropy(logits: Array, label: int) -> float:
    return float(-np.log(softmax(logits)[label]))


def label_smoothing(logits: Array, label: int, *, alpha: float = 0.1) -> float:
    classes = len(logits)
    target = (1 - alpha) * one_hot(label, classes) + alpha / classes
    return float(-(target * np.log(softmax(logits))).sum())


def relaxed_target(logits: Array, label: int, *, alpha: float) -> Array:
    p = softmax(logits)
    target = alpha * p / np.delete(p, label).sum()
    target[label] = 1 - alpha
    return target


def label_relaxation(logits: Array, label: int, *, alpha: float = 0.1) -> float:
    p = softmax(logits)
    if p[label] > 1 - alpha:
        return 0.0
    return divergence(relaxed_target(logits, label, alpha=alpha), p)


def squared_error(logits: Array, label: int, *, target: str = "one_hot") -> float:
    low = {"one_hot": 0.0, "signed": -1.0}[target]
    wanted = [1.0 if k == label else low for k in range(len(logits))]
    return float(np.mean((logits - np.array(wanted)) ** 2))


def margin(logits: Array, label: int, *, kappa: float = 1.0) -> float:
    rivals = [value for k, value in enumerate(logits) if k != label]
    return max(0.0, kappa + max(rivals) - logits[label])


def _cos(u: Array, v: Array) -> float:
    return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))


def dot_regression(features: Array, directions: Array, label: int) -> float:
    return (_cos(features, directions[label]) - 1) ** 2 / 2


def haframe(logits: Array, features: Array, frame: Array, label: int, *, alpha: float) -> float:
    gram = frame @ frame.T
    angular = sum((_cos(w, features) - gram[label, c]) ** 2 for c, w in enumerate(frame))
    return (1 - alpha) * cross_entropy(logits, label) + alpha * angular

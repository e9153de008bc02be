"""Rows of the network's own answers: how often it is right, and how bad its mistakes are in a tree.

>>> import torch
>>> labels, distances = torch.tensor([0, 1, 1]), torch.tensor([[0.0, 1], [1, 0]])
>>> clean = torch.tensor([[2.0, 1], [0, 1], [1, 0]])
>>> rows = output_rows(clean.flip(1), labels, distances, clean=clean)
>>> for row in rows[:2]:
...     print(row["measure"], round(row["value"], 2), row["n"])
accuracy 0.33 3
mistake_severity 1.0 2
"""

from functools import reduce

import torch
from torch import Tensor

from robust_nc.geometry.severity import OutputSums, mean_severity, output_measures, output_sums
from robust_nc.profiling.rows import Row, valued

_AT_ONCE = 4096  # examples whose logits are ranked together


def output_rows(
    logits: Tensor, labels: Tensor, distances: Tensor | None, *, clean: Tensor | None = None
) -> list[Row]:
    """Accuracy; with distances (K, K) between classes also severity of mistakes and ranking.

    `logits` `(N, K)` under a condition; `clean` of the clean images, where they are others.
    `induced_severity` is `mistake_severity` over the examples that are right on clean images: the
    mistakes that the condition made.
    """
    predicted = logits.argmax(1)
    right, count = int((predicted == labels).sum()), len(labels)
    rows: list[Row] = [{"measure": "accuracy", "value": right / count, "n": count}]
    if distances is not None:
        found = output_measures(_summed(logits, labels, distances))
        rows += [
            valued(name, value, found.notes) | {"n": found.counts[name]}
            for name, value in found.values.items()
            if name != "accuracy"
        ]
        if clean is not None:
            kept = clean.argmax(1) == labels
            rows.append(_induced(labels[kept], predicted[kept], distances))
    return [{"tap": "output"} | row for row in rows]


def _summed(logits: Tensor, labels: Tensor, distances: Tensor) -> OutputSums:
    parts = zip(torch.split(logits, _AT_ONCE), torch.split(labels, _AT_ONCE), strict=True)
    return reduce(OutputSums.merge, (output_sums(z, y, distances) for z, y in parts))


def _induced(labels: Tensor, predicted: Tensor, distances: Tensor) -> Row:
    """Severity of the mistakes among examples that were right."""
    value = mean_severity(labels, predicted, distances)
    mistakes = int((labels != predicted).sum())
    why = {"induced_severity": "undefined: no example that is right on clean images became wrong"}
    return valued("induced_severity", value, why) | {"n": mistakes}

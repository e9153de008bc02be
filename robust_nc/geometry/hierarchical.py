"""How bad the mistakes of a classifier are in a tree of its classes, and how well it ranks them.

With d(y, c) the distance of class c from the label y:

- `mistake_severity`: mean d(y, prediction) over the mistakes (Bertinetto et al., CVPR 2020).
- `hd_k`, k = 1, 5, 20: mean d(y, c) over the k classes of largest logits, mistakes or not.
- `hier_ndcg`: our own, since the other two cannot tell a good order of the wrong classes from a bad
  one (Sani and Anand, arXiv 2503.07853; their HOPS it is not). NDCG with relevance
  1 - d(y, c) / max d and discount 1 / log2(1 + place), in [0, 1]; 1 is an order by distance.

Classes of equal logits share their places: each gets the mean over all orders of the tied.

>>> distances = torch.tensor([[0.0, 1, 2], [1, 0, 2], [2, 2, 0]])
>>> logits = torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]])
>>> sums = output_sums(logits, torch.tensor([0, 1, 2]), distances)
>>> {name: round(value, 3) for name, value in output_measures(sums).values.items() if value}
{'accuracy': 0.333, 'mistake_severity': 1.5, 'hd_1': 1.0, 'hier_ndcg': 0.787}
"""

from typing import NamedTuple

import torch
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError

PLACES = (1, 5, 20)  # the k of HD@k

_HD = {f"hd_{k}": k for k in PLACES}
_NDCG = "hier_ndcg"


class OutputSums(NamedTuple):
    """Sums over examples: how many, how many mistakes and how far, and each ranking measure.

    `totals` has no entry for a ranking measure that is undefined for these classes.
    """

    examples: int
    mistakes: int
    severity: float
    totals: dict[str, float]

    def merge(self, other: "OutputSums") -> "OutputSums":
        """Return the sums over both sets of examples, which must be of one tree."""
        totals = {name: value + other.totals[name] for name, value in self.totals.items()}
        return OutputSums(
            self.examples + other.examples,
            self.mistakes + other.mistakes,
            self.severity + other.severity,
            totals,
        )


class OutputMeasures(NamedTuple):
    """Values by name; over how many examples; and why a value is None."""

    values: dict[str, float | None]
    counts: dict[str, int]
    notes: dict[str, str]


def output_sums(logits: Tensor, labels: Tensor, distances: Tensor) -> OutputSums:
    """Sum the measures over a batch of logits `(N, K)` with labels `(N,)`, in float64.

    `distances` (K, K) as `severity.check_distances` returns them. Raises `InputError` for logits of
    another number of classes or that are NaN, and for labels out of range.
    """
    num_classes = len(distances)
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise InputError(
            f"logits must have shape (N, {num_classes}), one column per class of the distances, "
            f"found {tuple(logits.shape)}"
        )
    if bool(logits.isnan().any()):
        raise InputError("logits must be numbers, found NaN")
    labels = check_labels(labels, len(logits), num_classes).to(logits.device)
    distances = distances.to(logits.device).double()
    away = distances[labels]
    predicted = logits.argmax(1)
    wrong = predicted != labels
    severity = away.gather(1, predicted[:, None]).squeeze(1)[wrong].sum()
    best = away.sort(dim=1).values
    rankings = _rankings(_by_place(logits, away), best, distances.max())
    totals = {name: float(value.sum()) for name, value in rankings.items()}
    return OutputSums(len(logits), int(wrong.sum()), float(severity), totals)


def output_measures(sums: OutputSums) -> OutputMeasures:
    """Return accuracy, `mistake_severity`, `hd_1`, `hd_5`, `hd_20` and `hier_ndcg` of the sums."""
    count, mistakes = sums.examples, sums.mistakes
    nothing = "undefined: no example"
    values: dict[str, float | None] = {
        "accuracy": (count - mistakes) / count if count else None,
        "mistake_severity": sums.severity / mistakes if mistakes else None,
    }
    counts = {"accuracy": count, "mistake_severity": mistakes}
    notes = {"accuracy": nothing, "mistake_severity": "undefined: no mistake"}
    for name in (*_HD, _NDCG):
        total = sums.totals.get(name)
        values[name] = None if total is None or not count else total / count
        counts[name] = count
        notes[name] = nothing if total is not None else _why(name)
    return OutputMeasures(values, counts, {n: notes[n] for n, v in values.items() if v is None})


def _why(name: str) -> str:
    if name == _NDCG:
        return "undefined: all classes are at distance 0"
    return f"undefined: fewer than {_HD[name]} classes"


def _by_place(logits: Tensor, away: Tensor) -> Tensor:
    """Distances `(N, K)` of the classes in the order of their logits; tied ones have their mean."""
    ranked, order = logits.sort(dim=1, descending=True, stable=True)
    fresh = torch.ones_like(ranked, dtype=torch.bool)
    fresh[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    run = fresh.cumsum(1) - 1  # numbers the runs of equal logits
    placed = away.gather(1, order)
    total = torch.zeros_like(placed).scatter_add(1, run, placed)
    size = torch.zeros_like(placed).scatter_add(1, run, torch.ones_like(placed))
    mean: Tensor = (total / size.clamp_min(1)).gather(1, run)
    return mean


def _rankings(placed: Tensor, best: Tensor, largest: Tensor) -> dict[str, Tensor]:
    """HD@k and NDCG `(N,)` of distances by place, here and at best; only those that are defined."""
    num_classes = placed.shape[1]
    found = {name: placed[:, :k].mean(1) for name, k in _HD.items() if k <= num_classes}
    if largest > 0:
        places = torch.arange(num_classes, dtype=torch.float64, device=placed.device)
        discount = 1 / torch.log2(places + 2)
        gain, most = ((1 - each / largest) @ discount for each in (placed, best))
        found[_NDCG] = gain / most
    return found

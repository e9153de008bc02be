"""A targeted attack that climbs the tree of classes: per example, the farthest mistake it can make.

>>> import torch
>>> from robust_nc.threat import Ball
>>> tree = ((0.0, 1.0, 2.0), (1.0, 0.0, 2.0), (2.0, 2.0, 0.0))
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
>>> images, labels, ids = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1]), torch.arange(5)
>>> attack = Severest(distances=tree, steps=5)
>>> found = attack(model, images, labels, Ball("L2", 50.0), seed=0, ids=ids)
>>> model(found).argmax(1)[[0, 1, 3, 4]].tolist()
[2, 2, 2, 2]
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robust_nc.attacks.base import AttackInputs, BaseCountedAttack
from robust_nc.attacks.ensemble import geometry_attack, logits_at
from robust_nc.exceptions import InputError
from robust_nc.types import Attacked, CountedAttack, Images, Labels, Logits

_NO_TARGET = -1  # where an example has fewer targets than others
_FAILED, _FAILED_NEARER = -1.0, -2.0  # severities of no mistake, at a farthest target or another


@dataclass(frozen=True, kw_only=True)
class Severest(BaseCountedAttack):
    """Per example, the geometry attack at one target after another, from the farthest inwards.

    `distances` (K, K) between the classes. At each distance from the label, the `targets` likeliest
    classes of the clean image are tried (equal logits: the lower class first). An example leaves
    once the network's prediction is as far from its label as its next target. Kept is the point
    whose prediction is farthest, whichever the target was; between equals, the one with the larger
    margin of the prediction over the label. Where no attempt makes a mistake, it is the point with
    the largest margin of the target over the label among its farthest targets.

    `steps`, `restarts` and `scale` are those of `geometry_attack`, where no other `attack` is
    given. Every attempt runs to the end,
    under either goal. Targets that a caller names, `(N,)` or `(N, T)`, are tried instead, farthest
    first as well. Passes of an example: those of its attempts, a forward more for each, and one
    for the clean image.
    """

    distances: tuple[tuple[float, ...], ...]
    targets: int = 3
    steps: int = 20
    restarts: int = 1
    scale: float = 1.0
    attack: CountedAttack | None = None

    def __post_init__(self) -> None:
        if self.targets < 1:
            raise InputError(f"targets must be at least 1, found {self.targets}")
        classes = len(self.distances)
        if classes < 2 or any(len(row) != classes for row in self.distances):
            raise InputError("distances must be a square matrix, one row and column per class")
        geometry_attack(steps=self.steps, restarts=self.restarts, scale=self.scale)

    def compute(self, inputs: AttackInputs) -> Attacked:
        """Try one target after another, and count passes per example."""
        model, images, labels = inputs.model, inputs.images, inputs.labels
        forwards, backwards = torch.ones_like(labels), torch.zeros_like(labels)
        if not len(images):
            return Attacked(images.clone(), forwards, backwards)
        clean = logits_at(model, images, inputs.classes)
        away = self._away(clean, labels)
        columns = _in_order(away, clean, labels, inputs.target_columns, self.targets)
        attack = self.attack or geometry_attack(
            steps=self.steps, restarts=self.restarts, scale=self.scale
        )
        best = _Best.nothing(images)
        for column in columns.T:
            gain = _pick(away, column.clamp_min(0))  # of examples whose next target is farther
            rows = ((column != _NO_TARGET) & (best.severity < gain)).nonzero().flatten()
            if not len(rows):
                continue
            some = inputs._replace(goal="maximise", targets=column).at(rows)
            found = attack.run(
                *(some.model, some.images, some.labels, some.ball),
                goal=some.goal,
                targets=some.targets,
                seed=some.seed,
                ids=some.ids,
            )
            forwards[rows] += found.forwards + 1
            backwards[rows] += found.backwards
            logits = logits_at(model, found.points, some.labels)
            aims = _Aims(labels[rows], column[rows], columns[rows, 0], away[rows])
            best = best.improved(rows, _scored(found.points, logits, aims))
        return Attacked(best.points, forwards, backwards)

    def _away(self, logits: Logits, labels: Labels) -> Tensor:
        """Distance of every class from the labels, `(N, K)` float64."""
        if logits.shape[1] != len(self.distances):
            raise InputError(
                f"the model has {logits.shape[1]} classes and the distances "
                f"{len(self.distances)}; give distances between the model's classes"
            )
        table = torch.tensor(self.distances, dtype=torch.float64, device=logits.device)
        return table[labels]


class _Best(NamedTuple):
    """Points `(N, C, H, W)`, how far their predictions are from the labels, and by what margin."""

    points: Tensor
    severity: Tensor
    margin: Tensor

    @classmethod
    def nothing(cls, images: Images) -> "_Best":
        """Return what is best before anything was tried."""
        worst = torch.full((len(images),), -torch.inf, device=images.device)
        return cls(images, worst.double(), worst)

    def improved(self, rows: Tensor, tried: "_Best") -> "_Best":
        """Take over the tried points of the examples `rows`, where they are better."""
        severity, margin = self.severity[rows], self.margin[rows]
        equal = tried.severity == severity
        wins = (tried.severity > severity) | (equal & (tried.margin > margin))
        place = (rows[wins],)
        return _Best(
            points=self.points.index_put(place, tried.points[wins]),
            severity=self.severity.index_put(place, tried.severity[wins]),
            margin=self.margin.index_put(place, tried.margin[wins]),
        )


class _Aims(NamedTuple):
    """Labels, targets and farthest targets `(M,)`; distances of all classes from the labels."""

    labels: Labels
    targets: Labels
    farthest: Labels
    away: Tensor


def _scored(points: Images, logits: Logits, aims: _Aims) -> _Best:
    """Say how severe the mistakes at some points are; below zero where there is none."""
    predicted = logits.argmax(1)
    wrong = predicted != aims.labels
    far = _pick(aims.away, aims.targets) == _pick(aims.away, aims.farthest)
    failed = torch.where(far, _FAILED, _FAILED_NEARER).double()
    rival = torch.where(wrong, predicted, aims.targets)
    return _Best(
        points=points,
        severity=torch.where(wrong, _pick(aims.away, predicted), failed),
        margin=_pick(logits, rival) - _pick(logits, aims.labels),
    )


def _in_order(
    away: Tensor, logits: Logits, labels: Labels, named: Tensor | None, count: int
) -> Tensor:
    """Return targets `(N, T)`, farthest first and then likeliest; rows end with `_NO_TARGET`.

    They are the `named` ones, or the `count` likeliest at each distance; never the label.
    """
    own = labels[:, None]
    away = away.scatter(1, own, -torch.inf)
    likely = logits.argsort(dim=1, descending=True, stable=True)
    order = likely.gather(1, away.gather(1, likely).argsort(dim=1, descending=True, stable=True))
    if named is None:
        kept = _rank_among_equals(away.gather(1, order)) < count
    else:
        kept = torch.zeros_like(order, dtype=torch.bool).scatter(1, named, True).gather(1, order)
    kept &= order != own
    front = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    longest = int(kept.sum(1).max())
    return torch.where(kept, order, _NO_TARGET).gather(1, front)[:, :longest]


def _rank_among_equals(values: Tensor) -> Tensor:
    """Number from 0 the equal values that stand side by side in a row."""
    place = torch.arange(values.shape[1], device=values.device).expand_as(values)
    fresh = torch.ones_like(values, dtype=torch.bool)
    fresh[:, 1:] = values[:, 1:] != values[:, :-1]
    return place - torch.where(fresh, place, 0).cummax(1).values


def _pick(values: Tensor, classes: Labels) -> Tensor:
    picked: Tensor = values.gather(1, classes[:, None]).squeeze(1)
    return picked

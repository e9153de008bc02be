"""Several attacks as one: per example, the strongest member.

>>> import torch
>>> from robust_nc.threat import Ball
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
>>> images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
>>> attack = geometry_attack(steps=4, scale=logit_scale(model, images))
>>> attack.run(
...     model, images, labels, Ball("L2", 0.5), goal="maximise", seed=0, ids=torch.arange(5)
... ).forwards.tolist()
[12, 12, 12, 12, 12]
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_nc.attacks.base import AttackInputs, BaseCountedAttack
from robust_nc.attacks.losses import margin
from robust_nc.attacks.model_calls import Oracle
from robust_nc.attacks.pgd import PGD
from robust_nc.exceptions import InputError
from robust_nc.runtime import stream_key, untouched
from robust_nc.types import Attacked, CountedAttack, Images, Logits

_MEDIAN_MARGIN = 5.0  # float32 cross-entropy has no gradient beyond a margin of about 18


@dataclass(frozen=True)
class Strongest(BaseCountedAttack):
    """Per example, the point of the member that did best; passes of all members add up.

    `goal="maximise"`: every member attacks every example, and the point of largest margin is
    kept (towards the target, where there is one each), at one more forward per member.
    `goal="flip"`: members take turns on the examples that none before has flipped, at one more
    forward for each turn but the last.
    """

    attacks: tuple[CountedAttack, ...]

    def __post_init__(self) -> None:
        if not self.attacks:
            raise InputError("an ensemble needs at least one attack, found none")

    def compute(self, inputs: AttackInputs) -> Attacked:
        """Attack with every member, each with draws of its own, and count passes per example."""
        return self._first_flip(inputs) if inputs.goal == "flip" else self._largest_margin(inputs)

    def _member(self, turn: int, inputs: AttackInputs) -> Attacked:
        model, images, labels, ball, goal, targets, seed, ids = inputs
        seed = stream_key(seed, "member", turn)
        return self.attacks[turn].run(
            model, images, labels, ball, goal=goal, targets=targets, seed=seed, ids=ids
        )

    def _first_flip(self, inputs: AttackInputs) -> Attacked:
        points, labels = inputs.images.clone(), inputs.labels
        rows = torch.arange(len(labels), device=labels.device)
        forwards, backwards = torch.zeros_like(labels), torch.zeros_like(labels)
        for turn in range(len(self.attacks)):
            result = self._member(turn, inputs.at(rows))
            points[rows] = result.points
            forwards[rows] += result.forwards
            backwards[rows] += result.backwards
            if turn + 1 < len(self.attacks):
                holds = logits_at(inputs.model, result.points).argmax(1) == labels[rows]
                forwards[rows] += 1
                rows = rows[holds]
            if not len(rows):
                break
        return Attacked(points, forwards, backwards)

    def _largest_margin(self, inputs: AttackInputs) -> Attacked:
        results = [self._member(turn, inputs) for turn in range(len(self.attacks))]
        targets = inputs.targets
        towards = targets if targets is None or targets.ndim == 1 else None
        found = [logits_at(inputs.model, result.points) for result in results]
        values = [margin(logits, inputs.labels, towards, None) for logits in found]
        best = torch.stack(values).argmax(0)
        points = torch.stack([result.points for result in results])
        return Attacked(
            points[best, torch.arange(len(best), device=best.device)],
            torch.stack([result.forwards for result in results]).sum(0) + len(results),
            torch.stack([result.backwards for result in results]).sum(0),
        )


def geometry_attack(*, steps: int = 20, restarts: int = 1, scale: float = 1.0) -> Strongest:
    """The attack of the geometry: PGD on CE of logits over `scale`, and PGD on the margin.

    With `scale` from `logit_scale` it is blind to the scale of the logits.
    """
    return Strongest(
        (
            PGD(steps=steps, restarts=restarts, scale=scale),
            PGD(steps=steps, restarts=restarts, loss="margin"),
        )
    )


def logit_scale(model: nn.Module, images: Tensor, *, batch_size: int = 256) -> float:
    """Divide logits by this, and the median margin of clean images `(N, C, H, W)` is 5.

    The margin is the largest logit minus the second; 1.0 where its median is zero, or without
    images.
    """
    oracle = Oracle(model)
    with untouched(model):
        top = [oracle.logits(part).topk(2, 1).values for part in torch.split(images, batch_size)]
    oracle.check()
    margins = torch.cat(top)
    median = float((margins[:, 0] - margins[:, 1]).median()) if len(margins) else 0.0
    return median / _MEDIAN_MARGIN if median > 0 else 1.0


def logits_at(model: nn.Module, points: Images, classes: Tensor | None = None) -> Logits:
    """Logits of some points, all finite, in one pass; all `classes` must be among the model's."""
    oracle = Oracle(model, classes)
    with untouched(model):
        logits = oracle.logits(points)
    oracle.check()
    return logits

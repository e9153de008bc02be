"""Successes that another machine's rounding could undo, pushed further into the wrong class.

>>> import torch
>>> from robust_nc.threat import Ball
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3, bias=False)).eval()
>>> black, labels = torch.zeros(1, 1, 2, 2), torch.tensor([1])
>>> found = look(Scorer(model), black, labels)
>>> found.margins.item()
0.0
>>> pushed = strengthen(Scorer(model), black, found, black, labels, Ball("Linf", 0.1))
>>> pushed.found.margins.item() > 0
True
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.evaluation.scoring import Scorer, checked_logits, margins
from robust_nc.evidence.contents import TOLERANCE
from robust_nc.runtime.torch_state import full_precision, ran_out
from robust_nc.threat import Ball

STEPS = 5
_LENGTH = 0.25  # of eps; halved for an example after a step that did not help


class Found(NamedTuple):
    """What the model says of points: misclassified, margin, range of the logits; each `(n,)`."""

    flipped: Tensor
    margins: Tensor
    ranges: Tensor

    @property
    def weak(self) -> Tensor:
        """Whether a margin is so small that it may be another one elsewhere, `(n,)`."""
        return self.margins <= TOLERANCE * self.ranges


class Strengthened(NamedTuple):
    """Points `(n, C, H, W)` of at least the margin that was given, and what the model says."""

    points: Tensor
    found: Found


def look(scorer: Scorer, points: Tensor, labels: Tensor) -> Found:
    """Score points `(n, C, H, W)`, float32 on the model's device."""
    seen = scorer.look(points, labels)
    return Found(seen.flipped, seen.margins, seen.logits.amax(1) - seen.logits.amin(1))


def strengthen(
    scorer: Scorer, points: Tensor, found: Found, origins: Tensor, labels: Tensor, ball: Ball
) -> Strengthened:
    """Push the weak ones of `points` by up to five steps of gradient ascent on their margin.

    Every step ends in the ball around `origins`, and the best point is kept. A model that has no
    gradient keeps its points, and so does one whose output is random: there the majority decides.
    All tensors are on the model's device; the model is in eval mode (`runtime.untouched`).
    """
    points, found = points.clone(), Found(*(part.clone() for part in found))
    lengths = torch.full_like(found.margins, _LENGTH * ball.eps)
    for _ in range(STEPS if scorer.draws == 1 else 0):
        rows = found.weak.nonzero().flatten()
        gradient = _gradient(scorer.model, points[rows], labels[rows]) if len(rows) else None
        if gradient is None:
            break
        step = lengths[rows, None, None, None] * ball.steepest(gradient)
        moved = ball.project(points[rows] + step, origins[rows])
        there = look(scorer, moved, labels[rows])
        better = (there.margins > found.margins[rows]) & ball.contains(moved, origins[rows])
        # A misclassified point is not given up for a tie.
        better &= there.flipped | ~found.flipped[rows]
        taken = rows[better]
        points[taken] = moved[better]
        for kept, new in zip(found, there, strict=True):
            kept[taken] = new[better]
        lengths[rows[~better]] /= 2
    return Strengthened(points, found)


def _gradient(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor | None:
    """Gradient of the margins with respect to the points, None where the model has none."""
    points = points.detach().clone().requires_grad_()
    try:
        with full_precision(), torch.enable_grad():
            total = margins(checked_logits(model, points, labels), labels).sum()
            (gradient,) = torch.autograd.grad(total, points)
    except Exception as error:  # a stranger's model may raise anything, here only
        if ran_out(error):
            raise
        return None
    return gradient.nan_to_num(0.0, 0.0, 0.0)

"""From the verdict on a model to its evidence: strengthened, rounded, and looked at again.

The verdict stands before any of this and is not changed by it. Successes that another machine's
rounding could undo are pushed further into the wrong class.

>>> import torch
>>> from robust_nc.evaluation.evaluate_model import evaluate
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
>>> images, labels = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
>>> ball, ids = Ball("Linf", 0.3), torch.arange(6)
>>> outcome = evaluate(model, images, labels, ball, protocol="pgd")
>>> about = {"fingerprint": "", "seed": 0, "draws": 1}
>>> evidence = collect(model, images, labels, ids, outcome, ball, **about)
>>> torch.equal(evidence.robust, outcome.robust)
True
"""

import math
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.checks import check_images, check_labels
from robust_nc.evaluation.evaluate_model import Outcome
from robust_nc.evaluation.scoring import Scorer, checked_logits, halving, margins
from robust_nc.evaluation.state import WRONG
from robust_nc.evidence.coding import LEVELS, coded_levels, rounded
from robust_nc.evidence.file import TOLERANCE, Evidence
from robust_nc.exceptions import InputError
from robust_nc.io.digests import state_digests
from robust_nc.runtime.torch_state import (
    device_of,
    full_precision,
    private_draws,
    ran_out,
    stream_key,
    untouched,
    usable_gradient,
)
from robust_nc.threat import Ball

STEPS = 5
_LENGTH = 0.25  # of eps; halved for an example after a step that did not help
_VALUES = 2**23  # that are rounded at a time, in float64: 64 MiB


class PointScores(NamedTuple):
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
    found: PointScores


def collect(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ids: Tensor,
    outcome: Outcome,
    ball: Ball,
    *,
    fingerprint: str,
    seed: int,
    draws: int,
    batch_size: int = 256,
) -> Evidence:
    """Return the evidence for a verdict, with points that verify on other machines, and are small.

    `images` (N, C, H, W) float32, `labels` and `ids` (N,) int64 and `outcome` are what
    `evaluate` was given and returned, with this `ball` and `seed`; `draws` is the protocol's. A
    success of almost no margin is pushed further (`strengthen`); then each point is replaced by
    one with the coarsest code (`coding`) that is in the ball and misclassified as well, and left
    as it is where there is none. `model` is the one that was judged; it is left as it was found.

    Beside the outcome and the evidence, float copies of one batch are held at a time. Raises
    `InputError` where the parts do not fit, or for a model that fails.
    """
    images, labels = check_images(images), check_labels(labels, len(images))
    _check(images, labels, ids, outcome)
    weights = state_digests(model)
    # A caller's inference mode would forbid gradients.
    with torch.inference_mode(False), ExitStack() as stack:
        stack.enter_context(untouched(model))
        stack.enter_context(private_draws(stream_key(seed, "evidence"), device_of(model)))
        scorer = Scorer(model, draws=draws, seed=seed).naming("the points of the evidence")
        broken = (outcome.clean_correct & ~outcome.robust).nonzero().flatten()
        kept = _all_settled(scorer, outcome, images, labels, broken, ball, batch_size)
        return Evidence(
            ids=ids.cpu().clone(),
            labels=labels.cpu().clone(),
            clean_correct=outcome.clean_correct.clone(),
            robust=outcome.robust.clone(),
            broken_by=outcome.codes.clone(),
            forwards=outcome.forward_passes.clone(),
            backwards=outcome.backward_passes.clone(),
            broken=broken,
            adversarials=kept.points,
            margins=kept.found.margins,
            ranges=kept.found.ranges,
            ball=ball,
            fingerprint=fingerprint,
            weights=weights,
            draws=draws,
            seed=seed,
        )


def _all_settled(
    scorer: Scorer,
    outcome: Outcome,
    images: Tensor,
    labels: Tensor,
    broken: Tensor,
    ball: Ball,
    batch_size: int,
) -> Strengthened:
    """Settle the broken examples batch by batch; return what is left of them, on the CPU."""
    points = torch.empty((len(broken), *images.shape[1:]), dtype=torch.float32)
    none = torch.zeros(2, len(broken), dtype=torch.float32)
    found = PointScores(torch.zeros(len(broken), dtype=torch.bool), *none)
    device = device_of(scorer.model)

    def settle(places: Tensor) -> None:
        rows = broken[places]
        # Copies: what a caller made in inference mode cannot be differentiated.
        given = (outcome.adversarials[rows], images[rows], labels[rows])
        there, origins, wanted = (part.clone().to(device) for part in given)
        kept = _settled(scorer, there, origins, wanted, ball)
        points[places] = kept.points.cpu()
        for target, new in zip(found, kept.found, strict=True):
            target[places] = new.cpu()

    size = max(1, min(batch_size, _VALUES // math.prod(images.shape[1:])))
    halving(settle, torch.arange(len(broken)), size)
    return Strengthened(points, found)


def _settled(
    scorer: Scorer, points: Tensor, origins: Tensor, labels: Tensor, ball: Ball
) -> Strengthened:
    """Strengthen a batch, then round each point as coarsely as it bears."""
    strong = strengthen(scorer, points, look(scorer, points, labels), origins, labels, ball)
    points, found = strong.points.clone(), PointScores(*(part.clone() for part in strong.found))
    exact, origins_cpu = strong.points.cpu(), origins.cpu()
    left = torch.arange(len(points))
    for level in LEVELS:
        if not len(left):
            break
        tried = rounded(exact[left], origins_cpu[left], ball, level)
        fits = ball.contains(tried, origins_cpu[left])
        fits &= coded_levels(tried, origins_cpu[left], ball.bounds) > 0
        rows, tried = left[fits].to(points.device), tried[fits].to(points.device)
        if not len(rows):
            continue
        there = look(scorer, tried, labels[rows])
        good = _as_good(there, PointScores(*(part[rows] for part in strong.found)))
        points[rows[good]] = tried[good]
        for kept, new in zip(found, there, strict=True):
            kept[rows[good]] = new[good]
        done = torch.zeros(len(points), dtype=torch.bool)
        done[rows[good].cpu()] = True
        left = left[~done[left]]
    return Strengthened(points, found)


def _as_good(there: PointScores, exact: PointScores) -> Tensor:
    """Whether rounded points may stand for the exact ones: `(n,)`.

    They are misclassified by more than the tolerance; where not even the exact points are, by at
    least half their margin.
    """
    least = torch.where(
        exact.weak, torch.minimum(exact.margins, exact.margins / 2), TOLERANCE * there.ranges
    )
    enough = (there.margins > TOLERANCE * there.ranges) | (there.margins >= least)
    return there.flipped & enough


def _check(images: Tensor, labels: Tensor, ids: Tensor, outcome: Outcome) -> None:
    count = len(outcome.robust)
    lengths = {"images": len(images), "labels": len(labels), "ids": len(ids)}
    wrong = [f"{size} {name}" for name, size in lengths.items() if size != count]
    if wrong or outcome.adversarials.shape != images.shape:
        raise InputError(
            f"a verdict on {count} examples needs as many images, labels and ids, found "
            f"{', '.join(wrong) or f'images of shape {tuple(images.shape)}'}"
        )
    unknown = outcome.codes[(outcome.codes >= len(outcome.attacks)) | (outcome.codes < WRONG)]
    if len(unknown):
        raise InputError(f"the outcome is broken by {int(unknown[0])}, none of its attacks")


def look(scorer: Scorer, points: Tensor, labels: Tensor) -> PointScores:
    """Score points `(n, C, H, W)`, float32 on the model's device."""
    seen = scorer.look(points, labels)
    return PointScores(seen.flipped, seen.margins, seen.logits.amax(1) - seen.logits.amin(1))


def strengthen(
    scorer: Scorer, points: Tensor, found: PointScores, origins: Tensor, labels: Tensor, ball: Ball
) -> Strengthened:
    """Push the weak ones of `points` by up to five steps of gradient ascent on their margin.

    Every step ends in the ball around `origins`, and the best point is kept. A model that has no
    gradient keeps its points, and so does one whose output is random: there the majority decides.
    All tensors are on the model's device; the model is in eval mode (`runtime.untouched`).
    """
    points, found = points.clone(), PointScores(*(part.clone() for part in found))
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
    return usable_gradient(gradient, points)

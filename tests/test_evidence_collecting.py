"""From the verdict to the evidence: stronger, smaller, and never another verdict."""

import pytest
import torch
from helpers_attacks import (
    BALL,
    SHAPE,
    Coin,
    Failing,
    Limited,
    curved,
    linear,
    own,
    pictures,
    predictions,
)
from helpers_evidence_files import case, collected, outcome_of
from torch import Tensor, nn

from robust_nc.attacks.fab import FAB
from robust_nc.evaluation import evaluate
from robust_nc.evaluation.scoring import Scorer
from robust_nc.evidence.coding import coded_levels
from robust_nc.evidence.collecting import look, strengthen
from robust_nc.evidence.contents import TOLERANCE
from robust_nc.exceptions import InputError
from robust_nc.threat import Ball

LINEAR = linear(SHAPE, 4).eval()
BALLS = [BALL, Ball("L2", 0.3), Ball("L1", 1.0)]


def barely(model: nn.Module, ball: Ball, *, count: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, and points that are misclassified by almost nothing."""
    images = pictures(count, SHAPE)
    labels = predictions(model, images)
    outcome = evaluate(
        model, images, labels, ball, protocol=own(FAB(steps=20, num_targets=3)), checks=False
    )
    points, flipped = outcome.adversarials, ~outcome.robust
    images, labels, points = images[flipped], labels[flipped], points[flipped]
    inside, outside = images.clone(), points.clone()
    for _ in range(30):  # bisect towards the border
        middle = (inside + outside) / 2
        wrong = (predictions(model, middle) != labels)[:, None, None, None]
        inside, outside = torch.where(wrong, inside, middle), torch.where(wrong, middle, outside)
    return images, labels, outside


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_a_success_of_almost_no_margin_is_pushed(ball: Ball) -> None:
    images, labels, points = barely(LINEAR, ball)
    scorer = Scorer(LINEAR)
    before = look(scorer, points, labels)
    assert len(points) > 3
    assert float(before.weak.float().mean()) > 0.9
    after = strengthen(scorer, points, before, images, labels, ball)
    assert bool((after.found.margins >= before.margins).all())
    assert float(after.found.weak.float().mean()) < 0.3
    assert bool(ball.contains(after.points, images).all())
    again = look(scorer, after.points, labels)
    assert torch.equal(again.margins, after.found.margins)


def test_a_clear_success_is_left_alone() -> None:
    images = pictures(8, SHAPE)
    labels = (predictions(LINEAR, images) + 1) % 4
    found = look(Scorer(LINEAR), images, labels)
    kept = strengthen(Scorer(LINEAR), images, found, images, labels, BALL)
    assert torch.equal(kept.points[~found.weak], images[~found.weak])


class Stepped(nn.Module):
    """Without a gradient: raises on tensors that want one."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = LINEAR(torch.from_numpy(images.numpy().copy()))
        return logits


class Flat(nn.Module):
    """Without a graph."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = LINEAR(images.detach())
        return logits


@pytest.mark.parametrize("model", [Stepped(), Flat()], ids=["raises", "no graph"])
def test_a_model_without_a_gradient_keeps_its_points(model: nn.Module) -> None:
    images, labels, points = barely(LINEAR, BALL)
    found = look(Scorer(model), points, labels)
    kept = strengthen(Scorer(model), points, found, images, labels, BALL)
    assert torch.equal(kept.points, points)
    evidence = collected(model, images, labels, outcome_of(points), BALL)
    assert bool((evidence.margins >= found.margins / 2).all())


def test_a_model_that_runs_out_of_memory_gets_smaller_batches() -> None:
    made = case()
    limited = Limited(made.model, 3)
    found = collected(limited, made.images, made.labels, made.outcome, BALL)
    assert max(limited.sizes) > 3
    assert torch.equal(found.adversarials, made.evidence.adversarials)


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_points_are_rounded_and_still_break_the_model(ball: Ball) -> None:
    made = case(ball)
    found, broken = made.evidence, made.evidence.broken
    origins, labels = made.images[broken], made.labels[broken]
    assert torch.equal(found.clean_correct, made.outcome.clean_correct)
    assert torch.equal(found.robust, made.outcome.robust)
    assert torch.equal(found.forwards, made.outcome.forward_passes)
    assert bool(ball.contains(found.adversarials, origins).all())
    seen = look(Scorer(made.model), found.adversarials, labels)
    assert bool(seen.flipped.all())
    torch.testing.assert_close(seen.margins, found.margins, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.ranges, found.ranges, atol=1e-5, rtol=1e-5)
    assert bool((found.margins > TOLERANCE * found.ranges).all())
    levels = coded_levels(found.adversarials, origins, ball.bounds)
    assert float((levels > 0).float().mean()) > 0.7
    assert made.evidence.broken_by.tolist() == [
        {"clean": -2, "": -1, "apgd-ce": 0}[name] for name in made.outcome.broken_by
    ]


class Needle(nn.Module):
    """Wrong at the very points it was made with, and at none other."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.register_buffer("points", points.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        known = (images.flatten(1)[:, None] == self.points[None]).all(2).any(1).float()
        return torch.stack([1 - known, known], 1)


def test_a_point_that_bears_no_rounding_is_kept_exactly() -> None:
    images = pictures(5, SHAPE)
    points = BALL.sample(images, seed=0, ids=torch.arange(5), stream="needle")
    labels = torch.zeros(5, dtype=torch.int64)
    found = collected(Needle(points), images, labels, outcome_of(points), BALL)
    assert torch.equal(found.adversarials, points)
    assert found.margins.tolist() == [1.0] * 5


def test_a_random_model_is_asked_by_draws_and_not_pushed() -> None:
    images = pictures(10, SHAPE)
    points = BALL.sample(images, seed=0, ids=torch.arange(10), stream="x")
    labels, state = torch.zeros(10, dtype=torch.int64), torch.get_rng_state()
    found = collected(Coin(), images, labels, outcome_of(points), BALL, draws=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.draws == 20
    again = collected(Coin(), images, labels, outcome_of(points), BALL, draws=20)
    assert torch.equal(again.adversarials, found.adversarials)


def test_the_model_is_left_as_it_was_found() -> None:
    model, images = curved(SHAPE, 5), pictures(12, SHAPE)
    labels = (predictions(model, images) + 1) % 5
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        found = collected(model, images, labels, outcome_of(images), BALL)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert found.weights.keys() == before.keys()
    assert bool((found.margins > 0).all()), "judged in eval mode"


def test_parts_that_do_not_fit_are_refused() -> None:
    made = case()
    with pytest.raises(InputError, match="29 images"):
        collected(made.model, made.images[:29], made.labels[:29], made.outcome, BALL)
    renamed = made.outcome._replace(attacks=())
    with pytest.raises(InputError, match="broken by 0, none of its attacks"):
        collected(made.model, made.images, made.labels, renamed, BALL)
    with pytest.raises(InputError, match="batch 1 of the points of the evidence"):
        collected(Failing(made.model, 1), made.images, made.labels, made.outcome, BALL)

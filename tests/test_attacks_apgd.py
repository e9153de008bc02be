from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers_attacks import Counted, curved, laid_out, linear, pictures, predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from robust_nc.attacks.apgd import APGD, changed, into_ball_and_box, sparse_step, timetable
from robust_nc.attacks.losses import LOSSES
from robust_nc.exceptions import InputError
from robust_nc.threat import Ball

SHAPE = (1, 8, 8)
BALLS = (Ball("Linf", 0.04), Ball("L2", 0.4), Ball("L1", 1.2))
NOWHERE = 1e-5  # an eps in which nothing flips

each_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)


class Problem(NamedTuple):
    model: nn.Module
    images: Tensor
    labels: Tensor
    ids: Tensor

    def loss(self, points: Tensor, name: str, targets: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return LOSSES[name](self.model(points), self.labels, targets, None)


def _problem(seed: int, *, count: int = 60, classes: int = 6) -> Problem:
    model, images = curved(SHAPE, classes, seed=seed), pictures(count, SHAPE, seed=seed)
    return Problem(model, images, predictions(model, images), torch.arange(count))


# Against the original.


@pytest.mark.parametrize(
    ("ball", "loss", "targeted"),
    [
        (BALLS[0], "ce", False),
        (BALLS[0], "dlr", False),
        (BALLS[0], "dlr", True),
        (BALLS[1], "ce", False),
        (Ball("L1", 4.0), "ce", False),  # wide: the original never moves one pixel alone, we do
    ],
    ids=str,
)
def test_climbs_like_the_original_from_the_same_start(ball, loss, targeted, monkeypatch) -> None:
    same, begun = [], []
    for seed in range(2):
        problem, kind, options = _problem(seed), APGDAttack, {"loss": loss}
        targets = (problem.labels + 1) % 6 if targeted else None
        if targeted:
            kind, options = APGDAttack_targeted, {}
        call = (problem.model, problem.images, problem.labels, ball)
        handle = problem.model.register_forward_pre_hook(lambda _, args: begun.append(args[0]))
        ours = APGD(steps=50, loss=loss)(
            *call, goal="maximise", targets=targets, seed=seed, ids=problem.ids
        )
        handle.remove()
        start = begun[0].detach()
        begun.clear()
        original = kind(call[0], n_iter=50, norm=ball.norm, eps=ball.eps, device="cpu", **options)
        original.init_hyperparam(problem.images)
        original.y_target = targets
        # The original sets its L1 sparsity by a start that it is given, but not by one it draws.
        noise = start - problem.images
        monkeypatch.setattr(torch, "randn", lambda shape, noise=noise: noise)
        theirs = original.attack_single_run(
            problem.images, problem.labels, x_init=None if ball.norm == "L1" else start
        )[0]
        monkeypatch.undo()
        apart = problem.loss(ours, loss, targets) - problem.loss(theirs, loss, targets)
        same.append(apart.abs() < 1e-4)
    assert torch.cat(same).float().mean() > 0.95


# The contract of the pool.


@pytest.mark.parametrize(
    ("ball", "goal", "options"),
    [
        (BALLS[0], "maximise", {"eot": 3}),
        (BALLS[1], "flip", {"eot": 3}),
        (BALLS[2], "flip", {"restarts": 2, "slots": 5}),
        (BALLS[2], "maximise", {"restarts": 2}),
    ],
    ids=str,
)
def test_passes_are_exact_where_nothing_flips(ball: Ball, goal, options) -> None:
    problem = _problem(0, count=9)
    model, attack = Counted(problem.model), APGD(steps=7, **options)
    call = (model, problem.images, problem.labels, Ball(ball.norm, NOWHERE))
    result = attack.run(*call, goal=goal, seed=0, ids=problem.ids)
    times = attack.eot * attack.restarts
    assert result.forwards.tolist() == [8 * times] * 9
    assert result.backwards.tolist() == [7 * times] * 9
    assert (model.forwards, model.backwards) == (9 * 8 * times, 9 * 7 * times)
    assert attack.cost(6) == 14 * times


# Random models.


class _Swinging(nn.Module):
    """Adds another model's logits at every even call, and takes them away at every odd one."""

    def __init__(self, model: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.model, self.other, self.sign = model, other, 1

    def forward(self, images: Tensor) -> Tensor:
        self.sign = -self.sign
        logits: Tensor = self.model(images) + self.sign * self.other(images)
        return logits


@each_ball
def test_eot_climbs_the_mean(ball: Ball) -> None:
    problem = _problem(0, count=8, classes=2)
    noisy = _Swinging(problem.model, linear(SHAPE, 2))
    options = {"goal": "maximise", "seed": 0, "ids": problem.ids}
    attack = APGD(steps=20, loss="margin", eot=2)
    points = attack(noisy, problem.images, problem.labels, ball, **options)
    plain = APGD(steps=20, loss="margin")
    expected, fooled = (
        problem.loss(plain(model, problem.images, problem.labels, ball, **options), "margin")
        for model in (problem.model, noisy)
    )
    assert torch.allclose(problem.loss(points, "margin"), expected, atol=1e-3)
    assert (fooled < expected - 0.1).any()


def test_enlarged_climbs_in_three_radii_and_counts_the_last() -> None:
    model, images, ball = curved(SHAPE, 6), pictures(6, SHAPE), Ball("L1", 0.8)
    slots = laid_out(model, images, predictions(model, images), ball, goal="maximise").everything
    attack = APGD(steps=20, enlarged=True)
    state, far = attack.start(slots), []
    for step in range(20):
        far.append(float(ball.distance(state.points, images).max()) / ball.eps)
        state = attack.step(slots, state)
        assert ball.contains(state.best_points, images).all()
        assert (state.best_loss > -torch.inf).any() == (step >= 12)
    assert far[:6] == pytest.approx([3.0] * 6, rel=1e-3)
    assert far[6:12] == pytest.approx([2.0] * 6, rel=1e-3)
    assert far[12:] == pytest.approx([1.0] * 8, rel=1e-3)


def _slow_projection(point: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """One row in float64, by bisection of the multiplier."""
    change = point - centre

    def at(threshold: float) -> np.ndarray:
        shrunk = np.sign(change) * np.maximum(np.abs(change) - threshold, 0)
        return np.clip(shrunk, -centre, 1 - centre)

    low, high = 0.0, float(np.abs(change).max())
    if np.abs(at(0.0)).sum() <= radius:
        return centre + at(0.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.abs(at(middle)).sum() > radius else (low, middle)
    return centre + at(high)


@given(st.integers(0, 10_000), st.floats(0, 20), st.sampled_from([0.01, 0.3, 3.0]))
@settings(deadline=None, max_examples=60)
def test_projection_onto_ball_and_box(seed: int, radius: float, spread: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    origins = pictures(3, (2, 5, 3), seed=seed)
    noise = torch.randn(origins.shape, generator=draws)
    points = origins + spread * noise * (torch.rand(origins.shape, generator=draws) < 0.7)
    radii = torch.tensor([radius, radius / 3, 0.0])
    found = into_ball_and_box(points, origins, radii, (0.0, 1.0))
    for row in range(3):
        near = _slow_projection(
            *(images[row].double().numpy().ravel() for images in (points, origins)),
            float(radii[row]),
        )
        assert np.abs(found[row].numpy().ravel() - near).max() < 2e-7
        assert Ball("L1", float(radii[row])).contains(found[row : row + 1], origins[row : row + 1])
    assert torch.equal(found[2], origins[2])


def test_projection_stays_in_a_small_ball_of_many_pixels() -> None:
    origins = pictures(4, (3, 64, 64))
    points = origins + torch.randn(origins.shape, generator=torch.Generator().manual_seed(0))
    for eps in (1e-3, 12.0, 500.0):
        found = into_ball_and_box(points, origins, torch.full((4,), eps), (0.0, 1.0))
        assert Ball("L1", eps).contains(found, origins).all()
        assert (Ball("L1", eps).distance(found, origins) > eps * (1 - 1e-3)).all()


def test_sparse_steps_spend_their_length_on_the_steepest_pixels() -> None:
    points = torch.full((3, 1, 2, 2), 0.5)
    gradient = torch.tensor([4.0, -3.0, 2.0, 0.5]).view(1, 1, 2, 2).repeat(3, 1, 1, 1)
    gradient[2] = 0
    length, width = torch.tensor([0.2, 0.3, 0.3]), torch.tensor([2, 3, 2])
    moved = sparse_step(points, gradient, length, width) - points
    wanted = torch.tensor([[0.1, -0.1, 0.0, 0.0], [0.1, -0.1, 0.1, 0.0], [0.0] * 4])
    assert torch.allclose(moved.flatten(1), wanted, atol=1e-6)
    assert changed(points + moved, points).tolist() == [2, 3, 0]


def test_checkpoints_of_the_paper() -> None:
    table = timetable("Linf", 100, enlarged=False, device=torch.device("cpu"))
    at = table.check.nonzero().flatten()
    assert at.tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert table.window[at].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
    table = timetable("L1", 100, enlarged=True, device=torch.device("cpu"))
    assert table.opens.nonzero().flatten().tolist() == [0, 30, 60]
    assert table.closes.nonzero().flatten().tolist() == [29, 59]
    assert table.radius.tolist() == [3.0] * 29 + [2.0] * 30 + [1.0] * 41
    assert table.window[:30].nonzero().flatten().tolist() == list(range(1, 30))
    for steps in (1, 2, 3, 5, 17):
        assert (
            len(timetable("L2", steps, enlarged=False, device=torch.device("cpu")).window) == steps
        )


def test_enlarged_is_for_l1() -> None:
    images, labels, ids = pictures(2, SHAPE), torch.zeros(2, dtype=torch.int64), torch.arange(2)
    with pytest.raises(InputError, match="found Linf"):
        APGD(enlarged=True)(curved(SHAPE, 6), images, labels, Ball("Linf", 0.1), seed=0, ids=ids)

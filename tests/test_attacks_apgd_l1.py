import numpy as np
import pytest
import torch
from helpers_attacks import curved, pictures, predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from robust_nc.attacks.apgd import APGD, changed, into_ball_and_box, sparse_step, timetable
from robust_nc.attacks.model_calls import Oracle
from robust_nc.attacks.slots import Slots
from robust_nc.exceptions import InputError
from robust_nc.threat import Ball

SHAPE = (1, 8, 8)


def test_enlarged_climbs_in_three_radii_and_counts_the_last() -> None:
    model, images, ball = curved(SHAPE, 6), pictures(6, SHAPE), Ball("L1", 0.8)
    labels, ids = predictions(model, images), torch.arange(6)
    slots = Slots(
        images=images,
        labels=labels,
        targets=None,
        ids=ids,
        restarts=torch.zeros_like(ids),
        ball=ball,
        seed=0,
        goal="maximise",
        contested=False,
        oracle=Oracle(model),
    )
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


def test_enlarged_is_not_weaker() -> None:
    gains, flips, ball, ids = [], 0, Ball("L1", 1.2), torch.arange(60)
    for seed in range(3):
        model, images = curved(SHAPE, 6, seed=seed), pictures(60, SHAPE, seed=seed)
        labels = predictions(model, images)
        for sign, attack in ((1, APGD(steps=30, enlarged=True)), (-1, APGD(steps=30))):
            call = (model, images, labels, ball)
            far = attack(*call, goal="maximise", seed=seed, ids=ids)
            flipped = predictions(model, attack(*call, seed=seed, ids=ids)) != labels
            with torch.no_grad():
                gains.append(sign * F.cross_entropy(model(far), labels))
            flips += sign * int(flipped.sum())
    assert sum(gains) > 0
    assert flips >= 0


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

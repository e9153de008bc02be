import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robust_nc.exceptions import InputError, UnknownNameError
from robust_nc.threat import Ball, format_eps, parse_eps

NORMS = ("Linf", "L2", "L1")
SHAPES = ((1, 1, 1), (1, 8, 8), (3, 5, 4), (3, 32, 32))

quick = settings(deadline=None, max_examples=25)
norms = st.sampled_from(NORMS)
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 10_000)
radii = st.floats(1e-3, 1.0)
spreads = st.sampled_from([1e-3, 0.1, 3.0])


def _draw(shape: tuple[int, int, int], seed: int, spread: float) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    origins = (torch.rand((4, *shape), generator=draws) * 1.4 - 0.2).clamp(0, 1)
    return origins + spread * torch.randn(origins.shape, generator=draws), origins


@given(norms, shapes, seeds, radii, spreads)
@quick
def test_projection_is_inside_and_idempotent(norm, shape, seed, eps, spread) -> None:
    points, origins = _draw(shape, seed, spread)
    ball = Ball(norm, eps)
    once = ball.project(points, origins)
    assert ball.contains(once, origins).all()
    assert torch.allclose(ball.project(once, origins), once, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.05, 1.0])
def test_rounding_does_not_add_up_in_large_images(norm: str, eps: float) -> None:
    points, origins = _draw((3, 160, 160), 0, 0.001)
    ball = Ball(norm, eps)
    assert ball.contains(ball.project(points, origins), origins).all()
    assert ball.contains(ball.project(points + 0.1, origins), origins).all()
    assert ball.contains(ball.project(origins.flip(0), origins), origins).all()


def _slow_l1(delta: np.ndarray, eps: float) -> np.ndarray:
    """Soft threshold by bisection (KKT conditions of the projection onto the L1 ball)."""
    if np.abs(delta).sum() <= eps:
        return delta
    low, high = 0.0, np.abs(delta).max()
    for _ in range(200):
        middle = (low + high) / 2
        if np.maximum(np.abs(delta) - middle, 0).sum() > eps:
            low = middle
        else:
            high = middle
    return np.sign(delta) * np.maximum(np.abs(delta) - high, 0)


@given(shapes, seeds, radii, spreads)
@quick
def test_l1_projection_is_the_nearest_point(shape, seed, eps, spread) -> None:
    points, origins = _draw(shape, seed, spread)
    free = Ball("L1", eps, bounds=(-100.0, 100.0))
    found = free.project(points, origins) - origins
    for delta, moved in zip((points - origins).double(), found, strict=True):
        assert np.allclose(_slow_l1(delta.numpy(), eps), moved.numpy(), atol=1e-6)


@given(norms, shapes, seeds, radii)
@quick
def test_projection_is_nearer_than_other_points_of_the_ball(norm, shape, seed, eps) -> None:
    points, origins = _draw(shape, seed, 1.0)
    free = Ball(norm, eps, bounds=(-100.0, 100.0))
    nearest = (free.project(points, origins) - points).flatten(1).norm(dim=1)
    for stream in ("a", "b", "c"):
        other = free.sample(origins, seed=seed, ids=torch.arange(4), stream=stream)
        assert (nearest <= (other - points).flatten(1).norm(dim=1) + 1e-5).all()


@given(norms, shapes, seeds, radii)
@quick
def test_samples_are_inside_and_keyed(norm, shape, seed, eps) -> None:
    _, origins = _draw(shape, seed, 1.0)
    ball, ids = Ball(norm, eps), torch.arange(4) * 1000
    points = ball.sample(origins, seed=seed, ids=ids, stream="a")
    assert ball.contains(points, origins).all()
    alone = ball.sample(origins[2:3], seed=seed, ids=ids[2:3], stream="a")
    assert torch.equal(points[2:3], alone)


@pytest.mark.parametrize("norm", NORMS)
def test_samples_fill_the_ball(norm: str) -> None:
    origins = torch.full((4000, 1, 1, 3), 0.5)
    ball = Ball(norm, 0.3)
    points = ball.sample(origins, seed=0, ids=torch.arange(4000), stream="a")
    shares = (ball.distance(points, origins) / ball.eps) ** 3  # uniform in [0, 1] if uniform inside
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(shares.std()) == pytest.approx(12**-0.5, abs=0.02)
    assert (points - origins).mean(0).abs().max() < 0.01


@given(norms, shapes, seeds)
@quick
def test_steepest_has_norm_one_and_the_largest_inner_product(norm, shape, seed) -> None:
    gradient, origins = _draw(shape, seed, 1.0)
    free = Ball(norm, 1.0, bounds=(-100.0, 100.0))
    steepest = free.steepest(gradient)
    assert torch.allclose(
        free.distance(steepest, torch.zeros_like(origins)), torch.ones(4).double(), atol=1e-5
    )
    best = (steepest * gradient).flatten(1).sum(1)
    dual = {"Linf": 1, "L2": 2, "L1": torch.inf}[norm]
    assert torch.allclose(best, gradient.flatten(1).norm(p=dual, dim=1), rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_of_tiny_and_zero_gradients(norm: str) -> None:
    tiny = torch.full((1, 1, 2, 2), 1e-30)
    size = float(Ball(norm, 1.0).distance(Ball(norm, 1.0).steepest(tiny), torch.zeros_like(tiny)))
    assert size == pytest.approx(1.0, rel=1e-4)
    assert torch.equal(Ball(norm, 1.0).steepest(tiny * 0), tiny * 0)


@pytest.mark.parametrize("norm", NORMS)
def test_no_examples_and_no_radius(norm: str) -> None:
    points, origins = _draw((1, 8, 8), 0, 1.0)
    assert torch.equal(Ball(norm, 0.0).project(points, origins), origins)
    ball = Ball(norm, 0.1)
    assert ball.project(points[:0], origins[:0]).shape == (0, 1, 8, 8)
    assert ball.sample(origins[:0], seed=0, ids=torch.arange(0), stream="a").shape == (0, 1, 8, 8)
    assert ball.contains(points[:0], origins[:0]).shape == (0,)


def test_contains_knows_the_ball_the_bounds_and_the_slack() -> None:
    ball, origin = Ball("Linf", 0.1), torch.full((1, 1, 1, 1), 0.95)
    for point, inside in ((1.0, True), (1.0000001, False), (0.85, True), (0.8499, False)):
        assert bool(ball.contains(torch.full((1, 1, 1, 1), point), origin)) == inside
    assert not ball.contains(torch.full((1, 1, 1, 1), torch.nan), origin)


@pytest.mark.parametrize("eps", [-0.1, -1, float("nan"), float("inf"), True, "8/255", None])
def test_eps_that_is_no_radius_is_refused(eps: object) -> None:
    # With types checked, the type check answers first for what is no number.
    with pytest.raises((ValueError, TypeError), match="eps"):
        Ball("L2", eps)


def test_other_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="did you mean 8/255"):
        Ball("Linf", 8)
    with pytest.raises(UnknownNameError, match="did you mean 'Linf'"):
        Ball("linf", 0.1)
    with pytest.raises(InputError, match="low < high"):
        Ball("L2", 0.1, bounds=(1.0, 0.0))


def test_eps_is_read_and_written_as_people_do() -> None:
    assert parse_eps("8/255") == 8 / 255
    assert parse_eps(0.5) == 0.5
    assert [format_eps(eps) for eps in (8 / 255, 0.5, 0.0, 12.0)] == ["8/255", "0.5", "0", "12"]
    assert str(Ball("L2", 1e308)) == "L2 1e+308"
    assert str(Ball("Linf", 4 / 255)) == "Linf 4/255"
    for wrong in ("eight", "1/0", "1/2/3", "", None, True):
        with pytest.raises(InputError, match="a number or a fraction"):
            parse_eps(wrong)


@given(st.integers(1, 254))
@quick
def test_eps_survives_the_round_trip(levels: int) -> None:
    assert parse_eps(format_eps(levels / 255)) == levels / 255


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 224, 224)], ids=str)
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_no_projection_leaves_the_ball_at_any_size(norm, shape) -> None:
    """Also of grey images, whose pixels are all rounded the same way."""
    draws = torch.Generator().manual_seed(0)
    origins = torch.cat([torch.rand(2, *shape, generator=draws), torch.full((1, *shape), 0.7)])
    steps = (torch.randn(3, *shape, generator=draws), torch.ones(3, *shape))
    for eps in {"Linf": (1 / 255, 0.3), "L2": (1e-3, 36 / 255, 3.0), "L1": (1e-3, 1.0, 12.0)}[norm]:
        ball = Ball(norm, eps)
        for step in steps:
            points = ball.project(origins + step, origins)
            assert ball.contains(points, origins).all()
            excess = ball.distance(points, origins) / eps - 1
            assert norm == "Linf" or excess.max() < 2e-7

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from robust_nc.attacks.fab import PROJECTIONS
from robust_nc.threat import NORMS

each_norm = pytest.mark.parametrize("norm", PROJECTIONS)


def _case(seed: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient and point of a linear function: bounds, zero slopes, zero out of reach."""
    draws = np.random.default_rng(seed)
    gradient = draws.standard_normal(9) * 10.0 ** draws.uniform(-3, 1, 9)
    gradient[draws.random(9) < 0.2] = 0
    point = (draws.random(9) * 1.6 - 0.3).clip(0, 1)
    span = np.abs(gradient).sum()
    value = draws.uniform(-1.2, 1.2) * span * draws.choice([0.01, 0.3, 1])
    return float(np.float32(value)), gradient.astype(np.float32), point.astype(np.float32)


def _least(norm: str, value: float, slope: np.ndarray, point: np.ndarray) -> float:
    """Least norm of a move in the box that makes the function zero, by other means."""
    low, high = -point.astype(float), 1 - point.astype(float)
    slope, one, size = slope.astype(float), np.eye(len(point)), len(point)
    if norm == "L2":
        first, last = 0.0, 1e12
        for _ in range(200):
            middle = (first + last) / 2
            move = (-np.sign(value) * middle * slope).clip(low, high)
            reached = (value + slope @ move) * np.sign(value) <= 0
            first, last = (first, middle) if reached else (middle, last)
        return float(np.linalg.norm(move))
    if norm == "Linf":  # unknowns: the move, and a bound of all its values
        cost, equation = np.r_[np.zeros(size), 1], np.r_[slope, 0]
        upper = np.block([[one, -np.ones((size, 1))], [-one, -np.ones((size, 1))]])
        box = [*zip(low, high, strict=True), (0, None)]
    else:  # unknowns: the move up and the move down
        cost, equation, upper = np.ones(2 * size), np.r_[slope, -slope], None
        box = [(0, edge) for edge in np.r_[high, -low]]
    limit = None if upper is None else np.zeros(len(upper))
    found = linprog(cost, upper, limit, equation[None], [-value], box)
    assert found.success
    return float(found.fun)


@each_norm
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10**6))
def test_projections_are_the_smallest_moves_onto_the_hyperplane(norm: str, seed: int) -> None:
    value, slope, point = _case(seed)
    inputs = torch.tensor([value]), torch.tensor(slope)[None], torch.tensor(point)[None]
    move = PROJECTIONS[norm](*inputs, (0.0, 1.0))[0]
    moved = inputs[2][0] + move
    assert (moved >= -1e-7).all()
    assert (moved <= 1 + 1e-7).all()
    assert (move[slope == 0] == 0).all()
    span = float(np.abs(slope).sum()) + 1e-6
    room = np.where(np.sign(-value * slope) > 0, 1 - point, point)
    out_of_reach = max(abs(value) - float(np.abs(slope) @ room), 0.0)
    left = value + float(slope.astype(float) @ move.double().numpy())
    assert left * np.sign(value) == pytest.approx(out_of_reach, abs=2e-6 * span)
    if out_of_reach == 0:
        size = float(NORMS[norm].size(move[None]))
        assert size == pytest.approx(_least(norm, value, slope, point), rel=1e-3, abs=1e-5)


@each_norm
def test_projections_share_a_gradient_among_points_and_do_not_see_its_scale(norm: str) -> None:
    draws = torch.Generator().manual_seed(0)
    slope, values = torch.randn(5, 30, generator=draws), torch.randn(2, 5, generator=draws)
    points = torch.rand(2, 5, 30, generator=draws)
    together = PROJECTIONS[norm](values, slope[None], points, (0.0, 1.0))
    for turn in range(2):
        alone = PROJECTIONS[norm](values[turn], slope, points[turn], (0.0, 1.0))
        assert torch.equal(together[turn], alone)
    for scale in (1e-20, 1e20):
        scaled = PROJECTIONS[norm](values * scale, slope[None] * scale, points, (0.0, 1.0))
        assert torch.allclose(scaled, together, atol=1e-6)


@each_norm
@pytest.mark.parametrize("value", [0.0, 1.0, -1e30])
def test_projections_without_a_slope_do_not_move(norm: str, value: float) -> None:
    points = torch.rand(3, 30)
    move = PROJECTIONS[norm](torch.full((3,), value), torch.zeros(3, 30), points, (0.0, 1.0))
    assert (move == 0).all()


@each_norm
def test_projections_keep_other_bounds(norm: str) -> None:
    value, slope, point = torch.tensor([-100.0]), torch.ones(1, 4), torch.full((1, 4), 0.5)
    move = PROJECTIONS[norm](value, slope, point, (-1.0, 2.0))
    assert torch.allclose(move, torch.full((1, 4), 1.5))

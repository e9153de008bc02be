import numpy as np
import pytest
import torch
from helpers_attacks import BALLS, Counted, curved, laid_out, linear, pictures, predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.fab_pt import FABAttack_PT
from scipy.optimize import linprog
from torch import Tensor, nn

from robust_nc.attacks.fab import FAB, PROJECTIONS
from robust_nc.threat import NORMS, Ball

SHAPE = (1, 8, 8)
NOWHERE = Ball("Linf", 1e-5)  # nothing flips in there
DUAL = {"Linf": 1, "L2": 2, "L1": torch.inf}

each_norm = pytest.mark.parametrize("norm", DUAL)


# The walk


def _walk(attack: FAB, model: nn.Module, images: Tensor, labels: Tensor, **other) -> Tensor:
    """Distances of the nearest misclassified points on the way, in the ball or not."""
    options = {"ball": Ball("Linf", 0.0), "targets": None} | other
    work = laid_out(
        model, images, labels, options["ball"], goal="maximise", targets=options["targets"]
    )
    slots = work.everything
    state, reach = attack.start(slots), torch.full((len(images),), torch.inf).double()
    for _ in range(attack.rounds):
        state = attack.step(slots, state)
        found = predictions(model, state.points) != labels
        distance = slots.ball.distance(state.points, images)
        reach = torch.where(found, distance.minimum(reach), reach)
    return reach


def _close_to_the_boundary(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of grey images, whose biases put all classes close to each other."""
    model, images = linear(SHAPE, classes), 0.5 + 0.02 * (pictures(12, SHAPE) - 0.5)
    with torch.no_grad():
        model[1].bias -= model(images).mean(0)
    return model, images, predictions(model, images)


def _nearest(model: nn.Module, images: Tensor, labels: Tensor, norm: str) -> Tensor:
    """Distance to the nearest point of another class, the bounds aside."""
    with torch.no_grad():
        logits, weight = model(images), model[1].weight
        gaps = logits.gather(1, labels[:, None]) - logits
        slopes = torch.linalg.vector_norm(weight[labels][:, None] - weight, DUAL[norm], dim=2)
        return (gaps / slopes).scatter(1, labels[:, None], torch.inf).amin(1)


@each_norm
@pytest.mark.parametrize("classes", [2, 4])
def test_the_nearest_misclassified_point_of_a_linear_model_is_found(norm, classes) -> None:
    model, images, labels = _close_to_the_boundary(classes)
    nearest = _nearest(model, images, labels, norm)
    targets = 1 - labels[:, None] if classes == 2 else None
    reach = _walk(FAB(), model, images, labels, ball=Ball(norm, 0.0), targets=targets)
    assert (reach >= (1 - 1e-5) * nearest).all()
    assert (reach <= 1.01 * nearest).all()


@pytest.mark.parametrize("targeted", [True, False])
@each_norm
def test_as_near_as_the_original(norm: str, targeted: bool) -> None:
    ball, ours, theirs = Ball(norm, 0.1), [], []
    for seed, rank in ((0, 2), (1, 2), (0, 3), (1, 3)) if targeted else ((0, 1), (1, 1)):
        model, images = curved(SHAPE, 6, seed=seed).requires_grad_(False), pictures(24, SHAPE)
        labels, ranked = predictions(model, images), model(images).argsort(1, descending=True)
        targets = ranked[:, rank - 1, None] if targeted else None
        ours.append(_walk(FAB(steps=30), model, images, labels, ball=ball, targets=targets))
        attack = FABAttack_PT(model, norm=norm, n_iter=30, eps=0.1)
        attack.target_class = rank
        points = attack.attack_single_run(images.clone(), labels, is_targeted=targeted)
        found = predictions(model, points) != labels
        theirs.append(torch.where(found, ball.distance(points, images), torch.inf))
    ratio = (torch.cat(ours) / torch.cat(theirs)).log()
    assert ratio.isfinite().all(), "the test needs an original that always succeeds"
    assert ratio.median() <= 0.002
    assert ratio.mean() <= 0.003


# The attack in the pool


@pytest.fixture
def batch() -> tuple[Counted, Tensor, Tensor, Tensor]:
    model, images = Counted(curved(SHAPE, 5)), pictures(9, SHAPE)
    labels = predictions(model, images)
    model.calls = model.forwards = model.backwards = 0
    return model, images, labels, torch.arange(9)


@pytest.mark.parametrize(
    ("goal", "restarts", "columns", "forwards", "backwards"),
    [("flip", 1, 1, 8, 7), ("maximise", 2, 3, 48, 42), ("flip", 1, 0, 29, 28)],
)
def test_passes_are_exact_where_nothing_flips(
    batch, goal, restarts, columns, forwards, backwards
) -> None:
    model, images, labels, ids = batch
    others = torch.stack([(labels + turn) % 5 for turn in (1, 2, 3)], 1)[:, :columns]
    attack, targets = FAB(steps=7, restarts=restarts), others if columns else None
    result = attack.run(model, images, labels, NOWHERE, goal=goal, targets=targets, seed=0, ids=ids)
    assert result.forwards.tolist() == [forwards] * 9
    assert result.backwards.tolist() == [backwards] * 9
    assert (model.forwards, model.backwards) == (9 * forwards, 9 * backwards)


def test_restarts_begin_half_way_to_the_edge_of_the_ball(batch) -> None:
    model, images, labels, ids = batch
    images = 0.25 + images / 2  # so that no pixel is clipped
    for ball in BALLS:
        work = laid_out(model, images, labels, ball, goal="flip", restarts=3)
        points = [FAB().start(work.slots(ids + 9 * restart)).points for restart in range(3)]
        assert torch.equal(points[0], images)
        for begun in points[1:]:
            half = torch.full((9,), ball.eps / 2, dtype=torch.float64)
            assert torch.allclose(ball.distance(begun, images), half, rtol=1e-4)
        assert (points[1] != points[2]).flatten(1).any(1).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_maximise_ends_with_a_look_at_the_edge_of_the_ball(norm: str) -> None:
    model, images, labels = _close_to_the_boundary(2)
    nearest = _nearest(model, images, labels, norm)
    ball, rows = Ball(norm, float(nearest.median()) / 2), torch.arange(12)
    points = FAB(steps=20)(model, images, labels, ball, goal="maximise", seed=0, ids=rows)
    with torch.no_grad():
        logits = torch.stack([model(images), model(points)])
    margins = logits[:, rows, labels] - logits[:, rows, 1 - labels]
    slope = margins[0] / nearest
    far = nearest > ball.eps * 1.1
    assert ((margins[0] - margins[1])[far] >= 0.98 * (ball.eps * slope)[far]).all()


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

import pytest
import torch
from helpers_attacks import BALLS, Around, Counted, curved, laid_out, linear, pictures, predictions
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from robust_nc.attacks.losses import LOSSES
from robust_nc.attacks.square import PROPOSERS, Draw, Square, window_sizes
from robust_nc.threat import Ball

SHAPE = (1, 8, 8)
NOWHERE = Ball("L2", 1e-5)  # nothing flips in there

each_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)


def _margins(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return LOSSES["margin"](model(points), labels, None, None)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("queries", [500, 5000])
def test_the_share_of_pixels_is_that_of_autoattack(queries: int, rescale: bool) -> None:
    theirs = SquareAttack(None, n_queries=queries, p_init=0.8, resc_schedule=rescale)
    stages = Square(queries=queries, rescale_schedule=rescale).stages(torch.arange(queries))
    wanted = [theirs.p_selection(query) for query in range(queries)]
    assert (0.8 / 2**stages).tolist() == pytest.approx(wanted)


def test_sizes_of_windows() -> None:
    assert window_sizes(28, 28, p_init=0.8) == (25, 18, 13, 9, 6, 4, 3, 2, 2, 1)
    odd = window_sizes(32, 32, p_init=0.8, smallest=3, odd=True)
    assert odd == (29, 21, 15, 11, 7, 5, 5, 3, 3, 3)
    assert window_sizes(32, 5, p_init=0.8, smallest=3, odd=True) == (5, 5, 5, 5, 3, 3, 3, 3, 3, 3)
    assert window_sizes(2, 9, p_init=0.1, smallest=3, odd=True) == (2,) * 10


# Where the points lie.


@pytest.mark.parametrize(
    ("shape", "ball"),
    [
        ((1, 8, 8), Ball("L1", 12.0)),
        ((3, 9, 5), Ball("L2", 0.05)),
        ((3, 32, 20), Ball("Linf", 0.5)),
        ((1, 5, 14), Ball("L1", 1.0)),
        ((1, 3, 2), Ball("L2", 12.0)),
        ((3, 28, 28), Ball("L1", 0.05)),
    ],
    ids=str,
)
def test_never_leaves_the_ball_and_the_bounds(shape, ball: Ball) -> None:
    model, images = curved(shape, 4), pictures(6, shape)
    slots = laid_out(
        model, images, torch.zeros(6, dtype=torch.int64), ball, goal="maximise"
    ).everything
    attack = Square(queries=60, rescale_schedule=True)
    state = attack.start(slots)
    for _ in range(attack.rounds):
        assert ball.contains(state.points, images).all()
        assert (ball.distance(state.points, images) > 0.01 * min(ball.eps, 1)).all()
        state = attack.step(slots, state)


# How strong it is.


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 4, 6), (3, 5, 3)], ids=str)
def test_reaches_the_optimum_of_a_linear_model(shape: tuple[int, int, int]) -> None:
    model, images, eps = linear(shape, 2), torch.full((6, *shape), 0.5), 0.1
    labels = predictions(model, images)
    attack = Square(queries=1000, rescale_schedule=True)
    call = (model, images, labels, Ball("Linf", eps))
    points = attack(*call, goal="maximise", seed=0, ids=torch.arange(6))
    gain = _margins(model, points, labels) - _margins(model, images, labels)
    with torch.no_grad():
        best = eps * float((model[1].weight[0] - model[1].weight[1]).abs().sum())
    assert (gain <= best * 1.0001).all()
    assert (gain >= best * (0.9999 if shape[0] == 1 else 0.97)).all()


@pytest.mark.parametrize(
    ("ball", "shape", "rescale"),
    [
        pytest.param(Ball("Linf", 0.08), (1, 10, 10), False, marks=pytest.mark.slow),
        (Ball("Linf", 0.05), (3, 10, 10), True),
        (Ball("L2", 0.5), (1, 10, 10), True),
        pytest.param(Ball("L2", 0.6), (3, 10, 10), False, marks=pytest.mark.slow),
        pytest.param(Ball("L1", 3.0), (1, 10, 10), False, marks=pytest.mark.slow),
        (Ball("L1", 3.0), (3, 10, 10), True),
    ],
    ids=str,
)
def test_not_weaker_than_the_original(ball: Ball, shape, rescale: bool) -> None:
    only_ours = only_theirs = broken = 0
    for seed in range(3):
        model, images = curved(shape, 4, seed=seed), pictures(40, shape, seed=seed)
        labels, ids = predictions(model, images), torch.arange(40)
        attack = Square(queries=200, rescale_schedule=rescale)
        ours = predictions(model, attack(model, images, labels, ball, seed=seed, ids=ids)) != labels
        original = SquareAttack(
            model, norm=ball.norm, eps=ball.eps, n_queries=200, resc_schedule=rescale, seed=seed
        )
        theirs = predictions(model, original.perturb(images, labels)) != labels
        only_ours += int((ours & ~theirs).sum())
        only_theirs += int((theirs & ~ours).sum())
        broken += int(theirs.sum())
    assert 10 < broken < 90, "the test needs an eps in between"
    assert only_theirs - only_ours <= 2 * (only_ours + only_theirs) ** 0.5


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_bumps_are_those_of_the_original(norm: str) -> None:
    original = SquareAttack(None, norm=norm, eps=1.0)
    original.device = torch.device("cpu")
    images = torch.full((1, 1, 12, 12), 0.5)
    labels = torch.zeros(1, dtype=torch.int64)
    slots = laid_out(curved(SHAPE, 3), images, labels, Ball(norm, 0.1), goal="maximise").everything
    side = window_sizes(12, 12, p_init=0.5, smallest=3, odd=True)[0]
    draw = Draw(slots.ids, torch.zeros_like(labels), 0.5)
    delta = (PROPOSERS[norm].propose(slots, images, draw) - images)[0, 0] / 0.1
    (top, *_, bottom), (left, *_, right) = (delta.abs().amax(axis).nonzero() for axis in (1, 0))
    ours = delta[top : bottom + 1, left : right + 1]
    assert ours.shape == (side, side)
    bump = original.eta(side)
    candidates = [turned * sign for turned in (bump, bump.mT) for sign in (1, -1)]
    assert any(torch.allclose(ours, wanted, atol=1e-4) for wanted in candidates)


@each_ball
def test_needs_no_gradient(ball: Ball) -> None:
    model = Around(curved(SHAPE, 4), after=lambda z: (z.detach() * 100).round() / 100).eval()
    images = pictures(30, SHAPE)
    labels, ids = predictions(model, images), torch.arange(30)
    points = Square(queries=200)(
        model, images, labels, Ball(ball.norm, 3 * ball.eps), seed=0, ids=ids
    )
    assert (predictions(model, points) != labels).sum() >= 5


# What it costs, and what it depends on.


@pytest.mark.parametrize("goal", ["flip", "maximise"])
def test_one_forward_per_query_and_one_for_the_start(goal: str) -> None:
    model, images = Counted(curved(SHAPE, 4)), pictures(6, SHAPE)
    labels, ids = predictions(model, images), torch.arange(6)
    model.forwards = 0
    attack = Square(queries=7, restarts=2)
    result = attack.run(model, images, labels, NOWHERE, goal=goal, seed=0, ids=ids)
    assert result.forwards.tolist() == [2 * 8] * 6
    assert result.backwards.tolist() == [0] * 6
    assert (model.forwards, model.backwards) == (6 * 16, 0)

"""Every attack goes through the same tests, in every norm."""

import dataclasses

import pytest
import torch
from helpers_attacks import BALLS, Failing, curved, linear, pictures, predictions
from torch import Tensor, nn

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.ensemble import Strongest, geometry_attack
from robust_nc.attacks.fab import FAB
from robust_nc.attacks.noise import GaussianNoise, SignNoise
from robust_nc.attacks.pgd import FGSM, PGD
from robust_nc.attacks.pool import PooledAttack
from robust_nc.attacks.rays import RayS
from robust_nc.attacks.smooth import Smooth
from robust_nc.attacks.square import Square
from robust_nc.attacks.trajectory import trajectory
from robust_nc.exceptions import InputError
from robust_nc.threat import Ball
from robust_nc.types import Attack, CountedAttack

GRADIENT = {
    "fgsm": FGSM(),
    "pgd-ce": PGD(steps=10),
    "pgd-margin": PGD(steps=10, loss="margin", initial="gaussian"),
    "pgd-last": PGD(steps=10, keep_best=False),
    "pgd-restarts": PGD(steps=10, restarts=2, slots=3),
    "strongest": Strongest((FGSM(), PGD(steps=10))),
    "geometry": geometry_attack(steps=10),
    "apgd-ce": APGD(steps=10),
    "apgd-t": APGD(steps=10, loss="dlr", num_targets=3),
}
# FAB seeks the nearest flip and Square the best window: neither climbs to the end of the ball.
SEEKERS = {
    "fab-t": FAB(steps=10, num_targets=3),
    "square": Square(queries=200),
}
ALL = (
    GRADIENT
    | SEEKERS
    | {
        "pgd-dlr": PGD(steps=3, loss="dlr"),
        "pgd-kl": PGD(steps=3, loss="kl", initial="gaussian"),
        "rays": RayS(queries=30),
        "smooth": Smooth(steps=5),
        "gaussian": GaussianNoise(),
        "sign": SignNoise(),
    }
)
SHAPE = (1, 8, 8)
GOALS = ("flip", "maximise")

each_attack = pytest.mark.parametrize("attack", ALL.values(), ids=ALL.keys())
each_gradient_attack = pytest.mark.parametrize("attack", GRADIENT.values(), ids=GRADIENT.keys())
each_flipping_attack = pytest.mark.parametrize(
    "attack", (GRADIENT | SEEKERS).values(), ids=(GRADIENT | SEEKERS).keys()
)
each_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)
each_goal = pytest.mark.parametrize("goal", GOALS)


def _dual(difference: Tensor, norm: str) -> Tensor:
    order = {"Linf": 1, "L2": 2, "L1": torch.inf}[norm]
    return torch.linalg.vector_norm(difference, ord=order, dim=-1)


def _two_classes(norm: str) -> tuple[nn.Module, Tensor, Tensor, Tensor, float]:
    """A linear model, grey images far from the bounds, margins, and the slope of the margin."""
    model = linear(SHAPE, 2)
    images = 0.5 + 0.02 * (pictures(12, SHAPE) - 0.5)
    labels = predictions(model, images)
    with torch.no_grad():
        logits = model(images)
        slope = float(_dual(model[1].weight[0] - model[1].weight[1], norm))
    return model, images, labels, (logits[:, 0] - logits[:, 1]).abs(), slope


@each_ball
@each_gradient_attack
def test_flips_a_linear_model_just_beyond_its_margin(attack: Attack, ball: Ball) -> None:
    model, images, labels, margins, slope = _two_classes(ball.norm)
    for index in range(4):
        one = slice(index, index + 1)
        nearest = float(margins[one]) / slope
        for ratio, flips in ((0.98, False), (1.25, True)):
            near = Ball(ball.norm, nearest * ratio)
            points = attack(
                model, images[one], labels[one], near, seed=0, ids=torch.tensor([index])
            )
            assert bool(predictions(model, points) != labels[one]) == flips


@each_ball
@each_gradient_attack
def test_maximise_reaches_the_analytic_optimum(attack: Attack, ball: Ball) -> None:
    model, images, labels, margins, slope = _two_classes(ball.norm)
    small = Ball(ball.norm, 0.1)
    points = attack(
        model, images, labels, small, goal="maximise", seed=0, ids=torch.arange(len(images))
    )
    with torch.no_grad():
        logits = model(points)
    reached = logits.gather(1, 1 - labels[:, None]) - logits.gather(1, labels[:, None])
    gain = reached.squeeze(1) + margins
    assert (gain <= small.eps * slope * 1.0001).all()
    tolerance = 1e-5 if attack == FGSM() else 0.2
    assert (gain >= small.eps * slope * (1 - tolerance)).all()


@each_goal
@each_ball
@each_attack
def test_stays_in_the_ball_and_the_bounds(attack: Attack, ball: Ball, goal: str) -> None:
    model, images = curved(SHAPE, 5), pictures(7, SHAPE)
    points = attack(
        model, images, predictions(model, images), ball, goal=goal, seed=3, ids=torch.arange(7)
    )
    assert ball.contains(points, images).all()
    assert points.dtype == images.dtype
    assert not points.requires_grad
    climbs = attack not in SEEKERS.values() or goal == "maximise"
    if climbs and not isinstance(attack, RayS):  # whose rays may all end outside
        assert (ball.distance(points, images) > 0.1 * ball.eps).all()


@each_ball
def test_no_attack_leaves_the_ball_at_the_size_of_photographs(ball: Ball) -> None:
    images = torch.cat([pictures(2, (3, 32, 32)), torch.full((1, 3, 32, 32), 0.7)])
    model, ids = curved((3, 32, 32), 5), torch.arange(3)
    labels = predictions(model, images)
    for attack in ALL.values():
        for eps, goal in ((1 / 255, "flip"), (36 / 255, "maximise")):
            there = Ball(ball.norm, eps)
            points = attack(model, images, labels, there, goal=goal, seed=0, ids=ids)
            assert there.contains(points, images).all()


@pytest.mark.parametrize(
    ("shape", "classes", "goal"),
    [((1, 8, 8), 2, "flip"), ((3, 32, 20), 3, "maximise"), ((1, 8, 8), 10, "flip")],
)
@each_attack
def test_any_number_of_classes_and_image_shape(
    attack: Attack, shape: tuple[int, int, int], classes: int, goal: str
) -> None:
    classes += "dlr" in repr(attack) and classes == 2  # dlr needs three
    model, images, ball = curved(shape, classes), pictures(3, shape), BALLS[0]
    labels = torch.arange(3) % classes
    points = attack(model, images, labels, ball, goal=goal, seed=0, ids=torch.arange(3))
    assert ball.contains(points, images).all()


@each_goal
@each_attack
def test_zero_and_one_example(attack: CountedAttack, goal: str) -> None:
    model, images = curved(SHAPE, 4), pictures(1, SHAPE)
    for count in (0, 1):
        labels, ids = torch.zeros(count, dtype=torch.int64), torch.arange(count)
        result = attack.run(model, images[:count], labels, BALLS[1], goal=goal, seed=0, ids=ids)
        assert result.points.shape == (count, *SHAPE)
        assert result.forwards.shape == result.backwards.shape == (count,)


def _state(model: nn.Module) -> tuple[list[object], list[Tensor], list[object]]:
    flags: list[object] = [module.training for module in model.modules()]
    flags += [parameter.requires_grad for parameter in model.parameters()]
    tensors = [buffer.clone() for buffer in model.buffers()]
    return flags, tensors, [parameter.grad for parameter in model.parameters()]


def _end_of_trajectory(*given: object, goal: str, **options: object) -> Tensor:
    return trajectory(*given, steps=3, **options)[-1]


@each_goal
@pytest.mark.parametrize("attack", [*GRADIENT.values(), *SEEKERS.values(), _end_of_trajectory])
def test_leaves_no_trace_on_the_model(attack: Attack, goal: str) -> None:
    images, labels, ids = pictures(6, SHAPE), torch.arange(6) % 5, torch.arange(6)
    for wrapped in (nn.Sequential(curved(SHAPE, 5)), Failing(curved(SHAPE, 5), 3)):
        wrapped.train()
        core = next(iter(wrapped.children()))
        core[3].eval()
        core[0].weight.requires_grad_(False)
        core[4].weight.grad = torch.ones_like(core[4].weight)
        before = _state(wrapped)
        failed = False
        try:
            attack(wrapped, images, labels, Ball("L2", 0.01), goal=goal, seed=0, ids=ids)
        except RuntimeError:
            failed = True
        assert failed == (isinstance(wrapped, Failing) and wrapped.calls >= 3)
        after = _state(wrapped)
        assert before[0] == after[0]
        assert all(torch.equal(*pair) for pair in zip(before[1], after[1], strict=True))
        assert all(old is new for old, new in zip(before[2], after[2], strict=True))
        assert torch.equal(core[4].weight.grad, torch.ones_like(core[4].weight))


@each_ball
@each_attack
def test_verdicts_depend_on_the_example_alone(attack: Attack, ball: Ball) -> None:
    model, images = curved(SHAPE, 5), pictures(16, SHAPE)
    labels, ids = predictions(model, images), torch.arange(100, 116)

    def holds(rows: Tensor, attack: Attack) -> Tensor:
        points = attack(model, images[rows], labels[rows], ball, seed=1, ids=ids[rows])
        return predictions(model, points) == labels[rows]

    expected = holds(torch.arange(16), attack)
    if not isinstance(attack, GaussianNoise | SignNoise):
        assert 0 < expected.sum() < 16, "the test needs both verdicts"
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(holds(shuffled[:9], attack), expected[shuffled[:9]])
    if isinstance(attack, PooledAttack):
        assert torch.equal(holds(torch.arange(16), dataclasses.replace(attack, slots=5)), expected)


@each_flipping_attack
def test_all_wrong_at_the_start(attack: CountedAttack) -> None:
    model, images = curved(SHAPE, 5), pictures(6, SHAPE)
    wrong = (predictions(model, images) + 1) % 5
    ball = Ball("Linf", 1e-4)
    result = attack.run(model, images, wrong, ball, seed=0, ids=torch.arange(6))
    assert (predictions(model, result.points) != wrong).all()
    assert (result.forwards <= 2).all()
    assert (result.backwards == (attack not in SEEKERS.values() or isinstance(attack, FAB))).all()


@each_flipping_attack
@pytest.mark.parametrize(("value", "goal"), [(torch.nan, "flip"), (torch.inf, "maximise")])
def test_logits_that_are_not_finite_are_named(attack: Attack, goal: str, value: float) -> None:
    model = linear(SHAPE, 3)
    with torch.no_grad():
        model[1].bias[1] = value
    images, labels = pictures(4, SHAPE), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(InputError, match="NaN or infinite"):
        attack(model, images, labels, BALLS[0], goal=goal, seed=0, ids=torch.arange(4))


@pytest.mark.parametrize(
    ("ball", "goal"), [(BALLS[0], "flip"), (BALLS[1], "maximise"), (BALLS[2], "flip")]
)
@each_flipping_attack
def test_a_ball_without_room_returns_the_images(attack: Attack, ball: Ball, goal: str) -> None:
    model, images = curved(SHAPE, 5), pictures(5, SHAPE)
    labels, ids = predictions(model, images), torch.arange(5)
    points = attack(model, images, labels, Ball(ball.norm, 0.0), goal=goal, seed=0, ids=ids)
    assert torch.equal(points, images)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=20, loss="ce"),
        PGD(steps=20, loss="margin"),
        Square(queries=400, rescale_schedule=True),
        Square(queries=400, rescale_schedule=True, loss="ce"),
    ],
    ids=repr,
)
def test_targets_are_reached(attack: Attack) -> None:
    model, images = linear(SHAPE, 5), pictures(10, SHAPE)
    labels, ids, ball = predictions(model, images), torch.arange(10), Ball("Linf", 0.9)
    targets = (labels + 1 + ids % 4) % 5
    call = (model, images, labels, ball)
    points = attack(*call, goal="maximise", targets=targets, seed=0, ids=ids)
    assert torch.equal(predictions(model, points), targets)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PGD, {"steps": 0}, "steps"),
        (PGD, {"step_size": 0.0}, "step_size"),
        (PGD, {"scale": float("nan")}, "scale"),
        (PGD, {"restarts": 0}, "restarts"),
        (PGD, {"slots": 0}, "slots"),
        (PGD, {"loss": "cee"}, "loss"),
        (PGD, {"mode": "train"}, "mode"),
        (PGD, {"initial": "zero"}, "initial"),
        (APGD, {"steps": 0}, "steps must be at least 1"),
        (APGD, {"steps": 2, "enlarged": True}, "steps must be at least 3"),
        (APGD, {"eot": 0}, "eot must be at least 1"),
        (APGD, {"rho": 0.0}, "rho must be"),
        (APGD, {"rho": 1.5}, "rho must be"),
        (APGD, {"loss": "kl"}, "attack loss"),
        (APGD, {"restarts": 0}, "restarts"),
        (FAB, {"steps": 0}, "steps"),
        (FAB, {"alpha_max": 1.1}, "alpha_max"),
        (FAB, {"alpha_max": float("nan")}, "alpha_max"),
        (FAB, {"eta": 0.9}, "eta"),
        (FAB, {"eta": float("inf")}, "eta"),
        (FAB, {"beta": 0.0}, "beta"),
        (FAB, {"beta": 1.1}, "beta"),
        (Square, {"queries": 0}, "queries"),
        (Square, {"p_init": 0.0}, "p_init"),
        (Square, {"p_init": 1.5}, "p_init"),
        (Square, {"loss": "kl"}, "unknown loss of Square"),
        (Strongest, {"attacks": ()}, "at least one attack"),
    ],
    ids=str,
)
def test_options_that_cannot_be_used_are_named(kind, options, message) -> None:
    # With shapes checked, the type check answers first for words that are no options.
    error = (ValueError, TypeError) if {"mode", "initial"} & options.keys() else InputError
    with pytest.raises(ValueError if options.get("loss") else error, match=message):
        kind(**options)


@each_attack
@each_ball
def test_pixels_may_be_without_bounds(attack: CountedAttack, ball: Ball) -> None:
    model, images = curved(SHAPE, 5), pictures(6, SHAPE)
    free = dataclasses.replace(ball, bounds=(-torch.inf, torch.inf))
    found = attack(model, images, predictions(model, images), free, seed=0, ids=torch.arange(6))
    assert free.contains(found, images).all()
    # RayS keeps the image until it has followed a ray back into the ball.
    assert (found != images).any() or isinstance(attack, RayS)

import re
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers_attacks import BALLS, Around, Counted, curved, linear, pictures, predictions
from helpers_models import digits, small_config, small_run
from torch import Tensor, nn

from robust_nc.evaluation.sanity.attacks import attack_warnings, class_warnings
from robust_nc.evaluation.sanity.meanings import MEANINGS
from robust_nc.evaluation.sanity.output import output_warnings
from robust_nc.evaluation.sanity.survivors import survivor_warnings
from robust_nc.models.classifier import Normalise
from robust_nc.registry import ATTACKS
from robust_nc.threat import Ball
from robust_nc.types import Warned

SHAPE = (1, 8, 8)
LINF = Ball("Linf", 0.03)
PAGE = Path(__file__).parent.parent / "docs" / "trust.md"


def names(found: tuple[Warned, ...]) -> list[str]:
    return [each.name for each in found]


def steep(model: nn.Module, factor: float = 100.0) -> nn.Module:
    return Around(model, after=lambda logits: factor * logits)


def of_output(model: nn.Module, images: Tensor, *, seed: int = 0) -> list[str]:
    """Ask as an evaluation does: clean logits of a larger batch first."""
    beside = pictures(5, tuple(images.shape[1:]), seed=99)
    with torch.no_grad():
        logits = model.eval()(torch.cat([images, beside]))[: len(images)]
    return names(output_warnings(model, images, logits, seed=seed))


# The output


HEALTHY = {
    "cnn": curved(SHAPE, 5),
    "steep": steep(curved(SHAPE, 5)),
    "flat": steep(curved(SHAPE, 5), 1e-6),
    "shifted": Around(curved(SHAPE, 5), after=lambda logits: logits + 1e4),
    "linear": linear(SHAPE, 10),
    "two classes": curved(SHAPE, 2),
    "log-probabilities": Around(curved(SHAPE, 5), after=lambda logits: logits.log_softmax(1)),
    "constant": Around(linear(SHAPE, 3), after=lambda logits: 0 * logits),
    "sigmoid": Around(curved(SHAPE, 5), after=torch.sigmoid),
    "sums below one": Around(curved(SHAPE, 5), after=lambda logits: logits.softmax(1) - 0.01),
    "above zero": Around(curved(SHAPE, 5), after=lambda logits: 2 * logits.relu()),
}


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("model", HEALTHY.values(), ids=HEALTHY.keys())
def test_a_healthy_output_raises_no_warning_and_costs_one_forward(model, count) -> None:
    for seed in range(2):
        counted = Counted(model)
        images = pictures(count, SHAPE, seed=seed)
        assert of_output(counted, images, seed=seed) == []
        assert counted.forwards == (count + 5) + count
        assert counted.backwards == 0


class _Noisy(nn.Module):
    """Adds noise to the logits of every n-th call."""

    def __init__(self, model: nn.Module, size: float, every: int = 1) -> None:
        super().__init__()
        self.model, self.size, self.every, self.calls = model, size, every, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.model(images)
        noise = self.size * torch.randn_like(logits)
        return logits if self.calls % self.every else logits + noise


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize(
    "model",
    [
        _Noisy(curved(SHAPE, 5), 0.1),
        _Noisy(curved(SHAPE, 5), 0.1, every=2),
        steep(_Noisy(curved(SHAPE, 5), 0.1)),
        Around(curved(SHAPE, 5), before=lambda images: images + 0.1 * torch.randn_like(images)),
        Around(curved(SHAPE, 2), before=lambda images: nn.functional.dropout(images, 0.3)),
    ],
    ids=["logits", "every other call", "steep", "images", "dropout"],
)
def test_random_output(model, count) -> None:
    for seed in range(2):
        assert of_output(model, pictures(count, SHAPE, seed=seed), seed=seed) == ["random-output"]


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(0, keepdim=True)


def _by_place(logits: Tensor) -> Tensor:
    return logits + torch.arange(len(logits))[:, None] * torch.eye(1, logits.shape[1])


def _own_statistics() -> nn.Module:
    model = curved(SHAPE, 5)
    model[1] = nn.BatchNorm2d(8, track_running_stats=False)
    return model


@pytest.mark.parametrize(
    "model",
    [
        Around(curved(SHAPE, 5), after=_centred),
        Around(curved(SHAPE, 5), after=_by_place),
        _own_statistics(),
    ],
    ids=["centred logits", "place in the batch", "batch statistics"],
)
def test_batch_dependent_output(model) -> None:
    for count in (2, 8):
        images = pictures(count, SHAPE)
        assert of_output(model, images) == ["batch-dependent-output"]
    counted = Counted(model)
    of_output(counted, images)
    assert counted.forwards == 13 + 8 + 3 * 4  # half of the probes three times, to name the cause


@pytest.mark.parametrize("classes", [2, 10])
def test_probability_output(classes) -> None:
    for dtype in (torch.float32, torch.float16):
        for model in (curved(SHAPE, classes), steep(curved(SHAPE, classes))):
            soft = Around(model, after=lambda logits, dtype=dtype: logits.softmax(1).to(dtype))
            for count in (1, 8):
                assert of_output(soft, pictures(count, SHAPE)) == ["probability-output"]


def _graded(images: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(leaf.square().sum(), leaf)
    return images - 0.01 * gradient


def _backward(images: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        leaf.square().sum().backward()
    return images - 0.01 * leaf.grad


def _functional(images: Tensor) -> Tensor:
    return images - 0.01 * torch.func.grad(lambda x: x.square().sum())(images)


_IDLE = torch.enable_grad()(torch.clone)  # gradients are turned on for nothing


@pytest.mark.parametrize("before", [_graded, _backward, _functional, _IDLE])
def test_optimisation_in_forward(before) -> None:
    model = Around(curved(SHAPE, 5), before=before)
    found = output_warnings(model, pictures(8, SHAPE), model(pictures(8, SHAPE)).detach(), seed=0)
    assert names(found) == ["optimisation-in-forward"]
    assert ("backward 2 times" in found[0].message) == (before is not _IDLE)


# (mean, std) of a data set, and of what its images look like
STATISTICS = {
    "digits": ((0.305,), (0.376,)),
    "fashion_mnist": ((0.286,), (0.353,)),
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def _looking_like(name: str, count: int, *, seed: int) -> Tensor:
    """Images in [0, 1] whose pixels have about the mean and std of a data set (a beta law)."""
    draws = torch.Generator().manual_seed(seed)
    channels = []
    for mean, std in zip(*STATISTICS[name], strict=True):
        size = mean * (1 - mean) / std**2 - 1
        rates = torch.tensor([size * mean, size * (1 - mean)]).expand(count, 16, 16, 2)
        gammas = torch._standard_gamma(rates.contiguous(), generator=draws)
        channels.append(gammas[..., 0] / gammas.sum(-1).clamp_min(1e-30))
    return torch.stack(channels, 1)


def _normalised(name: str, times: int, shape: tuple[int, int, int]) -> nn.Module:
    layers = [Normalise(*STATISTICS[name]) for _ in range(times)]
    return nn.Sequential(*layers, curved(shape, 5))


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("name", STATISTICS)
def test_double_normalisation(name, count) -> None:
    for seed in range(2):
        images = _looking_like(name, count, seed=seed)
        shape = tuple(images.shape[1:])
        assert of_output(_normalised(name, 1, shape), images) == []
        assert of_output(_normalised(name, 2, shape), images) == ["double-normalisation"]


@pytest.mark.parametrize("name", ["digits", "imagenet"])
@pytest.mark.parametrize(
    "scale",
    [
        lambda images: 255 * images,
        lambda images: 255 * images - 117,
        lambda images: 16 * images,
        lambda images: 2 * images - 1,
        lambda images: (images - 0.485) / 0.229,  # constants of other data
        lambda images: images.flip(1) - images.mean((1, 2, 3), keepdim=True),
        lambda images: nn.functional.interpolate(8 * images - 4, scale_factor=2),
    ],
)
def test_other_scalings_are_not_double_normalisation(name, scale) -> None:
    images = _looking_like(name, 8, seed=0)
    model = Around(curved(tuple(images.shape[1:]), 5), before=scale)
    assert of_output(model, images) == []
    grey = torch.full((8, 1, 8, 8), 0.5)  # says nothing of what it was made of
    assert of_output(_normalised("digits", 2, SHAPE), grey) == []


def _compiled(model: nn.Module) -> nn.Module:
    """What `torch.compile` makes of a model, by its looks."""
    return nn.Sequential(OrderedDict(_orig_mod=model))


def test_a_compiled_model_is_not_watched_but_compared() -> None:
    twice = _normalised("digits", 2, SHAPE)
    images = _looking_like("digits", 8, seed=0)[..., :8, :8]
    assert of_output(Around(_compiled(twice)), images) == []
    assert of_output(_compiled(_Noisy(twice, 1.0)), images) == ["random-output"]


def test_a_scripted_model() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.trace(curved(SHAPE, 5), pictures(2, SHAPE))
    images = pictures(8, SHAPE)
    assert of_output(scripted, images) == []
    labels = predictions(scripted, images)
    assert survivor_warnings(scripted, images, labels, LINF, seed=0) == ()


# Survivors


def survivors(model: nn.Module, images: Tensor, labels: Tensor, ball: Ball) -> Tensor:
    """Rows that a short attack leaves standing."""
    attack = ATTACKS.load("pgd")(steps=20, loss="margin")
    points = attack(model, images, labels, ball, seed=0, ids=torch.arange(len(images)))
    return (predictions(model, points) == labels).nonzero().flatten()


@pytest.mark.parametrize("objective", ["standard", "pgd"])
def test_trained_models_raise_no_warning(objective, digits_network) -> None:
    model = digits_network.eval()
    if objective == "pgd":
        model = small_run(small_config(objective="pgd", epochs=3, examples=400)).best.eval()
    images, labels, _ = digits("test", 80)
    for first in range(0, 80, 8):
        assert of_output(model, images[first : first + 8]) == []
    for ball in (Ball("Linf", 0.08), Ball("L2", 0.4), Ball("L1", 1.0)):
        rows = survivors(model, images, labels, ball)
        assert len(rows) > 16, "the test needs survivors"
        for first, count in ((0, 8), (8, 8), (3, 1), (4, 1)):
            chosen = rows[first : first + count]
            for one in (model, steep(model)):
                assert survivor_warnings(one, images[chosen], labels[chosen], ball, seed=0) == ()


@pytest.mark.parametrize(
    ("build", "classes", "shape", "ball"),
    [
        (linear, 2, (1, 8, 8), BALLS[0]),
        (linear, 10, (3, 9, 5), BALLS[1]),
        (linear, 2, (3, 9, 5), BALLS[2]),
        (curved, 10, (1, 8, 8), BALLS[0]),
        (curved, 2, (3, 9, 5), BALLS[1]),
        (curved, 10, (1, 8, 8), BALLS[2]),
    ],
)
def test_survivors_of_plain_models_raise_no_warning(build, classes, shape, ball) -> None:
    for seed in range(2):
        model, images = build(shape, classes, seed=seed), pictures(24, shape, seed=seed)
        labels = predictions(model, images)
        rows = survivors(model, images, labels, ball)
        assert survivor_warnings(model, images[rows], labels[rows], ball, seed=seed) == ()


def test_no_survivor_no_ball_and_at_most_eight() -> None:
    model, images = Counted(linear(SHAPE, 3)), pictures(40, SHAPE)
    labels = predictions(model, images)
    assert survivor_warnings(model, images[:0], labels[:0], LINF, seed=0) == ()
    model.forwards = model.backwards = 0
    assert survivor_warnings(model, images, labels, Ball("L2", 0), seed=0) == ()
    assert model.forwards <= 8 * (1 + 44)
    assert survivor_warnings(model, images, labels, Ball("L2", 0.1, (-1.0, 1.0)), seed=0) == ()


def _on(model: nn.Module, ball: Ball = LINF, *, seed: int = 0, count: int = 8) -> list[str]:
    images = pictures(count, SHAPE, seed=seed)
    return names(survivor_warnings(model, images, predictions(model, images), ball, seed=seed))


def test_no_gradient() -> None:
    for before in (Tensor.detach, lambda images: (images > 0.5).float()):
        assert _on(Around(curved(SHAPE, 5), before=before)) == ["no-gradient"]


def _saturated(logits: Tensor) -> Tensor:
    return (50 * logits).softmax(1)


@pytest.mark.parametrize(
    "model",
    [
        Around(linear(SHAPE, 5), before=lambda images: (8 * images).round() / 8),
        Around(linear(SHAPE, 5), after=_saturated),
        Around(linear(SHAPE, 5), after=lambda logits: logits.clamp(-0.001, 0.001)),
    ],
    ids=["rounded images", "saturated softmax", "clamped logits"],
)
def test_zero_gradients(model) -> None:
    for seed in range(3):
        assert "zero-gradients" in _on(model, seed=seed)


def _rippled(images: Tensor) -> Tensor:
    """Fine ripples: large gradients that lead nowhere."""
    return images + 1e-3 * torch.sin(1e6 * images)


class _Reversed(torch.autograd.Function):
    """The identity, with a gradient that points the other way."""

    @staticmethod
    def forward(ctx, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return -gradient


@pytest.mark.parametrize(("ball", "count"), [(BALLS[0], 1), (BALLS[1], 8), (BALLS[2], 1)])
@pytest.mark.parametrize("before", [_rippled, _Reversed.apply])
def test_masked_gradients(before, count, ball) -> None:
    for seed in range(2):
        model = Around(linear(SHAPE, 5, seed=seed), before=before)
        assert "masked-gradients" in _on(steep(model) if seed else model, ball, count=count)


def test_noise_that_breaks_more_than_the_gradient() -> None:
    """A model that falls for any noise, with a gradient that shows none of it."""

    def rough(images: Tensor) -> Tensor:
        uneven = (images[..., 1:] - images[..., :-1]).detach().abs().mean((1, 2, 3))
        fooled = (uneven > 0.01).float()[:, None]
        return torch.cat([images.mean((2, 3)) * (1 - 2 * fooled), 0.0 * fooled], 1)

    model, images = Around(nn.Identity(), before=rough), torch.full((8, *SHAPE), 0.5)
    labels = predictions(model, images)
    found = survivor_warnings(model, images, labels, LINF, seed=0)
    assert names(found) == ["masked-gradients"]
    assert "noise" in found[0].message


def test_accuracy_that_does_not_reach_zero() -> None:
    bias = torch.tensor([1e3, 0, 0])
    model = Around(linear(SHAPE, 3), after=lambda logits: logits + bias)
    for ball, whole in zip(BALLS, ("1", "8", "64"), strict=True):
        images = pictures(8, SHAPE)
        labels = predictions(model, images)
        found = survivor_warnings(model, images, labels, ball, seed=0)
        assert names(found) == ["eps-no-zero"]
        assert f"8 of 8 survivors withstand {ball.norm} {whole}," in found[0].message


# No trace


# Turns and classes


@pytest.mark.parametrize(
    ("free", "broken", "total", "doubtful"),
    [
        ((False, False, True), (10, 5, 1), 499, True),
        ((False, False, True), (10, 5, 1), 500, False),
        ((False, False, True), (10, 5, 3), 1000, True),
        ((False, False, True), (10, 5, 2), 1000, False),
        ((False, False, True), (10, 5, 0), 10, False),
        ((True, False, False), (10, 5, 5), 100, False),  # it had the first turn
        ((True, True, True), (10, 5, 5), 100, False),  # nothing to compare with
        ((False, True, True), (0, 1, 2), 1000, False),
        ((), (), 0, False),
    ],
)
def test_black_box_stronger(free, broken, total, doubtful) -> None:
    attacks = tuple(f"attack-{number}" for number in range(len(free)))
    found = attack_warnings(attacks, free, broken, total)
    assert names(found) == (["black-box-stronger"] if doubtful else [])
    assert all("'attack-2'" in each.message for each in found)


@pytest.mark.parametrize(
    ("classes", "losses", "few"),
    [
        (2, [("dlr", False)], True),
        (3, [("dlr", False)], False),
        (3, [("ce", False), ("dlr", True)], True),
        (4, [("dlr", True), ("dlr", False)], False),
        (2, [("ce", True), ("margin", True)], False),
        (2, [], False),
    ],
)
def test_few_classes(classes, losses, few) -> None:
    found = class_warnings(classes, losses)
    assert names(found) == (["few-classes"] if few else [])
    assert all(f"{classes} classes" in each.message for each in found)


# The page


def test_the_page_on_trust_lists_every_warning() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \| (.*) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(name, *meaning) for name, meaning in MEANINGS.items()]


def test_every_name_in_the_code_has_a_meaning_and_the_reverse() -> None:
    engine = Path(__file__).parent.parent / "robust_nc"
    paths = {*engine.rglob("*.py")} - {engine / "evaluation" / "sanity" / "meanings.py"}
    code = "".join(path.read_text() for path in sorted(paths))
    assert set(re.findall(r'named_warning\(\s*"([\w-]+)"', code)) == set(MEANINGS)

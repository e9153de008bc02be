"""The nearest-vertex classifier: its numbers, its gradients, and that it can be attacked."""

import copy

import pytest
import torch
from helpers_attacks import APGD_ONLY, BALL, SHORT, curved, pictures
from helpers_models import make, some_images, warmed_up
from torch import Tensor, nn

from robust_nc.attacks.losses import LOSSES
from robust_nc.evaluation import evaluate
from robust_nc.exceptions import InputError, UnknownNameError
from robust_nc.geometry.nearest import nearest_vertex, vertex_logits
from robust_nc.models.nearest_vertex import NearestVertexClassifier, nearest_vertex_classifier
from robust_nc.models.taps import read_taps

SHAPE = (1, 8, 8)
CURVED_TAPS = ("0", "1", "2", "4", "7", "penultimate")  # conv before batch norm, batch norm, ...


class Stretched(nn.Module):
    """Features are the pixels, times a factor, plus an offset."""

    def __init__(self, factor: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.factor, self.offset = factor, offset

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layer(self.factor * images + self.offset)
        return features.flatten(1)


def unreachable(*_: object) -> None:
    raise AssertionError("the pass went on beyond the tap")


def random_vertices(features: Tensor, classes: int = 5, *, seed: int = 0) -> Tensor:
    """Means of random groups of examples, float64 `(K, D)`: vertices close to the features."""
    draws = torch.Generator().manual_seed(seed)
    weights = torch.rand(classes, len(features), generator=draws, dtype=torch.float64).square()
    return weights / weights.sum(1, keepdim=True) @ features.detach().double().cpu()


def on_tap(
    model: nn.Module, tap: str, images: Tensor, *, feature: str = "gap", classes: int = 5
) -> NearestVertexClassifier:
    read = read_taps(model, images, [tap], feature)
    vertices = random_vertices(read.features[tap], classes)
    return nearest_vertex_classifier(model, tap, vertices, images, feature=feature)


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def by_distance(features: Tensor, vertices: Tensor) -> Tensor:
    """The definition, straightforwardly: (|h - s|^2 - |h - mu_k|^2) / 2 in float64."""
    h, mu = features.double(), vertices.double()
    own = (h - mu.mean(0)).square().sum(1, keepdim=True)
    return (own - (h[:, None] - mu).square().sum(2)) / 2


# The numbers


@pytest.mark.parametrize("side", [2, 256])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_logits_are_those_of_the_definition(side: int, offset: float) -> None:
    images, model = some_images(12, (1, side, side)), Stretched(offset=offset)
    features = model(images)
    vertices = random_vertices(features)
    classifier = NearestVertexClassifier(model, "layer", vertices, feature="flatten", scale=7.0)
    wanted = by_distance(features, vertices) / 7
    torch.testing.assert_close(
        classifier(images).double(), wanted, rtol=0, atol=2e-6 * float(wanted.abs().max())
    )


@pytest.mark.parametrize("tap", ["block1", "block3", "penultimate"])
def test_the_largest_logit_is_the_nearest_vertex(tap: str) -> None:
    model, images = warmed_up(make(shape=SHAPE)), some_images(60, SHAPE)
    features = model.tapped(images).features[tap].detach()
    vertices = random_vertices(features, 10)
    vertices[3] = torch.nan
    classifier = nearest_vertex_classifier(model, tap, vertices, images)
    found = classifier(images).argmax(1)
    assert len(found.unique()) > 2
    assert torch.equal(found, nearest_vertex(features, vertices))
    assert classifier.num_classes == 10


@pytest.mark.parametrize("factor", [1e-25, 1.0, 1e4, 1e25])
def test_the_median_margin_is_5_whatever_the_size_of_features(factor: float) -> None:
    images = some_images(51, SHAPE)
    plain = on_tap(Stretched(), "layer", images, feature="flatten")
    classifier = on_tap(Stretched(factor), "layer", images, feature="flatten")
    top = classifier(images).topk(2).values
    assert float((top[:, 0] - top[:, 1]).median()) == pytest.approx(5, rel=1e-4)
    torch.testing.assert_close(classifier(images), plain(images), rtol=1e-4, atol=1e-3)
    assert float(classifier.scale) == pytest.approx(float(plain.scale) * factor**2, rel=1e-4)


def test_gradients_are_those_of_the_definition() -> None:
    model, images = warmed_up(make(shape=SHAPE)), some_images(6, SHAPE)
    classifier = on_tap(model, "block2", images)
    vertices = random_vertices(model.tapped(images).features["block2"])
    weights = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    exact = copy.deepcopy(model).double()
    leaf, twin = images.clone().requires_grad_(), images.double().requires_grad_()
    wanted = vertex_logits(exact.tapped(twin).features["block2"], vertices) / classifier.scale
    (found,) = torch.autograd.grad((classifier(leaf) * weights).sum(), leaf)
    (defined,) = torch.autograd.grad((wanted * weights).sum(), twin)
    torch.testing.assert_close(found.double(), defined, rtol=1e-4, atol=1e-7)


def test_autocast_reaches_the_network_only() -> None:
    images = some_images(6, SHAPE)
    classifier = on_tap(make(shape=SHAPE).eval(), "block1", images)
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, classifier(images), rtol=0.05, atol=0.5)


# A class without a vertex


@pytest.fixture
def without_two() -> tuple[NearestVertexClassifier, Tensor]:
    """Classes 0 and 4 of six have no vertex."""
    images = some_images(40, SHAPE)
    vertices = random_vertices(images.flatten(1), 6)
    vertices[[0, 4]] = torch.nan
    found = nearest_vertex_classifier(Stretched(), "layer", vertices, images, feature="flatten")
    return found, images


def test_an_absent_class_never_wins_and_stays_finite(without_two) -> None:
    classifier, images = without_two
    for factor in (0.0, 1.0, 1e6, 1e15):
        logits = classifier(factor * images)
        assert bool(logits.isfinite().all())
        present = logits[:, [1, 2, 3, 5]]
        assert bool((logits[:, [0, 4]].amax(1) < present.amin(1)).all())
    present = classifier(images)[:, [1, 2, 3, 5]]
    spread = present.amax(1) - present.amin(1)
    floor = present.amin(1) - 4 * spread  # far, but in sight: checks go by the range of the logits
    torch.testing.assert_close(classifier(images)[:, 0], floor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("height", [0.0, 1.0, -3e9])
def test_an_absent_class_comes_after_a_tie(height: float) -> None:
    classifier = NearestVertexClassifier(
        Stretched(), "layer", torch.tensor([[torch.nan], [2.0], [2.0]])
    )
    classifier.bias += torch.tensor([0, height, height])
    assert classifier(torch.full((1, 1, 1, 1), 0.3)).argmax(1).tolist() == [1]


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_losses_of_an_absent_class_have_finite_gradients(without_two, loss: str) -> None:
    classifier, images = without_two
    labels = torch.arange(40) % 6
    leaf = images.clone().requires_grad_()
    for targets in (None, (labels + 1) % 6):
        values = LOSSES[loss](classifier(leaf), labels, targets, None)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        assert bool(values.isfinite().all())
        assert bool(gradient.isfinite().all())
        # Where the label comes third, the DLR loss is 1 whatever the image.
        assert (gradient.flatten(1).abs().amax(1) > 0).double().mean() > 0.7


def test_a_classifier_with_absent_classes_is_evaluated(without_two) -> None:
    classifier, images = without_two
    labels = classifier(images).argmax(1)
    labels[:3] = 0
    outcome = evaluate(classifier, images, labels, BALL, protocol=SHORT)
    assert outcome.clean_correct.tolist() == [False] * 3 + [True] * 37
    assert 0 < outcome.robust_accuracy < 1


# How far the pass goes


@pytest.mark.parametrize(
    ("backbone", "feature"),
    [("small_cnn", "gap"), ("mlp", "flatten"), ("preact_resnet18", "flatten")],
)
def test_the_pass_of_our_own_model_ends_at_the_tap(backbone: str, feature: str) -> None:
    model, images = warmed_up(make(backbone, shape=SHAPE)), some_images(3, SHAPE)
    read = model.tapped(images, feature=feature)
    for tap in model.taps:
        classifier = on_tap(model, tap, images, feature=feature)
        assert torch.equal(classifier.features(images), read.features[tap])
    classifier = on_tap(model, model.taps[0], images)
    blocks = {"small_cnn": "block2", "mlp": "layers.2", "preact_resnet18": "layer2"}
    for later in (model.head, model.backbone.get_submodule(blocks[backbone])):
        later.register_forward_pre_hook(unreachable)
    classifier(images)


def test_the_pass_of_a_foreign_model_is_broken_off_at_the_tap() -> None:
    model, images = curved(SHAPE, 5), pictures(4, SHAPE)
    read = read_taps(model, images, CURVED_TAPS, "flatten")
    for tap in CURVED_TAPS:
        classifier = on_tap(model, tap, images, feature="flatten")
        assert classifier.ends_at_tap == (tap != "penultimate")
        assert torch.equal(classifier.features(images), read.features[tap])
    classifier = on_tap(model, "2", images)
    for later in model[3:]:
        later.register_forward_pre_hook(unreachable)
    classifier(images)


def test_a_pass_that_runs_a_layer_twice_is_not_broken_off() -> None:
    twice, images = nn.Conv2d(1, 1, 3, padding=1), some_images(4, SHAPE)
    model = nn.Sequential(twice, nn.ReLU(), twice, nn.Flatten(), nn.Linear(64, 5)).eval()
    classifier = on_tap(model, "0", images)
    assert not classifier.ends_at_tap
    assert torch.equal(classifier.features(images), read_taps(model, images, ["0"]).features["0"])
    assert hooks_of(model) == 0


def test_hooks_are_gone_also_when_the_model_raises() -> None:
    model, images = curved(SHAPE, 5), pictures(4, SHAPE)
    classifier = on_tap(model, "2", images)
    assert classifier.ends_at_tap
    with pytest.raises(RuntimeError, match="channels"):
        classifier(torch.rand(2, 3, 8, 8))
    assert hooks_of(model) == 0


# Attacked like any other model


@pytest.mark.parametrize(("tap", "ends"), [("0", True), ("1", False), ("4", True), ("4", False)])
def test_a_faster_copy_gives_the_verdict_of_the_classifier(tap: str, ends: bool) -> None:
    model, images = curved(SHAPE, 5), pictures(16, SHAPE)
    classifier = on_tap(model, tap, images, feature="flatten")
    classifier.ends_at_tap = ends
    labels = classifier(images).argmax(1)
    plain, fast = (
        evaluate(classifier, images, labels, BALL, protocol=APGD_ONLY, accelerate=accelerate)
        for accelerate in (False, True)
    )
    assert plain.accelerated == ()
    assert fast.accelerated == ("folded", "channels_last")
    assert (plain.robust != fast.robust).sum() <= 1
    assert 0 < fast.robust_accuracy < 1
    assert "acceleration-dropped" not in [warned.name for warned in fast.warnings]


# A module like any other


def test_state_and_flags_are_those_of_a_module() -> None:
    model, images = warmed_up(make(shape=SHAPE)), some_images(9, SHAPE)
    classifier = on_tap(model, "block2", images, classes=10)
    assert not classifier.training
    assert NearestVertexClassifier(model.train(), "block1", torch.rand(2, 32)).training
    classifier.eval()
    assert not model.backbone.block2.training
    empty = NearestVertexClassifier(make(shape=SHAPE, seed=1), "block2", torch.zeros(10, 32))
    empty.load_state_dict(classifier.state_dict())
    assert torch.equal(empty.eval()(images), classifier(images))
    assert float(empty.scale) == float(classifier.scale)


def test_what_cannot_be_used_is_explained() -> None:
    model, images = make(shape=SHAPE).eval(), some_images(3, SHAPE)
    vertices = torch.rand(10, 32)
    with pytest.raises(UnknownNameError, match="unknown tap 'block9'; did you mean 'block"):
        NearestVertexClassifier(model, "block9", vertices)
    with pytest.raises(UnknownNameError, match="unknown feature 'mean'"):
        NearestVertexClassifier(model, "block1", vertices, feature="mean")
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="scale must be finite and above 0"):
            NearestVertexClassifier(model, "block1", vertices, scale=scale)
    with pytest.raises(InputError, match="at least two classes"):
        NearestVertexClassifier(model, "block1", torch.full((3, 32), torch.nan))
    with pytest.raises(InputError, match="'block3' gives 64 features by 'gap', the vertices have"):
        nearest_vertex_classifier(model, "block3", vertices, images)
    with pytest.raises(UnknownNameError, match="unknown tap '99'"):
        nearest_vertex_classifier(curved(SHAPE, 5), "99", vertices, images)
    with pytest.raises(InputError, match="this small_cnn takes images of 1 channel"):
        NearestVertexClassifier(model, "block1", vertices)(torch.rand(2, 3, 8, 8))

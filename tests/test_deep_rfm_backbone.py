"""Deep RFM as a network: solved on digits, attacked, profiled, kept; and what is refused."""

import pytest
import torch
from helpers_models import make
from torch import Tensor

import robust_nc
from robust_nc.config import ModelConfig, RunConfig, build, component, read
from robust_nc.data.base import Split, numbered
from robust_nc.data.load import read_split, to_unit
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier
from robust_nc.models.deep_rfm import DeepRFM
from robust_nc.models.deep_rfm_backbone import DeepRfmBackbone
from robust_nc.registry import OBJECTIVES
from robust_nc.threat import Ball
from robust_nc.training.checkpoint import read_tensors, write_tensors
from robust_nc.training.deep_rfm import DeepRfm
from robust_nc.training.progress import TrainEvent
from robust_nc.training.run import build_objective
from robust_nc.training.state import load_weights, weights_of
from robust_nc.training.validation import evenly_chosen

LINEAR = {"name": "linear", "bias": False}
DIGITS = {"name": "deep_rfm", "layers": 3, "width": 256, "centers": 600}
SMALL = {"name": "deep_rfm", "layers": 2, "width": 24, "centers": 30}
SHAPE = (1, 4, 4)


def solved(model: Classifier, split: Split) -> tuple[Classifier, DeepRFM, Split]:
    """Solve the backbone and head of a model; return it with the machine and the centers."""
    chosen = evenly_chosen(split, model.backbone.dim)
    with torch.no_grad():
        images = model.normalise(to_unit(chosen.images))
    assert isinstance(model.backbone, DeepRfmBackbone)
    machine = model.backbone.solve(images, chosen.labels, model.head)
    return model.eval(), machine, chosen._replace(images=to_unit(chosen.images))


@pytest.fixture(scope="module")
def on_digits() -> tuple[Classifier, DeepRFM, Split]:
    return solved(make(DIGITS, LINEAR, shape=(1, 8, 8)), read_split("digits", "train"))


@pytest.fixture(scope="module")
def test_images() -> Split:
    found = read_split("digits", "test")
    return found._replace(images=to_unit(found.images))


def toy(count: int = 30, *, classes: int = 3, seed: int = 0) -> Split:
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    patterns = torch.rand(classes, *SHAPE, generator=torch.Generator().manual_seed(9))
    noise = torch.rand(count, *SHAPE, generator=source)
    return numbered(0.6 * patterns[labels] + 0.4 * noise, labels)


def toy_model(backbone: object = SMALL, head: object = LINEAR, *, seed: int = 0, **options):
    return make(backbone, head, shape=SHAPE, num_classes=3, seed=seed, **options)


def flat(model: Classifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.normalise(images).flatten(1)


class TestOnDigits:
    def test_it_classifies_and_pgd_lowers_that(self, on_digits, test_images):
        model, _, _ = on_digits
        with torch.no_grad():
            right = model(test_images.images).argmax(1) == test_images.labels
        assert float(right.double().mean()) > 0.9
        images, labels = test_images.images[:50], test_images.labels[:50]
        outcome = robust_nc.evaluate(model, images, labels, Ball("Linf", 0.1), protocol="pgd")
        assert outcome.clean_accuracy > 0.9
        assert outcome.robust_accuracy < outcome.clean_accuracy - 0.1

    def test_logits_and_taps_are_those_of_the_machine(self, on_digits, test_images):
        model, machine, centers = on_digits
        for images in (test_images.images, centers.images):
            rows = flat(model, images)
            with torch.no_grad():
                read = model.tapped(images)
            torch.testing.assert_close(
                read.logits.double(), machine.decision(rows), rtol=0, atol=1e-4
            )
            for layer in (1, 2, 3):
                torch.testing.assert_close(
                    read.features[f"layer{layer}"].double(),
                    machine.transform(rows, layer),
                    rtol=0,
                    atol=1e-5,
                )
        assert tuple(read.features) == ("layer1", "layer2", "layer3", "penultimate")
        assert read.features["penultimate"].shape == (600, 600)
        torch.testing.assert_close(read.features["penultimate"].diagonal(), torch.ones(600))

    def test_saved_and_loaded_to_the_bit(self, on_digits, test_images, tmp_path):
        model, _, _ = on_digits
        file = write_tensors(tmp_path, "best", weights_of(model))
        fresh = make(DIGITS, LINEAR, shape=(1, 8, 8), seed=5).eval()
        with torch.no_grad():
            wanted = model(test_images.images)
            assert not torch.equal(fresh(test_images.images), wanted)
            load_weights(fresh, read_tensors(tmp_path, file))
            assert torch.equal(fresh(test_images.images), wanted)


class TestSmall:
    @pytest.mark.parametrize(
        "options",
        [{"agop": False}, {"activation": "cosine"}, {"kernel": "gaussian", "ridge": 0.05}],
        ids=str,
    )
    def test_logits_are_those_of_the_machine(self, options):
        model, machine, _ = solved(toy_model(SMALL | options), toy())
        images = toy(seed=1).images
        wanted = machine.decision(flat(model, images))
        torch.testing.assert_close(model(images).detach().double(), wanted, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("kernel", ["laplace", "gaussian"])
    def test_gradients_equal_finite_differences(self, kernel):
        model = solved(toy_model(SMALL | {"kernel": kernel}), toy())[0].double()
        images = toy(3, seed=1).images.double().requires_grad_()
        assert torch.autograd.gradcheck(model, (images,), eps=1e-6, atol=1e-5)

    def test_gradients_are_finite_at_a_center_and_for_an_image_of_zeros(self):
        model, _, centers = solved(toy_model(), toy())
        images = torch.cat([centers.images, torch.full((1, *SHAPE), 0.5)])  # 0 once normalised
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(model(images).square().sum(), images)
        assert bool(gradient.isfinite().all())
        assert float(gradient.flatten(1).norm(dim=1)[:-1].min()) > 0

    def test_solving_again_changes_nothing(self):
        model, _, _ = solved(toy_model(), toy())
        before = weights_of(model)
        state = torch.random.get_rng_state()
        solved(model, toy())
        assert torch.equal(torch.random.get_rng_state(), state)
        after = weights_of(model)
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_a_temperature_leaves_the_logits_as_they_are(self):
        hot = ModelConfig(
            backbone=component(SMALL),
            head=component(LINEAR),
            num_classes=3,
            image_shape=SHAPE,
            temperature=4.0,
        )
        warm, _, _ = solved(build_model(hot), toy())
        plain, _, _ = solved(toy_model(), toy())
        torch.testing.assert_close(warm(toy().images), plain(toy().images))


class TestObjective:
    def test_solves_on_centers_spread_over_the_split(self):
        model, split = toy_model(), toy(50, classes=3)
        events: list[TrainEvent] = []
        DeepRfm().solve(model, split, seed=0, report=events.append)
        chosen = evenly_chosen(split, 30)
        assert not torch.equal(chosen.ids, torch.arange(30))
        expected, _, _ = solved(toy_model(), chosen)
        assert torch.equal(model.eval()(split.images), expected(split.images))
        shares = [event.share for event in events]
        assert shares == sorted(shares)
        assert shares[-1] == 1

    def test_bytes_are_brought_into_the_unit_range(self):
        split = toy()
        stored = split._replace(images=(split.images * 255).round().to(torch.uint8))
        model = toy_model()
        DeepRfm().solve(model, stored, seed=0)
        expected, _, _ = solved(toy_model(), split._replace(images=to_unit(stored.images)))
        assert torch.equal(model(split.images), expected(split.images))

    def test_is_built_from_a_configuration_and_takes_no_step(self):
        config = read(RunConfig, {"train": {"objective": "deep_rfm", "epochs": 0}})
        objective = build_objective(config)
        assert isinstance(objective, DeepRfm)
        assert objective.best_by == "validation_clean"
        split = toy()
        with pytest.raises(ConfigError, match=r"closed form.*set train\.epochs = 0"):
            objective(toy_model(), split.images, split.labels, seed=0, ids=split.ids)
        with pytest.raises(ConfigError, match="no option 'steps'"):
            build(OBJECTIVES, component({"name": "deep_rfm", "steps": 3}))

    def test_other_models_are_refused(self):
        with pytest.raises(ConfigError, match="fits the backbone 'deep_rfm', found 'mlp'"):
            DeepRfm().solve(toy_model("mlp"), toy(), seed=0)
        for model in (
            toy_model(head="linear"),
            toy_model(head="etf"),
            toy_model(normalise_features=True),
        ):
            with pytest.raises(ConfigError, match="linear head that has no bias"):
                DeepRfm().solve(model, toy(), seed=0)

    def test_a_neck_is_refused_and_the_backbone_behind_it_named(self):
        told = ((SMALL, r"leave out model\.neck"), ("mlp", "'deep_rfm', found 'mlp'"))
        for backbone, words in told:
            config = ModelConfig(
                backbone=component(backbone),
                neck=component("transform"),
                head=component(LINEAR),
                num_classes=3,
                image_shape=SHAPE,
            )
            with pytest.raises(ConfigError, match=words):
                DeepRfm().solve(build_model(config), toy(), seed=0)

    def test_too_few_images_are_refused_with_the_number_to_set(self):
        with pytest.raises(InputError, match=r"30 centers.*only 20 training images.*centers to 20"):
            DeepRfm().solve(toy_model(), toy(20), seed=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"centers": 1}, "centers must be at least 2"),
        ({"ridge": 0.0}, "ridge must be finite and above 0"),
        ({"kernel": "laplac"}, "'kernel': input should be 'laplace' or 'gaussian'"),
        ({"agop": 1}, "'agop'"),
        ({"depth": 3}, "no option 'depth'"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises((ConfigError, InputError), match=words):
        toy_model(SMALL | options)

"""Necks: the backbone stays as it is, the head reads what the neck gives, and evaluation copes."""

import pytest
import torch
from helpers_models import digits, learnt, some_images, warmed_up
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from robust_nc import evaluate
from robust_nc.config import Component, ModelConfig, TrainConfig, component
from robust_nc.evaluation.acceleration import accelerate
from robust_nc.exceptions import InputError
from robust_nc.models.backbones import SmallCnn
from robust_nc.models.build import build_model
from robust_nc.models.necks import Necked, Transform, without_neck
from robust_nc.threat import Ball
from robust_nc.training.state import make_optimizer

SHAPE = (1, 8, 8)
BLOCKS = ("block1", "block2", "block3", "block4")


def necked(neck="transform", backbone="small_cnn", head="linear", *, num_classes=10, seed=0):
    config = ModelConfig(
        backbone=component(backbone),
        neck=None if neck is None else component(neck),
        head=component(head),
        num_classes=num_classes,
        image_shape=SHAPE,
    )
    return build_model(config, seed=seed)


def test_taps_end_in_pooled_and_penultimate():
    model = warmed_up(necked({"name": "transform", "width": 7}))
    assert model.taps == (*BLOCKS, "pooled", "penultimate")
    read = model.tapped(some_images(3, SHAPE))
    assert read.features["pooled"].shape == (3, 64)
    assert read.features["penultimate"].shape == (3, 7)
    inner = without_neck(model.backbone)
    pixels = model.normalise(some_images(3, SHAPE))
    assert torch.equal(read.features["pooled"], inner(pixels))
    assert torch.equal(read.features["penultimate"], model.backbone.neck(inner(pixels)))
    assert torch.equal(read.logits, model(some_images(3, SHAPE)))


def test_width_is_the_number_of_classes_unless_said_otherwise():
    assert necked(num_classes=6).head.dim == 6
    assert necked({"name": "transform", "width": 24}, num_classes=6).head.dim == 24


def test_a_backbone_is_the_same_to_the_bit_with_and_without_a_neck():
    bare, dressed = necked(None, seed=3), necked(seed=3)
    inner, plain = dressed.backbone.inner.state_dict(), bare.backbone.state_dict()
    assert inner.keys() == plain.keys()
    assert all(torch.equal(inner[name], plain[name]) for name in plain)
    assert without_neck(dressed.backbone) is dressed.backbone.inner
    assert without_neck(bare.backbone) is bare.backbone


def test_a_neck_is_fixed_by_the_seed_and_is_the_same_under_every_head():
    first, again, other = (
        necked(head=head, seed=seed).backbone.neck.state_dict()
        for head, seed in (("linear", 1), ("etf", 1), ("linear", 2))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["project.weight"], other["project.weight"])
    state = torch.get_rng_state()
    necked()
    assert torch.equal(torch.get_rng_state(), state)


def by_hand(state, features, blocks):
    """The layers of the paper, in functions alone."""

    def normed(values, name):
        running = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(values, *running, state[f"{name}.weight"], state[f"{name}.bias"])

    output = normed(features @ state["project.weight"].T, "norm")
    for index in range(blocks):
        hidden = output
        for layer in (1, 2):
            name = f"blocks.{index}"
            hidden = hidden @ state[f"{name}.linear{layer}.weight"].T
            hidden = normed(hidden, f"{name}.norm{layer}")
            slopes = state[f"{name}.slope{layer}.weight"]
            hidden = torch.where(hidden > 0, hidden, slopes * hidden)
        output = output + hidden
    return output


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_the_layers_are_the_papers(blocks):
    neck = Transform(12, 5, blocks=blocks)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(5):
            neck(torch.randn(20, 12, generator=draws))
        for name, parameter in neck.named_parameters():
            if "slope" in name:
                parameter.uniform_(-0.5, 0.5, generator=draws)
    neck.eval()
    features = torch.randn(6, 12, generator=draws)
    torch.testing.assert_close(neck(features), by_hand(neck.state_dict(), features, blocks))


def test_a_linear_map_after_the_pool_is_a_1x1_convolution_before_it():
    maps = some_images(2, (12, 4, 4))
    weight = Transform(12, 5).project.weight
    before = F.conv2d(maps, weight[:, :, None, None]).mean((2, 3))
    torch.testing.assert_close(F.linear(maps.mean((2, 3)), weight), before)


def test_the_parameters_of_the_default():
    neck = Transform(64, 10)
    wanted = 640 + 20 + 2 * (2 * 100 + 2 * 20 + 2 * 10)
    assert sum(parameter.numel() for parameter in neck.parameters()) == wanted


def test_every_parameter_takes_part_and_features_reach_below_zero():
    model = necked()
    read = model.tapped(some_images(16, SHAPE))
    F.cross_entropy(read.logits, torch.arange(16) % 10).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert float(read.features["penultimate"].detach().min()) < 0


@pytest.mark.parametrize("backbone", ["small_cnn", "mlp", "vit"])
def test_evaluation_takes_a_neck(backbone):
    options = {"patch": 2, "dim": 8, "depth": 1, "heads": 2} if backbone == "vit" else {}
    model = warmed_up(necked(backbone={"name": backbone, **options})).requires_grad_(False)
    images, ball = some_images(6, SHAPE), Ball("Linf", 0.05)
    labels = model(images).argmax(1)
    twin = accelerate(model, images, labels, ball, model(images))
    assert "folded" in twin.names
    norms = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    assert not any(isinstance(part, norms) for part in twin.model.modules())
    outcome = evaluate(model, images, labels, ball, protocol="pgd", checks=False)
    assert torch.equal(outcome.robust, model(outcome.adversarials).argmax(1) == labels)


def test_saved_and_loaded_weights_are_exact(tmp_path):
    model = warmed_up(necked(seed=1))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = necked(seed=2).eval()
    loaded.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(loaded(some_images(4, SHAPE)), model(some_images(4, SHAPE)))
    assert {".".join(name.split(".")[:2]) for name in model.backbone.state_dict()} >= {
        "inner.block1",
        "neck.project",
    }


def test_images_are_refused_in_the_words_of_the_backbone():
    with pytest.raises(InputError, match="small_cnn needs images of at least 4 x 4, found 3 x 3"):
        necked()(some_images(2, (1, 3, 3)))


def test_necks_do_not_stack_or_mismatch_in_silence():
    backbone = SmallCnn(SHAPE)
    with pytest.raises(AssertionError):
        Necked(backbone, Transform(63, 10))
    with pytest.raises(AssertionError):
        Necked(Necked(backbone, Transform(64, 10)), Transform(10, 10))


@pytest.mark.parametrize("head", ["linear", "etf"])
def test_a_network_with_a_neck_fits_digits(head):
    images, labels = digits(limit=100)[:2]
    model = necked(backbone={"name": "small_cnn", "width": 8}, head=head)
    assert learnt(model, images, labels, steps=30) > 0.95


def test_a_neck_learns_at_the_rate_of_the_head() -> None:
    config = ModelConfig(
        image_shape=(1, 8, 8), neck=Component(name="transform"), head=Component(name="etf")
    )
    model = build_model(config)
    optimizer = make_optimizer(model, TrainConfig(backbone_lr=0.1))
    factors = {
        id(parameter): group["factor"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    found = {name: factors[id(parameter)] for name, parameter in model.named_parameters()}
    assert {found[name] for name in found if name.startswith("backbone.inner.")} == {0.1}
    assert {found[name] for name in found if name.startswith("backbone.neck.")} == {1.0}

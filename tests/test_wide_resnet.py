"""Wide residual networks: the published sizes, and a forward pass written out beside them."""

import pytest
import torch
from helpers_models import digits, learnt, make, some_images, warmed_up
from torch.nn import functional as F

from robust_nc import evaluate
from robust_nc.evaluation.acceleration import accelerate
from robust_nc.models.backbones import WideResNet
from robust_nc.threat import Ball


@pytest.mark.parametrize(
    ("depth", "widen", "classes", "parameters"),
    [(28, 10, 10, 36_479_194), (34, 10, 10, 46_160_474), (16, 4, 10, 2_748_890)],
)
def test_the_published_sizes(depth, widen, classes, parameters):
    with torch.device("meta"):
        backbone = WideResNet((3, 32, 32), depth=depth, widen=widen)
    own = sum(parameter.numel() for parameter in backbone.parameters())
    assert own + (backbone.dim + 1) * classes == parameters


def test_the_default_is_28_10_and_names_every_block():
    with torch.device("meta"):
        backbone = WideResNet((3, 32, 32))
    blocks = [f"group{group}.{block}" for group in (1, 2, 3) for block in range(4)]
    assert backbone.tap_names == ("stem", *blocks, "penultimate")
    assert backbone.dim == 640


@pytest.mark.parametrize("side", [4, 8, 28])
def test_groups_halve_the_image(side):
    backbone = WideResNet((1, side, side), depth=16, widen=2).eval()
    with torch.no_grad():
        shapes = [
            tuple(out.shape[1:]) for _, out in backbone.blocks(some_images(1, (1, side, side)))
        ]
    half, quarter = side // 2, side // 4
    groups = [(32, side, side)] * 2 + [(64, half, half)] * 2 + [(128, quarter, quarter)] * 2
    assert shapes == [(16, side, side), *groups, (128,)]


def by_hand(state, images):
    """WRN-16-2 from its weights, in functions alone."""

    def active(values, name):
        running = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        affine = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.relu(F.batch_norm(values, *running, *affine))

    output = F.conv2d(images, state["stem.weight"], padding=1)
    for group in (1, 2, 3):
        for block in range(2):
            name = f"group{group}.{block}"
            stride = 2 if group > 1 and block == 0 else 1
            first = active(output, f"{name}.norm1")
            hidden = F.conv2d(first, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            hidden = active(hidden, f"{name}.norm2")
            hidden = F.conv2d(hidden, state[f"{name}.conv2.weight"], padding=1)
            if block == 0:
                output = F.conv2d(first, state[f"{name}.shortcut.weight"], stride=stride)
            output = output + hidden
    return active(output, "norm").mean((2, 3))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_forward_pass_is_the_papers(dropout):
    options = {"depth": 16, "widen": 2, "dropout": dropout}
    model = warmed_up(make({"name": "wide_resnet", **options}, shape=(1, 8, 8)))
    images = some_images(3, (1, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(
            model.backbone(images), by_hand(model.backbone.state_dict(), images)
        )


def test_dropout_acts_in_training_alone_and_only_where_asked_for():
    images = some_images(4, (1, 8, 8))
    dropping = WideResNet((1, 8, 8), depth=10, widen=1, dropout=0.5)
    assert not torch.equal(dropping(images), dropping(images))
    dropping.eval()
    assert torch.equal(dropping(images), dropping(images))
    plain = WideResNet((1, 8, 8), depth=10, widen=1)
    before = torch.get_rng_state()
    plain(images)
    assert torch.equal(torch.get_rng_state(), before)
    assert plain.state_dict().keys() == dropping.state_dict().keys()


def test_evaluation_attacks_a_folded_copy():
    model = make({"name": "wide_resnet", "depth": 10, "widen": 1}, shape=(1, 8, 8))
    model = warmed_up(model).requires_grad_(False)
    images, ball = some_images(6, (1, 8, 8)), Ball("Linf", 0.03)
    labels = model(images).argmax(1)
    twin = accelerate(model, images, labels, ball, model(images))
    assert "folded" in twin.names
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in twin.model.modules())
    # The second batch norm of each block folds; a dropout that drops nothing is one from the start.
    assert sum(isinstance(part, torch.nn.Identity) for part in twin.model.modules()) == 3 + 3
    outcome = evaluate(model, images, labels, ball, protocol="pgd", checks=False)
    assert torch.equal(outcome.robust, model(outcome.adversarials).argmax(1) == labels)


def test_a_tiny_one_fits_digits():
    images, labels = digits(limit=100)[:2]
    model = make({"name": "wide_resnet", "depth": 10, "widen": 1}, shape=(1, 8, 8))
    assert learnt(model, images, labels, steps=15) > 0.95

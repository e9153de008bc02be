"""Vision transformers, wide residual networks and necks, each against its layers by hand."""

import pytest
import torch
from helpers_models import make, same_weights, some_images, warmed_up
from torch import nn
from torch.nn import functional as F

from robust_nc import evaluate
from robust_nc.config import Component, ModelConfig, TrainConfig, component
from robust_nc.evaluation.acceleration import accelerate
from robust_nc.models.backbones import WideResNet
from robust_nc.models.build import build_model
from robust_nc.models.necks import Transform, without_neck
from robust_nc.models.vit import Vit
from robust_nc.threat import Ball
from robust_nc.training.state import make_optimizer

# Vision transformers

TINY = {"patch": 2, "dim": 16, "depth": 2, "heads": 2}


def torchs_encoder(vit: Vit, heads: int) -> nn.TransformerEncoder:
    """Give the weights of our blocks to torch's encoder."""
    hidden = vit.get_submodule("block1").mlp[0].out_features
    layer = nn.TransformerEncoderLayer(
        vit.dim, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    depth = len(vit.tap_names) - 1
    encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    for index, other in enumerate(encoder.layers, start=1):
        block = vit.get_submodule(f"block{index}")
        other.self_attn.in_proj_weight = block.attention.queries_keys_values.weight
        other.self_attn.in_proj_bias = block.attention.queries_keys_values.bias
        other.self_attn.out_proj.load_state_dict(block.attention.mix.state_dict())
        other.linear1.load_state_dict(block.mlp[0].state_dict())
        other.linear2.load_state_dict(block.mlp[2].state_dict())
        other.norm1.load_state_dict(block.norm1.state_dict())
        other.norm2.load_state_dict(block.norm2.state_dict())
    return encoder


def lively(vit: Vit) -> Vit:
    """Draw shifts and scales too, so that one left out would be seen."""
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.3)
    return vit.double()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_features_are_those_of_torchs_encoder(pooling):
    vit = lively(Vit((3, 8, 6), patch=2, dim=12, depth=3, heads=3, pooling=pooling))
    images = some_images(4, (3, 8, 6)).double()
    patches = F.unfold(images, 2, stride=2).transpose(1, 2)  # (N, 12, 3 * 2 * 2)
    tokens = F.linear(patches, vit.embed.weight.flatten(1), vit.embed.bias) + vit.positions
    if pooling == "cls":
        tokens = torch.cat([vit.token.expand(4, 1, 12), tokens], 1)
    encoded = vit.norm(torchs_encoder(vit, 3).double()(tokens))
    wanted = encoded[:, 0] if pooling == "cls" else encoded.mean(1)
    torch.testing.assert_close(vit(images), wanted)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_taps_are_maps_in_the_place_of_their_patches(pooling):
    vit = Vit((1, 8, 12), **TINY, pooling=pooling).eval()
    read = dict(vit.blocks(some_images(2, (1, 8, 12))))
    assert {name: tuple(output.shape) for name, output in read.items()} == {
        "block1": (2, 16, 4, 6),
        "block2": (2, 16, 4, 6),
        "penultimate": (2, 16),
    }
    with torch.no_grad():  # without attention, a block's map shows where an image was changed
        vit.block1.attention.mix.weight.zero_()
    images = some_images(1, (1, 8, 12))
    changed = images.clone()
    changed[0, 0, 5, 2] += 1
    first, second = (next(vit.blocks(points))[1] for points in (images, changed))
    places = (first != second).any(1)[0].nonzero().tolist()
    assert places == [[2, 1]]


def test_the_parameters_of_the_default():
    model = make("vit")
    block = 4 * 192 * 193 + 2 * 2 * 192 + 2 * 192 * 384 + 384 + 192
    parts = (192 * 49, 64 * 192, 6 * block, 2 * 192, 10 * 193)
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(parts) == 1_806_154


def test_it_has_second_derivatives():
    vit = Vit((1, 4, 4), **TINY).double()
    images = some_images(1, (1, 4, 4)).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda points: vit(points).sum(), images)


# Wide residual networks


@pytest.mark.parametrize(
    ("depth", "widen", "classes", "parameters"),
    [(28, 10, 10, 36_479_194), (34, 10, 10, 46_160_474), (16, 4, 10, 2_748_890)],
)
def test_the_published_sizes(depth, widen, classes, parameters):
    with torch.device("meta"):
        backbone = WideResNet((3, 32, 32), depth=depth, widen=widen)
    own = sum(parameter.numel() for parameter in backbone.parameters())
    assert own + (backbone.dim + 1) * classes == parameters


def wide_by_hand(state, images):
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
            model.backbone(images), wide_by_hand(model.backbone.state_dict(), images)
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


# Necks

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
    assert necked(num_classes=6).head.dim == 6
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


def test_a_backbone_is_the_same_to_the_bit_with_and_without_a_neck():
    bare, dressed = necked(None, seed=3), necked(seed=3)
    assert same_weights(dressed.backbone.inner, bare.backbone)
    assert without_neck(dressed.backbone) is dressed.backbone.inner
    assert without_neck(bare.backbone) is bare.backbone


def test_a_neck_is_fixed_by_the_seed_and_is_the_same_under_every_head():
    state = torch.get_rng_state()
    first, again, other = (
        necked(head=head, seed=seed).backbone.neck
        for head, seed in (("linear", 1), ("etf", 1), ("linear", 2))
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(first, again)
    assert not same_weights(first, other)


def neck_by_hand(state, features, blocks):
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
    torch.testing.assert_close(neck(features), neck_by_hand(neck.state_dict(), features, blocks))


@pytest.mark.parametrize(
    ("backbone", "neck"),
    [
        ({"name": "vit", **TINY, "pooling": "cls"}, "transform"),
        ({"name": "wide_resnet", "depth": 10, "widen": 1}, None),
        ("mlp", "transform"),
    ],
)
def test_evaluation_attacks_a_folded_copy(backbone, neck):
    model = warmed_up(necked(neck, backbone)).requires_grad_(False)
    images, ball = some_images(6, SHAPE), Ball("Linf", 0.05)
    labels = model(images).argmax(1)
    twin = accelerate(model, images, labels, ball, model(images))
    assert "folded" in twin.names
    norms = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    assert not any(isinstance(part, norms) for part in twin.model.modules())
    outcome = evaluate(model, images, labels, ball, protocol="pgd", checks=False)
    assert torch.equal(outcome.robust, model(outcome.adversarials).argmax(1) == labels)


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

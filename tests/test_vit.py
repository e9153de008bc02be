"""The vision transformer: its sizes and maps, against torch's own encoder, and that it learns."""

import pytest
import torch
from helpers_models import digits, learnt, make, some_images
from torch import nn
from torch.nn import functional as F

from robust_nc import evaluate
from robust_nc.models.vit import Vit
from robust_nc.threat import Ball

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


def test_positions_tell_places_apart():
    vit = Vit((1, 8, 8), **TINY).eval()
    images = some_images(2, (1, 8, 8))
    shifted = images.roll(2, 3)
    assert float((vit(images) - vit(shifted)).detach().abs().max()) > 1e-2
    with torch.no_grad():
        vit.positions.zero_()
        torch.testing.assert_close(vit(images), vit(shifted))


def test_it_has_second_derivatives():
    vit = Vit((1, 4, 4), **TINY).double()
    images = some_images(1, (1, 4, 4)).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda points: vit(points).sum(), images)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_evaluation_takes_it(pooling):
    backbone = {"name": "vit", **TINY, "pooling": pooling}
    model = make(backbone, shape=(1, 8, 8)).eval().requires_grad_(False)
    images = some_images(6, (1, 8, 8))
    labels = model(images).argmax(1)
    outcome = evaluate(model, images, labels, Ball("Linf", 0.01), protocol="pgd", checks=False)
    assert 0 < int(outcome.robust.sum()) < 6
    assert torch.equal(outcome.robust, model(outcome.adversarials).argmax(1) == labels)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_tiny_one_learns_digits(pooling):
    images, labels = digits(limit=300)[:2]
    unseen = digits("test", limit=200)
    backbone = {"name": "vit", **TINY, "dim": 32, "pooling": pooling}
    model = make(backbone, shape=(1, 8, 8))
    assert learnt(model, images, labels, steps=20, lr=0.03, size=50) > 0.97
    with torch.no_grad():
        right = model.eval()(unseen.images).argmax(1) == unseen.labels
    assert float(right.float().mean()) > 0.7

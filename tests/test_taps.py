"""Taps of models that are not ours: what is found, what is read, and that no hook stays."""

from collections.abc import Callable

import pytest
import torch
from helpers_models import make, some_images
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.exceptions import InputError, UnknownNameError
from robust_nc.models.taps import module_taps, pool_features, read_taps

SHAPE = (3, 8, 8)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(images)))


class Residual(nn.Module):
    """Laid out like a common ResNet; `linear` is registered first on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 5)
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Block(4, 4), Block(4, 4))
        self.layer2 = nn.Sequential(Block(4, 8))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.unused = nn.Sequential(Block(3, 3))

    def forward(self, images: Tensor) -> Tensor:
        output = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(images)))))
        return self.linear(self.avgpool(output).flatten(1))


class Transformer(nn.Module):
    """Tokens, a class token as a parameter of the model itself, and two heads of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 8) for _ in range(2)))
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(tokens), 1, 8), tokens], 1)
        return self.head(self.blocks(tokens)[:, 0])


class FixedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU())
        self.register_buffer("frame", torch.randn(5, 8))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) @ self.frame.T


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(24, 5),
    )


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_taps_of_a_plain_sequence_end_its_blocks():
    model = sequential().eval()
    assert module_taps(model) == ("2", "5", "penultimate")
    images = some_images(3, SHAPE)
    read = read_taps(model, images)
    assert torch.equal(read.logits, model(images))
    for name, stop in (("2", 3), ("5", 6)):
        torch.testing.assert_close(read.features[name], model[:stop](images).mean((2, 3)))
    torch.testing.assert_close(read.features["penultimate"], model[:-1](images))


def test_taps_of_a_residual_network_are_its_blocks():
    model = Residual().eval()
    images = some_images(3, SHAPE)
    read = read_taps(model, images)
    assert tuple(read.features) == ("relu", "layer1.0", "layer1.1", "layer2.0", "penultimate")
    assert torch.equal(model.linear(read.features["penultimate"]), read.logits)
    assert torch.equal(read.features["layer2.0"], read.features["penultimate"])
    flat = read_taps(model, images, ("layer1.0",), "flatten")
    assert flat.features["layer1.0"].shape == (3, 4 * 8 * 8)


@pytest.mark.parametrize("wrap", [lambda m: nn.Sequential(nn.Identity(), m), nn.DataParallel])
def test_wrappers_are_looked_into(wrap: Callable[[nn.Module], nn.Module]):
    model = wrap(Residual()).eval()
    read = read_taps(model, some_images(3, SHAPE))
    names = [name.removeprefix("1.") for name in read.features]
    assert names == ["relu", "layer1.0", "layer1.1", "layer2.0", "penultimate"]


def test_tokens_are_averaged():
    model = Transformer().eval()
    read = read_taps(model, some_images(3, SHAPE))
    assert tuple(read.features) == ("embed", "blocks.0", "blocks.1", "penultimate")
    assert {values.shape for values in read.features.values()} == {(3, 8)}
    assert torch.equal(model.head(read.features["penultimate"]), read.logits)


def test_a_layer_that_works_in_place_does_not_change_the_tap_before_it():
    model = sequential().eval()
    images = some_images(3, SHAPE)
    for feature in ("gap", "flatten"):
        read = read_taps(model, images, ["1"], feature)
        torch.testing.assert_close(read.features["1"], pool_features(model[:2](images), feature))


def test_features_of_a_foreign_model_keep_their_graph():
    images = some_images(3, SHAPE).requires_grad_()
    read_taps(Residual().eval(), images, ["layer1.0"]).features["layer1.0"].sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().max()) > 0


def test_hooks_are_gone_also_when_the_model_raises():
    model = Residual().eval()
    read_taps(model, some_images(3, SHAPE))
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError, match="channels"):
        read_taps(model, torch.rand(2, 7, 8, 8))
    with pytest.raises(UnknownNameError, match=r"did you mean 'layer1\.0'"):
        read_taps(model, some_images(3, SHAPE), ["layer1.0", "layer1.00"])
    assert hooks_of(model) == 0


def test_what_cannot_be_read_is_explained():
    images = some_images(3, SHAPE)
    with pytest.raises(InputError, match="tap 'unused' did not run, or gave no"):
        read_taps(Residual().eval(), images, ["unused"])
    with pytest.raises(UnknownNameError, match="unknown feature 'mean'"):
        read_taps(Residual().eval(), images, None, "mean")
    with pytest.raises(InputError, match=r"must return logits \(N, K\)"):
        read_taps(Residual().eval().layer1, torch.rand(3, 4, 8, 8), ["0"])
    with pytest.raises(InputError, match=r"\(N, D\), \(N, T, C\) or \(N, C, H, W\), found"):
        pool_features(torch.zeros(2, 1, 1, 1, 1), "gap")


def test_a_fixed_head_outside_any_layer_is_not_guessed():
    model = FixedHead().eval()
    images = some_images(3, SHAPE)
    with pytest.raises(InputError, match=r"cannot tell which layer gives the logits.*\(3, 8\)"):
        read_taps(model, images)
    assert tuple(read_taps(model, images, ["body"]).features) == ("body",)


def test_half_precision_is_read_as_float32():
    with torch.autocast("cpu", torch.bfloat16):
        read = read_taps(Residual().eval(), some_images(3, SHAPE), ["layer1.0", "penultimate"])
    assert {values.dtype for values in read.features.values()} == {torch.float32}


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel])
def test_our_own_models_read_themselves(wrap: Callable[[nn.Module], nn.Module]):
    model = make(shape=SHAPE).eval()
    images = some_images(3, SHAPE)
    assert module_taps(wrap(model)) == model.taps
    read, own = read_taps(wrap(model), images, ["block2"]), model.tapped(images, taps=["block2"])
    assert torch.equal(read.features["block2"], own.features["block2"])
    assert torch.equal(read.logits, own.logits)


@pytest.mark.parametrize(("backbone", "head"), [("small_cnn", "linear"), ("mlp", "etf")])
def test_our_own_model_within_another_is_read_like_any_other(backbone, head):
    model = make(backbone, head, shape=SHAPE).eval()
    images = some_images(3, SHAPE)
    read = read_taps(nn.Sequential(nn.Identity(), model), images)
    torch.testing.assert_close(
        read.features["penultimate"], model.tapped(images).features["penultimate"]
    )

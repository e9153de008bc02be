"""Networks of timm as backbones: with timm where it is installed, and with a stand-in elsewhere."""

from types import SimpleNamespace

import pytest
import torch
from helpers_models import make, some_images, warmed_up
from torch import nn

from robust_nc import evaluate
from robust_nc.config import Component, ModelConfig
from robust_nc.evaluation.acceleration import accelerate
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.models import timm_backbone
from robust_nc.models.build import build_model
from robust_nc.threat import Ball


class Convolutional(nn.Module):
    """What timm's convolutional networks look like from outside."""

    feature_info = (
        {"module": "stem"},
        {"module": "pair"},  # gives no tensor
        {"module": "flat"},  # gives no map
        {"module": "gone"},  # is not there
        {"module": "stage"},
        {"module": "head"},  # runs later
    )

    def __init__(self, in_chans):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.pair = Pair()
        self.flat = nn.Flatten()
        self.stage = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 5)

    def forward_features(self, images):
        self.flat(images)
        return self.stage(self.pair(self.act(self.stem(images)))[0])

    def forward_head(self, maps, pre_logits=False):
        assert pre_logits
        return self.head(maps.mean((2, 3)))


class Pair(nn.Module):
    def forward(self, maps):
        return maps, maps


class Tokens(nn.Module):
    """What timm's transformers look like: a size of their own, a class token, no batch norm."""

    num_prefix_tokens = 1
    feature_info = ({"module": "block"},)

    def __init__(self, in_chans, img_size):
        super().__init__()
        self.img_size = img_size
        self.embed = nn.Conv2d(in_chans, 3, 2, stride=2)
        self.block = nn.Linear(3, 3)

    def forward_features(self, images):
        assert tuple(images.shape[2:]) == self.img_size
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return self.block(torch.cat([100 + 0 * tokens[:, :1], tokens], 1))

    def forward_head(self, tokens, pre_logits=False):
        return tokens[:, 0]


class ChannelsLast(Convolutional):
    """Maps (N, h, w, C), as of a Swin transformer; no stages are named."""

    feature_info = None
    output_fmt = "NHWC"

    def forward_features(self, images):
        return super().forward_features(images).permute(0, 2, 3, 1)

    def forward_head(self, maps, pre_logits=False):
        return self.head(maps.mean((1, 2)))


NETWORKS = {"net18": Convolutional, "tokens": Tokens, "last": ChannelsLast}


def create_model(name, *, pretrained, num_classes, in_chans, **sizes):
    assert num_classes == 0
    if pretrained:
        raise OSError("no route to host\nat length")
    return NETWORKS[name](in_chans, **sizes)


STAND_IN = SimpleNamespace(
    is_model=NETWORKS.__contains__,
    list_models=lambda: list(NETWORKS),
    get_pretrained_cfg=lambda name: (
        None if name == "last" else SimpleNamespace(fixed_input_size=name == "tokens")
    ),
    create_model=create_model,
)


@pytest.fixture
def timm(monkeypatch):
    monkeypatch.setattr(timm_backbone, "import_peer", lambda module, library: STAND_IN)


def named(model, **options):
    return {"name": "timm", "model": model, **options}


def shapes(model, shape):
    with torch.no_grad():
        read = model.eval().backbone.blocks(some_images(3, shape))
        return {name: tuple(output.shape) for name, output in read}


@pytest.mark.usefixtures("timm")
def test_taps_are_the_stages_that_run_and_give_maps():
    model = make(named("net18"), shape=(1, 8, 8))
    assert model.backbone.network.training
    warmed_up(model)
    assert model.taps == ("stem", "stage", "penultimate")
    assert shapes(model, (1, 8, 8)) == {
        "stem": (3, 4, 8, 8),
        "stage": (3, 6, 3, 3),
        "penultimate": (3, 5),
    }
    images = some_images(3, (1, 8, 8))
    with torch.no_grad():
        read = model.tapped(images, feature="flatten")
        assert torch.equal(read.logits, model(images))
    assert float(read.features["stem"].min()) < 0, "read before the activation works in place"
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.usefixtures("timm")
def test_class_tokens_are_left_out_and_the_size_is_passed():
    model = make(named("tokens"), shape=(3, 8, 6)).eval()
    assert shapes(model, (3, 8, 6)) == {"block": (3, 12, 3), "penultimate": (3, 3)}
    block = model.tapped(some_images(3, (3, 8, 6)), taps=("block",)).features["block"]
    assert float(block.detach().abs().max()) < 10
    with pytest.raises(InputError, match=r"tokens was built for .* \(3, 8, 6\), found \(3, 8, 8\)"):
        model(some_images(2, (3, 8, 8)))


@pytest.mark.usefixtures("timm")
def test_without_stages_the_features_are_a_tap_with_channels_first():
    model = make(named("last"), shape=(1, 8, 9))
    assert shapes(model, (1, 8, 9)) == {"features": (3, 6, 3, 4), "penultimate": (3, 5)}


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (named("net81"), ConfigError, "timm has no model 'net81'; did you mean 'net18'\\? timm.li"),
        (named("???"), ConfigError, r"timm has no model '\?\?\?'; timm.list_models\(\) names all$"),
        (
            named("net18", pretrained=True),
            ConfigError,
            r"published weights cannot be had \(OSError: no route to host\); .* pretrained = false",
        ),
        (
            named("net18"),
            InputError,
            r"net18 cannot take images of shape \(1, 1, 1\) \(RuntimeError: .*; choose another",
        ),
        ({"name": "timm"}, ConfigError, "backbone 'timm' needs the option 'model'"),
    ],
)
def test_what_timm_cannot_do_is_said_in_one_sentence(options, error, sentence):
    with pytest.raises(error, match=sentence):
        make(options, shape=(1, 1, 1))


@pytest.mark.peers
@pytest.mark.parametrize(
    ("name", "shape", "taps", "first", "dim"),
    [
        ("resnet18", (1, 32, 32), 5, (3, 64, 16, 16), 512),
        ("mobilenetv3_small_050", (3, 32, 32), 5, (3, 16, 16, 16), 1024),
        ("convnext_atto", (3, 32, 32), 4, (3, 40, 8, 8), 320),
        ("swin_tiny_patch4_window7_224", (3, 64, 64), 4, (3, 96, 16, 16), 768),
        ("vit_tiny_patch16_224", (1, 32, 48), 12, (3, 6, 192), 192),
        ("mvitv2_tiny", (3, 64, 64), 1, (3, 4, 768), 768),
        ("coat_tiny", (3, 64, 64), 0, (3, 152), 152),
    ],
)
def test_networks_of_timm(name, shape, taps, first, dim):
    timm = pytest.importorskip("timm")
    model = warmed_up(make(named(name), shape=shape, seed=1))
    read = shapes(model, shape)
    assert len(read) == taps + 1
    assert next(iter(read.values())) == first
    assert read["penultimate"] == (3, dim)
    images = some_images(3, shape)
    with torch.no_grad():
        torch.testing.assert_close(model.tapped(images).logits, model(images))
    sizes = {"img_size": shape[1:]} if model.backbone.fixed_size else {}
    plain = timm.create_model(name, num_classes=0, in_chans=shape[0], **sizes).eval()
    plain.load_state_dict(model.backbone.network.state_dict())
    pixels = model.normalise(images)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(pixels), plain(pixels))


@pytest.mark.peers
def test_a_network_of_timm_is_evaluated_on_a_folded_copy():
    pytest.importorskip("timm")
    model = warmed_up(make(named("resnet18"), shape=(1, 32, 32))).requires_grad_(False)
    images, ball = some_images(4, (1, 32, 32)), Ball("Linf", 0.03)
    labels = model(images).argmax(1)
    assert "folded" in accelerate(model, images, labels, ball, model(images)).names
    outcome = evaluate(model, images, labels, ball, protocol="pgd", checks=False)
    assert torch.equal(outcome.robust, model(outcome.adversarials).argmax(1) == labels)


@pytest.mark.peers
def test_a_neck_and_a_grid_of_another_size_are_fine_or_refused():
    pytest.importorskip("timm")
    config = ModelConfig(
        backbone=Component(name="timm", options={"model": "resnet18"}),
        neck=Component(name="transform"),
    )
    assert build_model(config).taps[-2:] == ("pooled", "penultimate")
    with pytest.raises(InputError, match="vit_tiny_patch16_224 cannot take images of shape"):
        make(named("vit_tiny_patch16_224"), shape=(1, 8, 8))
    with pytest.raises(ConfigError, match="timm has no model 'resnet81'; did you mean 'resnet"):
        make(named("resnet81"))

"""Classifiers: sizes, taps, what they refuse, and that a row depends on its own image alone."""

import tomllib

import pytest
import torch
from helpers_models import make, same_weights, some_images, warmed_up
from safetensors.torch import load_file, save_file

from robust_nc.config import ModelConfig, read
from robust_nc.exceptions import ConfigError, InputError, UnknownNameError
from robust_nc.models.backbones import Mlp, SmallCnn
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier, Normalise
from robust_nc.models.heads import LinearHead

BLOCKS = ("block1", "block2", "block3", "block4", "penultimate")
STAGES = tuple(f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2))
CONVOLUTIONS = tuple(f"conv{index}" for index in range(1, 9))
WIDE = {"name": "wide_resnet", "depth": 10, "widen": 1}
VIT = {"name": "vit", "patch": 2, "dim": 16, "depth": 2, "heads": 2}
SMALL = (
    ("small_cnn", (1, 8, 8)),
    ("small_cnn", (3, 32, 32)),
    ("mlp", (1, 8, 8)),
    ("preact_resnet18", (3, 8, 8)),
    ("vgg11_bn", (1, 32, 32)),
    (WIDE, (3, 8, 8)),
    (VIT, (1, 8, 8)),
    ({**VIT, "pooling": "cls"}, (3, 8, 8)),
)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("backbone", "shape", "parameters"),
    [
        ("preact_resnet18", (3, 32, 32), 11_172_170),
        ("preact_resnet18", (1, 32, 32), 11_172_170 - 2 * 9 * 64),
        ("vgg11_bn", (3, 32, 32), 9_231_114),
        ("vgg11_bn", (1, 32, 32), 9_231_114 - 2 * 9 * 64),
        ("small_cnn", (1, 28, 28), 65_834),
        ({"name": "small_cnn", "width": 16}, (1, 8, 8), 16_794),
        ("mlp", (1, 8, 8), (64 + 2 * 256) * 256 + 3 * 2 * 256 + 2_570),
        ({"name": "mlp", "width": 8, "depth": 1, "batch_norm": False}, (1, 2, 2), 40 + 90),
    ],
)
def test_parameter_counts(backbone, shape, parameters):
    assert count(make(backbone, shape=shape)) == parameters


@pytest.mark.parametrize(
    ("backbone", "side", "names", "widths", "sides"),
    [
        ("small_cnn", 28, BLOCKS, (32, 32, 64, 64), (14, 14, 7, 7)),
        ("small_cnn", 32, BLOCKS, (32, 32, 64, 64), (16, 16, 8, 8)),
        (
            "preact_resnet18",
            32,
            ("stem", *STAGES, "penultimate"),
            (64, 64, 64, 128, 128, 256, 256, 512, 512),
            (32, 32, 32, 16, 16, 8, 8, 4, 4),
        ),
        (
            "vgg11_bn",
            32,
            (*CONVOLUTIONS, "penultimate"),
            (64, 128, 256, 256, 512, 512, 512, 512),
            (16, 8, 8, 4, 4, 2, 2, 1),
        ),
    ],
)
def test_taps_come_in_depth_order_with_known_shapes(backbone, side, names, widths, sides):
    model = make(backbone, shape=(3, side, side)).eval()
    images = some_images(2, (3, side, side))
    with torch.no_grad():
        pooled = model.tapped(images).features
        flat = model.tapped(images, feature="flatten").features
    dim = model.backbone.dim
    assert model.taps == names
    assert tuple(pooled) == names
    assert [value.shape[1] for value in pooled.values()] == [*widths, dim]
    assert [value.shape[1] for value in flat.values()] == [
        *(width * size**2 for width, size in zip(widths, sides, strict=True)),
        dim,
    ]
    for name, width in zip(names, widths, strict=False):
        torch.testing.assert_close(pooled[name], flat[name].view(2, width, -1).mean(2))


@pytest.mark.parametrize(("backbone", "shape"), SMALL)
def test_tapped_logits_are_those_of_forward(backbone, shape):
    model = warmed_up(make(backbone, shape=shape))
    images = some_images(4, shape)
    read = model.tapped(images, taps=("penultimate", model.taps[0]))
    assert torch.equal(read.logits, model(images))
    assert tuple(read.features) == (model.taps[0], "penultimate")
    assert torch.equal(read.logits, model.head(read.features["penultimate"]))
    assert model.tapped(images, taps=()).features == {}


@pytest.mark.parametrize(("backbone", "shape"), SMALL)
def test_a_row_depends_on_its_own_image_alone(backbone, shape):
    model = warmed_up(make(backbone, "etf", shape=shape, normalise_features=True))
    images = some_images(8, shape)
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    with torch.no_grad():
        together = model(images)
        torch.testing.assert_close(model(images[order]), together[order])
        torch.testing.assert_close(torch.cat([model(part) for part in images.split(3)]), together)
    assert float(together.std(0).min()) > 0


@pytest.mark.parametrize(("backbone", "shape"), SMALL)
def test_every_parameter_takes_part(backbone, shape):
    model = make(backbone, shape=shape)
    torch.nn.functional.cross_entropy(model(some_images(4, shape)), torch.arange(4)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("backbone", "shape"), SMALL)
def test_autocast_and_channels_last(backbone, shape):
    model = warmed_up(make(backbone, shape=shape))
    images = some_images(4, shape)
    with torch.no_grad():
        exact = model.tapped(images)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model.tapped(images)
        model.to(memory_format=torch.channels_last)
        last = model.tapped(images.contiguous(memory_format=torch.channels_last), feature="gap")
    assert {value.dtype for value in (*mixed.features.values(), mixed.logits)} == {torch.float32}
    torch.testing.assert_close(mixed.logits, exact.logits, atol=0.1, rtol=0.1)
    for name, values in exact.features.items():
        torch.testing.assert_close(last.features[name], values, atol=1e-4, rtol=1e-4)


def test_a_float64_model_stays_float64():
    model = make(head="etf", shape=(1, 8, 8)).double().eval()
    read = model.tapped(some_images(2, (1, 8, 8)).double())
    assert {value.dtype for value in (*read.features.values(), read.logits)} == {torch.float64}


@pytest.mark.parametrize(
    ("backbone", "shape", "found", "sentence"),
    [
        ("small_cnn", (3, 32, 32), (1, 32, 32), r"takes images of 3 channel\(s\), found 1; build"),
        ("vgg11_bn", (1, 32, 32), (1, 8, 8), "at least 32 x 32, found 8 x 8; choose small_cnn$"),
        ("preact_resnet18", (1, 8, 8), (1, 7, 9), "at least 8 x 8, found 7 x 9; choose small_cnn"),
        ("small_cnn", (1, 8, 8), (1, 8, 3), "small_cnn needs images .* found 8 x 3; choose mlp"),
        ("mlp", (1, 8, 8), (1, 28, 28), r"shape \(1, 8, 8\), found \(1, 28, 28\); build"),
        (WIDE, (1, 8, 8), (1, 3, 8), "wide_resnet needs images of at least 4 x 4, found 3 x 8"),
        (VIT, (1, 8, 8), (1, 8, 6), r"shape \(1, 8, 8\), found \(1, 8, 6\); build the model"),
    ],
)
def test_images_that_do_not_fit_are_refused(backbone, shape, found, sentence):
    model = make(backbone, shape=shape).eval()
    for call in (model, model.tapped):
        with pytest.raises(InputError, match=sentence):
            call(some_images(2, found))


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8).byte()])
def test_what_is_no_batch_of_float_images_is_refused(images):
    with pytest.raises(InputError, match=r"images must be float32 of shape \(N, C, H, W\)"):
        make()(images)


def test_unknown_taps_and_features_are_answered_with_the_nearest():
    model = make(shape=(1, 8, 8))
    with pytest.raises(UnknownNameError, match="unknown tap 'blok3'; did you mean 'block3'"):
        model.tapped(some_images(2, (1, 8, 8)), taps=("blok3",))
    with pytest.raises(UnknownNameError, match="unknown feature 'flat'; did you mean 'flatten'"):
        model.tapped(some_images(2, (1, 8, 8)), feature="flat")


def test_none_in_a_configuration_stands_for_the_documented_values():
    model = build_model(ModelConfig())
    assert (model.num_classes, model.image_shape) == (10, (3, 32, 32))
    corners = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    assert model.normalise(corners)[:, 0, 0, 0].tolist() == [-1, 0, 1]


def test_normalisation_is_per_channel_and_part_of_the_model():
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    model = build_model(ModelConfig(image_shape=(3, 8, 8), mean=mean, std=std)).eval()
    plain = Classifier(Normalise((0.0,) * 3, (1.0,) * 3), model.backbone, model.head).eval()
    images = some_images(2, (3, 8, 8))
    by_hand = torch.stack(
        [(images[:, c] - mean[c]) / std[c] for c in range(3)],
        1,
    )
    torch.testing.assert_close(model(images), plain(by_hand))


@pytest.mark.parametrize(
    ("config", "error", "sentence"),
    [
        ({"mean": [0.5]}, ConfigError, "model.mean needs one value per channel, 3, found"),
        ({"std": [1.0, 1.0]}, ConfigError, "model.std needs one value per channel, 3"),
        ({"num_classes": 66, "head": "etf"}, InputError, "66 classes needs .* at least 65 .* 64; "),
        ({"head": {"name": "etf", "scale": -1.0}}, InputError, "scale must be .* found -1"),
        ({"neck": "transfrom"}, UnknownNameError, "unknown neck .*; did you mean 'transform'"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(config, error, sentence):
    with pytest.raises(error, match=sentence):
        build_model(read(ModelConfig, config))


@pytest.mark.parametrize(
    ("part", "side", "error", "sentence"),
    [
        ("vgg11_bn", 8, InputError, "^vgg11_bn needs images of at least 32 x 32, found 8 x 8; "),
        ("small_cnn wide=3", 8, ConfigError, "no option 'wide' .*did you mean 'width'"),
        ("small_cnn width=0", 8, InputError, "width must be at least 1, found 0"),
        ("mlp depth=0", 8, InputError, "depth must be at least 1, found 0"),
        ("wide_resnet depth=27", 8, InputError, r"6 n \+ 4 .* found 27; choose 22 or 28$"),
        ("wide_resnet dropout=1.0", 8, InputError, "at least 0 and below 1, found 1.0"),
        ("vit patch=4", 30, InputError, "both sides .* 4 for 30 x 30; choose 1, 2, 3, 5, 6"),
        ("vit patch=0", 8, InputError, "patch must be at least 1, found 0"),
        ("vit heads=5", 8, InputError, "multiple of heads, found dim 192 and 5 heads"),
        ("vit mlp_ratio=0.0", 8, InputError, "mlp_ratio must leave at least 1 hidden unit"),
        ('vit pooling="max"', 8, ConfigError, "backbone 'vit', option 'pooling': .*'mean'"),
        ("transform wide=3", 8, ConfigError, "neck 'transform' has no option 'wide'"),
        ("transform width=0", 8, InputError, "width must be at least 1, found 0"),
        ("transform blocks=-1", 8, InputError, "blocks must be at least 0, found -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(part, side, error, sentence):
    name, *options = part.split()
    table = {"name": name} | tomllib.loads("\n".join(options))
    which = "neck" if name == "transform" else "backbone"
    with pytest.raises(error, match=sentence):
        build_model(read(ModelConfig, {"image_shape": [1, side, side], which: table}))


def test_a_head_of_another_width_is_refused():
    with pytest.raises(InputError, match="head reads 8 features, but the backbone gives 64"):
        Classifier(Normalise((0.5,), (0.5,)), SmallCnn((1, 8, 8)), LinearHead(10, 8, seed=0))


def test_a_seed_fixes_the_backbone_under_every_head_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    linear, etf = (make(head=head, shape=(1, 8, 8), seed=3) for head in ("linear", "etf"))
    other = make(shape=(1, 8, 8), seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(linear.backbone, etf.backbone)
    assert not same_weights(linear.backbone, other.backbone)
    assert not torch.equal(linear.head.vertices(), other.head.vertices())


def test_weights_start_with_the_documented_variance():
    backbone = make({"name": "small_cnn", "width": 64}, shape=(3, 32, 32)).backbone
    assert float(backbone.block3[0].weight.detach().var()) == pytest.approx(2 / (9 * 128), rel=0.03)
    dense = Mlp((1, 8, 8), width=512, depth=2, batch_norm=False)
    assert float(dense.layers[1][0].weight.detach().var()) == pytest.approx(2 / 512, rel=0.03)
    assert float(dense.layers[1][0].bias.detach().abs().max()) == 0


@pytest.mark.parametrize(("backbone", "shape"), SMALL)
def test_saved_and_loaded_weights_are_exact(backbone, shape, tmp_path):
    model = warmed_up(make(backbone, "etf", shape=shape, seed=1))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = make(backbone, "etf", shape=shape, seed=2).eval()
    images = some_images(4, shape)
    assert not torch.equal(loaded(images), model(images))
    loaded.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(loaded(images), model(images))
    assert torch.equal(loaded.head.vertices(), model.head.vertices())

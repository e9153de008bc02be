"""What every head keeps, the learnable ones, and those with a fixed frame."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from robust_nc.config import Component, build
from robust_nc.data.hierarchy.tree import read_hierarchy
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.models.frames import haframe, orthogonal_frame, simplex_etf
from robust_nc.models.heads import (
    EtfHead,
    FixedHead,
    HaFrameHead,
    Head,
    LinearHead,
    NearestEtfHead,
    OrthogonalHead,
    PrototypeHead,
    unit_rows,
)
from robust_nc.registry import HEADS

K, D = 10, 12
TREE = {"hierarchy": "digits"}
TABLE = [
    ("linear", {}, {}),
    ("linear", {"bias": False}, {"temperature": 0.1}),
    ("linear", {}, {"normalise_features": True, "temperature": 2.0}),
    ("linear", {"normalise_weight": True}, {}),
    ("linear", {"normalise_weight": True}, {"normalise_features": True, "temperature": 0.5}),
    ("linear", {"normalise_weight": True, "bias": False, "scale": 30.0}, {}),
    ("prototype", {}, {}),
    ("prototype", {}, {"normalise_features": True, "temperature": 0.1}),
    ("etf", {"scale": 3.0}, {"temperature": 0.5}),
    ("etf", {}, {"normalise_features": True}),
    ("orthogonal", {}, {}),
    ("orthogonal", {}, {"normalise_features": True, "temperature": 4.0}),
    ("haframe", TREE, {}),
    ("haframe", TREE | {"gamma": 5.0, "scale": 8.0}, {"normalise_features": True}),
    ("nearest_etf", {}, {}),
    ("nearest_etf", {"tau": 2.0, "momentum": 0.5, "delta": 0.0}, {"temperature": 0.5}),
]
LEARNT = {"linear", "prototype"}
every_head = pytest.mark.parametrize(("name", "options", "model"), TABLE)


def make(name: str, options: dict, model: dict, *, size: tuple[int, int] = (K, D), seed=0) -> Head:
    """Build a head as a suite does, and show it a batch as a training does."""
    given = {"normalise_features": False, "temperature": 1.0} | model
    part = Component(name=name, options=options)
    head = build(HEADS, part, num_classes=size[0], dim=size[1], seed=seed, **given)
    features, labels = batch(size, seed=seed + 1)
    head.observe(features, labels)
    return head


def batch(size: tuple[int, int] = (K, D), *, seed: int = 9) -> tuple[Tensor, Tensor]:
    num_classes, dim = size
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(40, dim, generator=generator)
    return features, torch.randint(num_classes, (40,), generator=generator)


def state(head: Head) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_the_table_knows_every_head():
    assert {name for name, _, _ in TABLE} == set(HEADS.names())


@every_head
def test_logits_are_the_stated_map(name, options, model):
    head, (features, _) = make(name, options, model), batch()
    unit = features / features.norm(dim=1, keepdim=True)
    rows = unit if model.get("normalise_features") or name == "nearest_etf" else features
    shift = head.bias_vector()
    wanted = rows @ head.vertices().T + (0 if shift is None else shift)
    if name == "prototype":
        wanted = wanted - rows.square().sum(1, keepdim=True) / head.temperature
    torch.testing.assert_close(head(features), wanted, rtol=1e-5, atol=1e-4)


@every_head
def test_temperature_divides_the_logits(name, options, model):
    features, _ = batch()
    warm = make(name, options, model | {"temperature": 4 * model.get("temperature", 1.0)})
    torch.testing.assert_close(make(name, options, model)(features) / 4, warm(features))


@every_head
def test_each_row_is_judged_alone_in_eval_mode(name, options, model):
    head, (features, _) = make(name, options, model).eval(), batch()
    together = head(features)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(head(features[order]), together[order])
    torch.testing.assert_close(torch.cat([head(part) for part in features.split(7)]), together)
    torch.testing.assert_close(torch.cat([head(row[None]) for row in features]), together)
    assert head(features[:0]).shape == (0, K)


@every_head
def test_saved_and_loaded_to_the_bit(name, options, model, tmp_path: Path):
    head, (features, labels) = make(name, options, model), batch()
    safetensors.torch.save_file(state(head), tmp_path / "head.safetensors")
    other = make(name, options, model, seed=5)
    assert not torch.equal(other(features), head(features))
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "head.safetensors"))
    assert torch.equal(other(features), head(features))
    for each in (head, other):
        each.observe(features, labels)
    assert same(state(head), state(other))
    assert torch.equal(other(features), head(features))


@every_head
def test_a_seed_names_a_head(name, options, model):
    features, _ = batch()
    before = torch.random.get_rng_state()
    one, two, other = (make(name, options, model, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(state(one), state(two))
    assert torch.equal(one(features), two(features))
    assert not torch.allclose(one.vertices(), other.vertices())


@every_head
def test_only_what_is_learnt_moves(name, options, model):
    head, (features, labels) = make(name, options, model).train(), batch()
    features.requires_grad_()
    before, buffers = state(head), {n for n, _ in head.named_buffers()}
    parameters = dict(head.named_parameters())
    assert bool(parameters) == (name in LEARNT)
    F.cross_entropy(head(features), labels).backward()
    assert features.grad is not None
    assert bool(features.grad.any())
    for parameter in parameters.values():
        assert parameter.grad is not None
    if parameters:
        torch.optim.SGD(parameters.values(), lr=1.0, weight_decay=0.1).step()
    after = state(head)
    assert {n for n in before if not torch.equal(before[n], after[n])} == set(parameters)
    assert not any(dict(head.named_buffers())[n].requires_grad for n in buffers)
    frame = head.frame()
    assert (frame is None) == (name in LEARNT)
    if frame is not None:
        torch.testing.assert_close(frame.norm(dim=1), torch.ones(K))


@every_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_features_of_any_precision(name, options, model, dtype):
    head, (features, labels) = make(name, options, model), batch()
    head.observe(features.to(dtype), labels)
    wanted = head(features.to(dtype).float())
    assert wanted.dtype == torch.float32
    assert torch.equal(head(features.to(dtype)), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(features.to(dtype)), wanted)


def test_a_cosine_head_has_cosines_times_scale():
    features, _ = batch()
    head = LinearHead(K, D, seed=0, bias=False, normalise_features=True, normalise_weight=True)
    torch.testing.assert_close(
        head(features), 16 * F.cosine_similarity(features[:, None], head.weight[None], dim=2)
    )
    torch.testing.assert_close(head.vertices().norm(dim=1), torch.full((K,), 16.0))
    assert LinearHead(K, D, seed=0, normalise_features=True).scale == 1
    for options, length in [({}, 1.0), ({"scale": 3.0, "temperature": 0.1}, 30.0)]:
        plain = LinearHead(K, D, seed=0, normalise_weight=True, **options)
        torch.testing.assert_close(plain.vertices().norm(dim=1), torch.full((K,), length))
    before = head(features)
    with torch.no_grad():
        head.weight *= 1000
    torch.testing.assert_close(head(features), before)


def test_scale_leaves_the_bias_alone():
    one, ten = (LinearHead(K, D, seed=0, scale=scale, temperature=2.0) for scale in (1.0, 10.0))
    assert torch.equal(one.bias_vector(), ten.bias_vector())
    assert torch.equal(ten.bias_vector(), ten.bias / 2)
    torch.testing.assert_close(ten.vertices(), ten.weight * 5)


def test_prototype_logits_are_squared_distances():
    features, labels = batch()
    head = PrototypeHead(K, D, seed=0, temperature=0.5)
    with torch.no_grad():
        head.prototypes += torch.randn(K, D, generator=torch.Generator().manual_seed(1))
    apart = features[:, None] - head.prototypes[None]
    torch.testing.assert_close(head(features), -2 * apart.square().sum(2))
    F.cross_entropy(head(features), labels).backward()
    found, head.prototypes.grad = head.prototypes.grad, None
    F.cross_entropy(-2 * apart.square().sum(2), labels).backward()
    torch.testing.assert_close(found, head.prototypes.grad)


def test_prototype_logits_far_from_the_origin():
    # |h|^2 is 1e8 here: without the shift, float32 has no digit left of a distance of 1.
    features, _ = batch()
    head = PrototypeHead(K, D, seed=0)
    wanted = head(features)
    with torch.no_grad():
        head.prototypes += 4096
    torch.testing.assert_close(head(features + 4096), wanted, rtol=1e-3, atol=1e-2)


def test_unit_rows_of_tiny_and_zero_features():
    rows = torch.tensor([[3.0, 4.0], [3e-4, 4e-4], [3e8, 4e8], [0.0, 0.0]], requires_grad=True)
    unit = unit_rows(rows)
    torch.testing.assert_close(unit[:3].detach(), torch.tensor([[0.6, 0.8]]).expand(3, 2))
    assert unit[3].tolist() == [0, 0]
    unit.sum().backward()
    assert rows.grad is not None
    assert bool(torch.isfinite(rows.grad).all())


FRAMES = {
    "etf": (EtfHead, {}, simplex_etf(10, 16, seed=3)),
    "orthogonal": (OrthogonalHead, {}, orthogonal_frame(10, 16, seed=3)),
    "haframe": (
        HaFrameHead,
        {"hierarchy": "cifar10", "gamma": 3.0},
        haframe(read_hierarchy("cifar10").distances(), 16, gamma=3.0, seed=3),
    ),
}
every_kind = pytest.mark.parametrize("kind", FRAMES)


def fixed(kind: str, **options) -> FixedHead:
    head, own, _ = FRAMES[kind]
    return head(10, 16, seed=3, **own, **options)


@every_kind
def test_the_frame_is_the_stated_one_and_a_buffer(kind):
    head = fixed(kind, scale=5.0, temperature=0.5)
    assert torch.equal(head.frame(), FRAMES[kind][2])
    assert torch.equal(head.vertices(), 10 * head.frame())
    assert not list(head.parameters())
    assert list(head.state_dict()) == ["fixed_frame"]
    assert not head.fixed_frame.requires_grad
    assert head.bias_vector() is None
    assert not head.observes
    assert (head.num_classes, head.dim) == (10, 16)


@every_kind
def test_scale_follows_the_features(kind):
    assert fixed(kind).scale == 1
    cosine = fixed(kind, normalise_features=True)
    torch.testing.assert_close(cosine.vertices().norm(dim=1), torch.full((10,), 16.0))
    torch.testing.assert_close(cosine(cosine.frame() * 3), cosine(cosine.frame()))
    best = float(F.cross_entropy(cosine(cosine.frame()), torch.arange(10)))
    alone = float(F.cross_entropy(cosine(cosine.frame()) / 16, torch.arange(10)))
    assert best < 1e-3
    assert alone > 1
    assert fixed(kind, normalise_features=True, scale=2.0).scale == 2


@pytest.mark.parametrize(
    ("kind", "size", "options", "sentence"),
    [
        (LinearHead, (1, 6), {}, "at least 2 classes, found 1"),
        (LinearHead, (4, 0), {}, "at least 1 dimension, found 0"),
        (LinearHead, (4, 6), {"temperature": 0.0}, "temperature must be .* found 0"),
        (LinearHead, (4, 6), {"scale": 0.0}, "scale must be finite and above 0, found 0"),
        (EtfHead, (4, 6), {"scale": float("inf")}, "scale must .* found inf"),
        (EtfHead, (4, 2), {}, "at least 3 dimensions, found 2"),
        (OrthogonalHead, (4, 3), {}, "at least 4 dimensions, found 3"),
        (HaFrameHead, (10, 16), {}, "needs the tree .* cifar10, .* a path"),
        (HaFrameHead, (10, 8), TREE, r"at least (9|10) dimensions, found 8"),
        (HaFrameHead, (4, 8), TREE, "digits has 10 classes, and .* 4"),
        (HaFrameHead, (10, 16), {"hierarchy": "cifar"}, "unknown tree .* 'cifar'; did you mean"),
        (HaFrameHead, (10, 16), TREE | {"gamma": 0.0}, "gamma must be finite and above 0, found 0"),
        (NearestEtfHead, (5, 8), {"tau": 0.0}, "tau must be finite and above 0, found 0"),
        (NearestEtfHead, (5, 8), {"momentum": 1.0}, "at least 0 and below 1, found 1"),
        (NearestEtfHead, (5, 8), {"delta": -1.0}, "delta must be finite and at least 0, found -1"),
        (NearestEtfHead, (5, 3), {}, "at least 4 dimensions, found 3"),
    ],
)
def test_heads_that_cannot_be_are_refused(kind, size, options, sentence):
    error = ConfigError if options.get("hierarchy") == "cifar" else InputError
    with pytest.raises(error, match=sentence):
        kind(*size, seed=0, **options)

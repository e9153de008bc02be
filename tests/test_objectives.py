"""Objectives: their values against the formulas, batch norm, and what they are for."""

import dataclasses

import pytest
import torch
from helpers_models import digits, small_config, small_model
from torch import nn
from torch.nn import functional as F

from robust_nc.attacks.pgd import PGD
from robust_nc.config import Component, build
from robust_nc.data.load import dataset_info
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier
from robust_nc.registry import LOSSES, OBJECTIVES
from robust_nc.threat import Ball
from robust_nc.training.losses import build_loss, cross_entropy, squared_error
from robust_nc.training.objectives import Pgd, Standard, Trades, at_progress
from robust_nc.training.run import resolve_model

BALL = Ball("Linf", 0.1)


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = dict(model.named_buffers())
    return any(not torch.equal(after[name], before[name]) for name in before)


def batches_seen(model: nn.Module) -> int:
    return next(
        int(buffer) for name, buffer in model.named_buffers() if "num_batches_tracked" in name
    )


def objectives(bn_mode: str) -> list[Pgd | Trades]:
    return [
        Pgd(BALL, cross_entropy, steps=2, bn_mode=bn_mode),
        Trades(BALL, cross_entropy, steps=2, bn_mode=bn_mode),
    ]


def call(objective, model):
    images, labels, ids = digits()
    return objective(model, images, labels, seed=1, ids=ids)


def with_head(head: str, **options: object) -> Classifier:
    config = dataclasses.replace(small_config().model, head=Component(name=head, options=options))
    return build_model(resolve_model(config, dataset_info("digits")))


def descend(model: nn.Module, objective: str, loss: str, *, half: bool = False) -> list[float]:
    """Values over ten steps of SGD on one batch."""
    images, labels, ids = digits()
    options = {} if objective == "standard" else {"steps": 2}
    part = Component(name=objective, options=options)
    tree = {"hierarchy": "digits"} if loss == "soft_labels" else {}
    measured = build_loss(Component(name=loss, options=tree))
    built = build(OBJECTIVES, part, ball=BALL, loss=measured)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    values = []
    for _ in range(10):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = built(model, images, labels, seed=1, ids=ids).value
        assert value.dtype == torch.float32
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


def test_standard_is_the_mean_loss():
    images, labels, ids = digits()
    model = small_model().eval()
    found = Standard(cross_entropy)(model, images, labels, seed=0, ids=ids)
    assert torch.allclose(found.value, F.cross_entropy(model(images), labels))
    right = (model(images).argmax(1) == labels).float().mean()
    assert torch.equal(found.logs["clean_correct"], right)


def test_pgd_is_the_mean_loss_on_the_attacked_images_only():
    images, labels, ids = digits()
    model = small_model().eval()
    objective = Pgd(BALL, squared_error, steps=3, step_size=0.05, bn_mode="frozen")
    attack = PGD(steps=3, step_size=0.05, keep_best=False)
    points = attack(model, images, labels, BALL, goal="maximise", seed=5, ids=ids)
    found = objective(model, images, labels, seed=5, ids=ids)
    assert torch.allclose(found.value, squared_error(model(points), labels).mean())
    assert "clean_correct" not in found.logs


def test_trades_is_the_clean_loss_plus_beta_times_the_divergence():
    images, labels, ids = digits()
    model = small_model().eval()
    attack = PGD(steps=3, loss="kl", initial="gaussian", keep_best=False)
    points = attack(model, images, labels, BALL, goal="maximise", seed=5, ids=ids)
    clean, attacked = model(images).log_softmax(1), model(points).log_softmax(1)
    divergence = F.kl_div(attacked, clean, log_target=True, reduction="batchmean")
    wanted = F.cross_entropy(model(images), labels) + 4.0 * divergence
    objective = Trades(BALL, cross_entropy, beta=4.0, steps=3, bn_mode="frozen")
    found = objective(model, images, labels, seed=5, ids=ids)
    assert torch.allclose(found.value, wanted, rtol=1e-5)
    assert bool(divergence > 0)
    # Gradients flow through the clean and through the attacked images.
    parameters = tuple(model.parameters())
    expected = torch.autograd.grad(wanted, parameters)
    for gradient, other in zip(torch.autograd.grad(found.value, parameters), expected, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("place", [0, 1], ids=["pgd", "trades"])
class TestBatchNorm:
    def test_train_learns_from_the_attack_as_well(self, place):
        model = small_model()
        call(objectives("train")[place], model)
        assert model.training
        assert batches_seen(model) > 1 + place

    def test_frozen_puts_flags_back_when_it_fails(self, place):
        model = small_model()
        with pytest.raises(Exception, match="channel"):
            objectives("frozen")[place](
                model,
                torch.rand(2, 3, 8, 8),
                torch.tensor([0, 1]),
                seed=0,
                ids=torch.arange(2),
            )
        assert all(module.training for module in model.modules())


def test_the_inner_attack_leaves_the_buffers_alone():
    images, labels, ids = digits()
    model = small_model()
    for objective in objectives("eval"):
        before = statistics(model)
        objective.inner(model, images, labels, BALL, goal="maximise", seed=0, ids=ids)
        assert not moved(model, before)
        assert model.training


@pytest.mark.parametrize("objective", ["standard", "pgd", "trades"])
@pytest.mark.parametrize("loss", LOSSES.names())
def test_every_loss_falls_inside_every_objective(loss, objective):
    values = descend(with_head("etf"), objective, loss, half=objective != "standard")
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("objective", ["pgd", "awp"])
def test_weights_that_are_cast_once_train_to_the_bit(objective):
    """Not `trades`: two passes of its outer step share a cast, whose gradient is a sum in bf16."""
    kept = descend(small_model(), objective, "ce", half=True)
    torch.set_autocast_cache_enabled(False)
    try:
        anew = descend(small_model(), objective, "ce", half=True)
    finally:
        torch.set_autocast_cache_enabled(True)
    assert kept == anew
    assert kept[-1] < kept[0]


@pytest.mark.parametrize(
    ("loss", "head", "options"),
    [
        ("dot_regression", "linear", {}),
        ("dot_regression", "prototype", {}),
        ("dot_regression", "nearest_etf", {}),
        ("haframe", "orthogonal", {}),
        ("haframe", "haframe", {"hierarchy": "digits"}),
        ("haframe", "nearest_etf", {}),
    ],
)
def test_losses_of_features_fall_with_every_head_that_fits(loss, head, options):
    values = descend(with_head(head, **options), "standard", loss)
    assert values[-1] < values[0]


@pytest.mark.parametrize("objective", ["standard", "pgd", "trades"])
def test_a_loss_of_features_is_the_outer_loss_and_not_the_inner_one(objective):
    images, labels, ids = digits()
    model = with_head("etf").eval()
    options = {} if objective == "standard" else {"steps": 2}
    part = Component(name=objective, options=options)
    loss = build_loss(Component(name="dot_regression"))
    found, plain = (
        build(OBJECTIVES, part, ball=BALL, loss=each)(model, images, labels, seed=3, ids=ids)
        for each in (loss, cross_entropy)
    )
    points = images
    if objective == "pgd":
        points = PGD(steps=2, keep_best=False)(
            model, images, labels, BALL, goal="maximise", seed=3, ids=ids
        )
    features = model.features(points)
    cosines = F.cosine_similarity(features, model.head.frame()[labels])
    gap = (cosines - 1).square().mean() / 2 - F.cross_entropy(model(points), labels)
    torch.testing.assert_close(found.value - plain.value, gap, rtol=1e-4, atol=1e-5)


def test_a_scheduled_loss_follows_the_training():
    images, labels, ids = digits()
    model = with_head("etf").eval()
    options = {"alpha": 1.0, "schedule": "linear_increase"}
    scheduled = Standard(build_loss(Component(name="haframe", options=options)))

    def value(objective):
        return objective(model, images, labels, seed=0, ids=ids).value

    ends = [value(at_progress(scheduled, progress)) for progress in (0.0, 1.0)]
    torch.testing.assert_close(ends[0], value(Standard(cross_entropy)))
    torch.testing.assert_close(value(at_progress(scheduled, 0.25)), torch.lerp(*ends, 0.25))
    assert abs(float(ends[1].detach() - ends[0].detach())) > 0.1

"""PGD: what it costs, keeps and reaches; and the losses that attacks climb."""

import numpy as np
import pytest
import torch
from helpers_attacks import BALLS, Around, Counted, curved, linear, pictures, predictions
from helpers_models import digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.attacks.losses import LOSSES
from robust_nc.attacks.pgd import FGSM, PGD
from robust_nc.attacks.slots import item_keys
from robust_nc.exceptions import InputError
from robust_nc.registry import PROTOCOLS
from robust_nc.threat import Ball

SHAPE = (1, 8, 8)
NOWHERE = Ball("Linf", 1e-5)  # nothing flips in there


@pytest.fixture
def batch() -> tuple[Counted, Tensor, Tensor, Tensor]:
    model, images = Counted(curved(SHAPE, 5)), pictures(9, SHAPE)
    labels = predictions(model, images)
    model.calls = model.forwards = model.backwards = 0
    return model, images, labels, torch.arange(9)


@pytest.mark.parametrize(
    ("attack", "goal", "forwards", "backwards"),
    [
        (PGD(steps=4), "flip", 5, 4),
        (PGD(steps=4, keep_best=False), "flip", 5, 4),
        (PGD(steps=4), "maximise", 5, 4),
        (PGD(steps=4, keep_best=False), "maximise", 4, 4),
        (PGD(steps=4, keep_best=False, restarts=3), "maximise", 15, 12),
        (PGD(steps=4, restarts=3, slots=4), "flip", 15, 12),
        (PGD(steps=4, loss="kl"), "maximise", 6, 4),
        (FGSM(), "flip", 2, 1),
        (FGSM(), "maximise", 1, 1),
    ],
)
def test_passes_are_exact_where_nothing_flips(batch, attack, goal, forwards, backwards) -> None:
    model, images, labels, ids = batch
    result = attack.run(model, images, labels, NOWHERE, goal=goal, seed=0, ids=ids)
    assert result.forwards.tolist() == [forwards] * 9
    assert result.backwards.tolist() == [backwards] * 9
    assert (model.forwards, model.backwards) == (9 * forwards, 9 * backwards)


def test_flip_leaves_early_and_costs_less(batch) -> None:
    model, images, labels, ids = batch
    labels = torch.where(ids < 4, (labels + 1) % 5, labels)  # four are wrong from the start
    attack = PGD(steps=6, restarts=2, initial="none")
    result = attack.run(model, images, labels, NOWHERE, seed=0, ids=ids)
    # A wrong example costs its first gradient; the other restart may have begun beside it.
    assert result.forwards[:4].tolist() == result.backwards[:4].tolist() == [1] * 4
    assert result.forwards[4:].tolist() == [14] * 5
    assert torch.equal(result.points[:4], images[:4])


def test_restarts_raise_the_maximum() -> None:
    model, images = curved(SHAPE, 5), pictures(20, SHAPE)
    labels, ids, ball = predictions(model, images), torch.arange(20), BALLS[0]

    def loss(attack: PGD) -> Tensor:
        points = attack(model, images, labels, ball, goal="maximise", seed=0, ids=ids)
        with torch.no_grad():
            return F.cross_entropy(model(points), labels, reduction="none")

    once, often = loss(PGD(steps=2)), loss(PGD(steps=2, restarts=5))
    assert (often >= once - 1e-6).all()
    assert (often > once + 1e-4).any()
    for slots in (7, 100):
        assert torch.allclose(often, loss(PGD(steps=2, restarts=5, slots=slots)), atol=1e-5)


def test_free_slots_are_refilled_so_that_batches_stay_full(batch) -> None:
    model, images, labels, ids = batch
    PGD(steps=5, restarts=2, slots=3).run(model, images, labels, NOWHERE, seed=0, ids=ids)
    assert model.calls == (9 * 2 // 3) * 6  # 18 items in batches of 3, 5 steps and a last look


def test_keys_are_distinct_and_the_id_for_the_first_item() -> None:
    ids = torch.arange(50).repeat(40)
    restarts = torch.arange(40).repeat_interleave(50)
    keys = [item_keys(ids, restarts=restarts, targets=None)]
    keys += [item_keys(ids, restarts=restarts, targets=torch.full_like(ids, k)) for k in range(20)]
    assert len(torch.cat(keys).unique()) == 21 * 2000
    assert torch.equal(keys[0][:50], ids[:50])


def test_the_best_of_several_targets_is_kept() -> None:
    model, images = curved(SHAPE, 4), pictures(6, SHAPE)
    labels, ids = predictions(model, images), torch.arange(6)
    others = torch.stack([(labels + step) % 4 for step in (1, 2, 3)], 1)
    attack = PGD(steps=3, loss="margin")

    def reached(targets: Tensor) -> Tensor:
        call = (model, images, labels, BALLS[1])
        points = attack(*call, goal="maximise", targets=targets, seed=0, ids=ids)
        with torch.no_grad():
            logits = model(points)
        return logits.gather(1, others) - logits.gather(1, labels[:, None])

    alone = [reached(others[:, column])[:, column] for column in range(3)]
    best = torch.stack(alone).amax(0)
    assert torch.allclose(reached(others).amax(1), best, atol=1e-5)
    assert len(torch.stack(alone).argmax(0).unique()) > 1


def _textbook_linf(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    draws = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    points = (images + eps * (2 * draws - 1)).clamp(0, 1)
    for _ in range(20):
        points.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(points), labels), points)
        points = points.detach() + 2.5 * eps / 20 * gradient.sign()
        points = torch.max(torch.min(points, images + eps), images - eps).clamp(0, 1)
    return points


def _textbook_l2(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    delta = torch.zeros_like(images)
    for _ in range(20):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(images + delta), labels), delta)
        unit = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
        delta = delta.detach() + 2.5 * eps / 20 * unit
        length = delta.flatten(1).norm(dim=1)[:, None, None, None]
        delta = delta * (eps / length).clamp(max=1)
        delta = (images + delta).clamp(0, 1) - images
    return images + delta


@pytest.mark.parametrize(
    ("norm", "eps", "textbook", "goal"),
    [("Linf", 0.1, _textbook_linf, "flip"), ("L2", 0.6, _textbook_l2, "maximise")],
)
def test_as_strong_as_a_textbook_attack(norm, eps, textbook, goal, digits_network) -> None:
    model, (images, labels, _) = digits_network.eval(), digits("test", 300)
    attack, ids = PGD(steps=20), torch.arange(300)
    ours = attack(model, images, labels, Ball(norm, eps), goal=goal, seed=0, ids=ids)
    theirs = textbook(model, images, labels, eps)
    accuracy = [
        float((predictions(model, points) == labels).float().mean()) for points in (ours, theirs)
    ]
    assert 0.1 < accuracy[1] < 0.9, "the test needs an eps in between"
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.02)


def test_keep_best_is_never_worse_than_the_last_point() -> None:
    model, images = curved(SHAPE, 5), pictures(12, SHAPE)
    labels, ids = predictions(model, images), torch.arange(12)
    values = []
    for keep_best in (True, False):
        attack = PGD(steps=5, step_size=0.1, keep_best=keep_best)
        points = attack(model, images, labels, BALLS[0], goal="maximise", seed=0, ids=ids)
        with torch.no_grad():
            values.append(F.cross_entropy(model(points), labels, reduction="none"))
    assert (values[0] >= values[1] - 1e-6).all()
    assert (values[0] > values[1] + 1e-4).any()


def test_as_is_leaves_batch_norm_to_the_trainer() -> None:
    model, images = curved(SHAPE, 5).train(), pictures(6, SHAPE)
    before = model[1].running_mean.clone()
    call = (model, images, torch.arange(6) % 5, BALLS[0])
    PGD(steps=2, mode="eval")(*call, goal="maximise", seed=0, ids=torch.arange(6))
    assert torch.equal(model[1].running_mean, before)
    PGD(steps=2, mode="as_is")(*call, goal="maximise", seed=0, ids=torch.arange(6))
    assert not torch.equal(model[1].running_mean, before)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 64)}, "images must be float32"),
        ({"images": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)}, "images must be float32"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels must be int64"),
        ({"labels": torch.zeros(4)}, "labels must be int64"),
        ({"labels": torch.full((4,), 3)}, r"lie in 0\.\.2, .* found 3\.\.3"),
        ({"targets": torch.full((4,), -1)}, r"found -1\.\.0"),
        ({"targets": torch.zeros(4, 0, dtype=torch.int64)}, "targets must be int64"),
        ({"ids": torch.arange(5)}, "ids must be int64"),
        ({"model": Around(linear(SHAPE, 3), before=Tensor.detach)}, "do not depend on the images"),
        (
            {"model": Around(linear(SHAPE, 3), after=lambda z: z[:, 0])},
            r"must return logits \(N, K\)",
        ),
    ],
)
def test_input_that_cannot_be_used_is_named(change, message) -> None:
    call = {
        "model": linear(SHAPE, 3),
        "images": pictures(4, SHAPE),
        "labels": torch.zeros(4, dtype=torch.int64),
        "ball": BALLS[0],
        "ids": torch.arange(4),
        "seed": 0,
    }
    with pytest.raises(InputError, match=message):
        PGD(steps=2)(**(call | change))


def test_registered_protocols() -> None:
    assert PROTOCOLS.load("clean").attacks == ()
    names = [name for name, attack in PROTOCOLS.load("pgd").attacks]
    assert names == ["pgd-ce", "pgd-margin"]
    assert PROTOCOLS.load("fgsm").attacks[0][1] == FGSM()


LOGITS = torch.tensor([[3.0, 1.0, 0.5, -2.0], [0.0, 2.0, 4.0, 1.0]])
LABELS = torch.tensor([0, 1])
TARGETS = torch.tensor([3, 0])


def test_values_by_hand() -> None:
    assert LOSSES["margin"](LOGITS, LABELS, None, None).tolist() == [-2.0, 2.0]
    assert LOSSES["margin"](LOGITS, LABELS, TARGETS, None).tolist() == [-5.0, -2.0]
    dlr = LOSSES["dlr"](LOGITS, LABELS, None, None)
    assert dlr.tolist() == pytest.approx([-2 / 2.5, 2 / 3])
    dlr = LOSSES["dlr"](LOGITS, LABELS, TARGETS, None)
    assert dlr.tolist() == pytest.approx([-5 / (3 + 0.75), -2 / (4 - 0.5)])
    shares = np.exp(LOGITS.double().numpy())
    shares /= shares.sum(1, keepdims=True)
    rows = np.arange(2)
    ce = LOSSES["ce"](LOGITS, LABELS, None, None)
    assert ce.tolist() == pytest.approx(-np.log(shares[rows, LABELS]), rel=1e-6)
    ce = LOSSES["ce"](LOGITS, LABELS, TARGETS, None)
    assert ce.tolist() == pytest.approx(np.log(shares[rows, TARGETS]), rel=1e-6)


def test_kl_by_hand() -> None:
    reference = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    p, q = 0.5, 1 / (1 + np.exp(2.0))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = LOSSES["kl"](logits, torch.tensor([0, 0]), None, reference)
    assert found.tolist() == pytest.approx([expected, 0.0], abs=1e-6)


@given(st.integers(0, 10_000), st.floats(0.1, 100), st.floats(-50, 50))
@settings(deadline=None, max_examples=25)
def test_dlr_is_blind_to_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels, targets = torch.arange(6) % 5, (torch.arange(6) + 2) % 5
    for wanted in (None, targets):
        plain = LOSSES["dlr"](logits, labels, wanted, None)
        moved = LOSSES["dlr"](logits * scale + shift, labels, wanted, None)
        assert torch.allclose(plain, moved, atol=1e-9)


def test_dlr_of_too_few_classes_is_the_margin() -> None:
    pair, three = LOGITS[:, :2], LOGITS[:, :3]
    margin, dlr = LOSSES["margin"], LOSSES["dlr"]
    labels, targets = LABELS % 2, (LABELS + 1) % 2
    assert torch.equal(dlr(pair, labels, None, None), margin(pair, labels, None, None))
    assert torch.equal(dlr(three, labels, targets, None), margin(three, labels, targets, None))
    assert not torch.equal(dlr(three, labels, None, None), margin(three, labels, None, None))


def test_a_loss_without_a_targeted_form_says_what_has_one() -> None:
    with pytest.raises(InputError, match="no targeted form"):
        LOSSES["kl"](LOGITS, LABELS, TARGETS, LOGITS)


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_ties_give_finite_gradients(loss: str) -> None:
    logits = torch.zeros(2, 4, requires_grad=True)
    LOSSES[loss](logits, LABELS, None, None).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()

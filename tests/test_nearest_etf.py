"""The nearest-ETF head: what it stores, how it moves, and that nothing else moves it."""

import copy
import dataclasses

import pytest
import torch
from helpers_models import small_config, small_run
from torch import Tensor
from torch.nn import functional as F

from robust_nc.config import Component
from robust_nc.models.frames import nearest_etf, simplex_etf
from robust_nc.models.heads import NearestEtfHead

K, D = 5, 8


def batch(*, labels: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(30) % K if labels is None else labels
    return 3 * torch.randn(len(labels), D, generator=generator) + labels[:, None], labels


def unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)


def state(head: NearestEtfHead) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in head.state_dict().items()}


def gram_error(frame: Tensor) -> float:
    wanted = (K * torch.eye(K).double() - 1) / (K - 1)
    return float((frame.double() @ frame.double().T - wanted).abs().max())


def unmoved(head: NearestEtfHead, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


def test_it_starts_as_a_random_etf():
    head = NearestEtfHead(K, D, seed=2)
    assert head.observes
    assert list(head.state_dict()) == ["etf", "class_means", "seen"]
    assert not list(head.parameters())
    assert torch.equal(head.frame(), simplex_etf(K, D, seed=2))
    assert torch.equal(head.class_means, head.frame())
    assert not bool(head.seen.any())
    assert float(head.bias_vector().abs().max()) < 1e-5


def test_logits_are_those_of_the_paper():
    head, (features, labels) = NearestEtfHead(K, D, seed=0, tau=3.0, temperature=0.5), batch()
    head.observe(features, labels)
    centre = head.class_means.mean(0)
    wanted = 6 * (unit(features).float() - centre) @ head.frame().T
    torch.testing.assert_close(head(features), wanted)
    torch.testing.assert_close(head(features * 1e3), wanted)
    assert float(centre.norm()) > 0.3  # so that the bias counts


def test_first_sight_replaces_and_later_ones_average():
    head = NearestEtfHead(K, D, seed=0, momentum=0.75, delta=0.0)
    initial = head.class_means.double()
    features, labels = batch(labels=torch.tensor([0, 0, 3]))
    head.observe(features, labels)
    first = unit(features)
    wanted = initial.clone()
    wanted[0], wanted[3] = first[:2].mean(0), first[2]
    torch.testing.assert_close(head.class_means.double(), wanted, rtol=0, atol=1e-7)
    assert head.seen.tolist() == [True, False, False, True, False]
    torch.testing.assert_close(head.frame(), nearest_etf(head.class_means), rtol=0, atol=1e-5)

    features, labels = batch(labels=torch.tensor([3, 1]), seed=1)
    head.observe(features, labels)
    again = unit(features)
    wanted[3] = 0.75 * wanted[3] + 0.25 * again[0]
    wanted[1] = again[1]
    torch.testing.assert_close(head.class_means.double(), wanted, rtol=0, atol=1e-7)
    assert head.seen.tolist() == [True, True, False, True, False]


def test_the_mean_does_not_weigh_classes_by_their_size():
    head = NearestEtfHead(K, D, seed=0)
    features, labels = batch(labels=torch.tensor([0] * 50 + [1, 2, 3, 4]))
    head.observe(features, labels)
    means = torch.stack([unit(features)[labels == k].mean(0) for k in range(K)])
    wanted = -5 * head.frame().double() @ means.mean(0)
    torch.testing.assert_close(head.bias_vector().double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dim", "momentum", "delta"), [(K - 1, 0.9, 0.0), (K, 0.0, 1e-3), (32, 0.9, 0.5)]
)
def test_it_converges_to_the_simplex_of_collapsed_features(dim, momentum, delta):
    head = NearestEtfHead(K, dim, seed=0, momentum=momentum, delta=delta)
    target = simplex_etf(K, dim, seed=7)
    labels = torch.arange(40) % K
    head.observe(target[labels] * 2, labels)
    early = float((head.frame() - target).norm())
    for _ in range(150):
        head.observe(target[labels] * 2, labels)
    torch.testing.assert_close(head.frame(), target, rtol=0, atol=1e-5)
    assert gram_error(head.frame()) < 1e-6
    assert (early > 0.01) == (delta > 0.1)  # a strong pull takes its time
    assert torch.equal(head(target * 9).argmax(1), torch.arange(K))


def test_means_that_coincide_leave_the_frame_where_it_was():
    head = NearestEtfHead(K, D, seed=0)
    labels = torch.arange(K)
    before = head.frame()
    for _ in range(3):
        head.observe(torch.ones(K, D), labels)
    torch.testing.assert_close(head.frame(), before, rtol=0, atol=1e-5)
    dead = NearestEtfHead(K, D, seed=0)
    dead.observe(torch.zeros(K, D), labels)
    torch.testing.assert_close(dead.frame(), before, rtol=0, atol=1e-5)
    assert bool(torch.isfinite(dead(torch.zeros(2, D))).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_leave_the_state_and_show_in_the_loss(value):
    head, (features, labels) = NearestEtfHead(K, D, seed=0), batch()
    head.observe(features, labels)
    before = state(head)
    features[3, 2] = value
    head.observe(features, labels)
    assert unmoved(head, before)
    assert not bool(torch.isfinite(F.cross_entropy(head(features), labels)))


def test_an_empty_batch_changes_nothing():
    head = NearestEtfHead(K, D, seed=0)
    head.observe(*batch())
    before = state(head)
    head.observe(torch.zeros(0, D), torch.zeros(0, dtype=torch.int64))
    assert unmoved(head, before)
    assert head(torch.zeros(0, D)).shape == (0, K)


def test_only_observe_moves_it_and_in_both_modes():
    head, (features, labels) = NearestEtfHead(K, D, seed=0), batch()
    features.requires_grad_()
    before = state(head)
    for mode in (True, False):
        F.cross_entropy(head.train(mode)(features), labels).backward()
        assert unmoved(head, before)
    train, evaluated = head, copy.deepcopy(head).eval()
    for each in (train.train(), evaluated):
        each.observe(features, labels)
        assert not any(buffer.requires_grad for buffer in each.buffers())
    assert not unmoved(train, before)
    assert unmoved(train, state(evaluated))


def test_a_graph_made_before_stays_valid():
    head, (features, labels) = NearestEtfHead(K, D, seed=0), batch()
    head.observe(features, labels)
    features.requires_grad_()
    frame, logits = head.frame(), head(features)
    kept = frame.clone()
    loss = F.cross_entropy(logits, labels) + (features @ frame.T).sum()
    (wanted,) = torch.autograd.grad(loss, features, retain_graph=True)
    head.observe(*batch(seed=5))
    assert torch.equal(frame, kept)
    loss.backward()
    assert torch.equal(features.grad, wanted)


def test_autocast_does_not_reach_the_state():
    one, two = (NearestEtfHead(K, D, seed=0) for _ in range(2))
    one.observe(*batch())
    with torch.autocast("cpu", torch.bfloat16):
        two.observe(*batch())
        shift = two.bias_vector()
    assert unmoved(one, state(two))
    assert torch.equal(shift, one.bias_vector())


@pytest.mark.parametrize("spread", [1.0, 0.0], ids=["any means", "a simplex"])
def test_the_gradient_passes_through_the_frame_and_is_finite_at_a_simplex(spread: float):
    """There all singular values are equal, and the gradient of an SVD divides by zero."""
    labels = torch.arange(2 * K) % K
    noise = torch.randn(2 * K, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    features = (simplex_etf(K, D, seed=3).double()[labels] + spread * noise).requires_grad_()
    head = NearestEtfHead(K, D, seed=0, gradient=True).double()

    def logits(rows: Tensor) -> Tensor:
        fresh = copy.deepcopy(head)
        fresh.observe(rows, labels)
        return fresh(rows)

    assert torch.autograd.gradcheck(logits, (features,))
    moved = torch.autograd.grad(logits(features)[:, 0].sum(), features)[0]
    head.gradient = False
    still = torch.autograd.grad(logits(features)[:, 0].sum(), features)[0]
    assert float((moved - still).abs().max()) > 1e-3


def test_the_gradient_is_that_of_one_step_and_changes_no_state():
    plain, head = (NearestEtfHead(K, D, seed=0, gradient=given) for given in (False, True))
    features, labels = batch()
    for each in (plain, head):
        each.observe(features.clone().requires_grad_(), labels)
    assert all(torch.equal(state(plain)[name], value) for name, value in state(head).items())
    first, second = head(features), head(features)
    assert torch.equal(first.detach(), second)
    assert first.requires_grad
    assert not second.requires_grad
    copy.deepcopy(head)


def test_a_network_trains_with_it():
    found = []
    for options in ({"gradient": True}, {}):
        config = small_config()
        head = Component(name="nearest_etf", options=options)
        model = dataclasses.replace(config.model, head=head)
        found.append(small_run(dataclasses.replace(config, model=model)).last.state_dict())
    moved, still = found
    assert all(bool(torch.isfinite(value).all()) for value in moved.values())
    assert any(not torch.equal(value, still[name]) for name, value in moved.items())

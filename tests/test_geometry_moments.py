"""Moments: sums against NumPy, offsets, devices of state, several processes."""

import numpy as np
import pytest
import torch
from helpers_geometry import clusters

from robust_nc.exceptions import InputError
from robust_nc.geometry import moments as module
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.nearest import NearestMeter, nearest_vertex, vertex_logits


@pytest.mark.parametrize(("offset", "block"), [(0.0, 1), (1e3, 7), (1e6, 2**19)])
def test_sums_agree_with_numpy(offset: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    features, labels = clusters([9, 4, 0, 1], 5)
    features = features + offset
    found = Moments(4, 5)
    for rows in (slice(0, 3), slice(3, 4), slice(4, 4), slice(4, None)):
        found.update(features[rows], labels[rows])
    exact, own = features.numpy(), labels.numpy()
    means = [exact[own == k].mean(0) for k in (0, 1)]
    assert found.counts.tolist() == [9, 4, 0, 1]
    assert found.keep.tolist() == [True, True, False, False]
    assert found.total == 13
    assert torch.isnan(found.means[2:]).all()
    np.testing.assert_allclose(found.means[:2].numpy(), means, rtol=1e-13, atol=1e-13)
    within = [((exact[own == k] - exact[own == k].mean(0)) ** 2).sum() for k in (0, 1)]
    np.testing.assert_allclose(found.within[:2].numpy(), within, rtol=1e-8)
    assert found.within[2:].tolist() == [0, 0]
    inside = exact[own < 2]
    np.testing.assert_allclose(found.global_mean.numpy(), inside.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        found.unweighted_mean.numpy(), np.mean(means, 0), rtol=1e-12, atol=1e-12
    )
    total = ((inside - inside.mean(0)) ** 2).sum(1).mean()
    assert found.total_variance == pytest.approx(total, rel=1e-8)
    np.testing.assert_allclose(found.lone().numpy(), exact[own == 3], rtol=1e-13)


def test_collapsed_groups_have_no_scatter() -> None:
    found = Moments(3, 8)
    rows = 1e3 + torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        found.update(rows.repeat(5, 1), torch.arange(3).repeat(5))
    assert float(found.within.max()) < 1e-12
    assert torch.equal(found.means.float(), rows)


def test_features_of_a_network_are_taken_as_they_come() -> None:
    features = torch.randn(6, 3, requires_grad=True)
    labels = torch.arange(6) % 2
    plain, half = Moments(2, 3), Moments(2, 3)
    plain.update(features, labels)
    half.update(features.bfloat16(), labels)
    assert not plain.means.requires_grad
    torch.testing.assert_close(plain.means, half.means, rtol=0.02, atol=0.02)


def test_what_is_not_finite_is_refused_before_it_enters() -> None:
    found = Moments(2, 2)
    bad = torch.tensor([[0.0, 1], [torch.nan, 1]])
    with pytest.raises(InputError, match="finite"):
        found.update(bad, torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"0\.\.1, found 2"):
        found.update(bad.nan_to_num(), torch.tensor([0, 2]))
    assert found.counts.tolist() == [0, 0]


def test_nearest_vertex_survives_large_offsets_and_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    vertices = 1e3 + torch.randn(5, 4096, generator=generator, dtype=torch.float64)
    labels = torch.arange(40) % 5
    towards = (labels + 1) % 5
    features = vertices[labels] + 0.4999 * (vertices[towards] - vertices[labels])
    assert torch.equal(nearest_vertex(features, vertices), labels)
    distances = torch.cdist(features - 1e3, vertices - 1e3).square()
    logits = vertex_logits(features, vertices)
    torch.testing.assert_close(
        logits[:, :1] - logits, (distances - distances[:, :1]) / 2, rtol=1e-9, atol=1e-6
    )


def test_a_class_without_a_vertex_is_never_nearest() -> None:
    vertices = torch.tensor([[5.0, 5], [torch.nan, torch.nan], [1, 1]])
    assert nearest_vertex(torch.zeros(3, 2), vertices).tolist() == [2, 2, 2]
    assert nearest_vertex(torch.zeros(0, 2), vertices).tolist() == []


def test_vertex_logits_carry_gradients_to_the_features() -> None:
    features = torch.zeros(1, 2, requires_grad=True)
    vertex_logits(features, torch.tensor([[1.0, 0], [-1, 0]]))[0, 0].backward()
    assert features.grad is not None
    assert features.grad.tolist() == [[1, 0]]


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_meters_merge(leave_one_out: bool) -> None:
    features, labels = clusters([12, 9, 1], 2, noise=1.5)
    predictions = (labels + 1) % 3
    found = Moments(3, 2)
    found.update(features, labels)
    whole, first, second = (NearestMeter(found, leave_one_out=leave_one_out) for _ in range(3))
    whole.update(features, labels, predictions=predictions)
    first.update(features[:9], labels[:9], predictions=predictions[:9])
    second.update(features[9:], labels[9:], predictions=predictions[9:])
    first.merge(second)
    assert (first.ncc(), first.nc4()) == (whole.ncc(), whole.nc4())
    nearest = nearest_vertex(features, found.means)
    assert whole.nc4() == float((nearest != predictions).double().mean())
    if not leave_one_out:
        assert whole.ncc() == float((nearest == labels).double().mean())
    with pytest.raises(InputError, match="leave-one-out"):
        whole.merge(NearestMeter(found, leave_one_out=not leave_one_out))

"""Memorization against its oracle, planted memorization found again, one geometry with leaps."""

import pytest
import torch
from helpers_geometry import clusters, rotation, simplex
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import dilation as oracle
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.dilation import (
    MEASURES,
    CorruptionMeter,
    Memorization,
    dilation,
    measure_memorization,
)
from robust_nc.geometry.moments import Moments


def noisy_clusters(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, assigned, original: part memorised; class 3 keeps one uncorrupted example only."""
    features, original = clusters([25, 14, 31, 9, 12], 6, noise=0.4, seed=seed)
    draws = torch.Generator().manual_seed(seed + 1)
    corrupted = torch.rand(len(original), generator=draws) < 0.3
    corrupted |= original == 3
    corrupted[(original == 3).nonzero()[0]] = False
    step = torch.randint(1, 5, (len(original),), generator=draws)
    assigned = torch.where(corrupted, (original + step) % 5, original)
    means = torch.stack([features[original == k].mean(0) for k in range(5)])
    way = torch.rand(len(original), 1, generator=draws, dtype=torch.float64)
    return features + way * (means[assigned] - means[original]), assigned, original


def same(found: Memorization, wanted: Memorization, *, rel: float, scale: float = 1.0) -> None:
    in_units = ("memorization", "corruption_bias")
    for name, value in wanted.measures().items():
        assert value is not None
        expected = value * scale if name in in_units else value
        assert found.measures()[name] == pytest.approx(expected, rel=rel), name
    assert found.counts == wanted.counts


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_memorization_agrees_with_the_oracle(seed: int) -> None:
    parts = noisy_clusters(seed)
    found = measure_memorization(*parts, num_classes=5)
    wanted = oracle.memorization(*(part.numpy() for part in parts), 5)
    for name in MEASURES:
        assert found.measures()[name] == pytest.approx(wanted[name], rel=1e-10), name
    assert list(found.per_class) == pytest.approx(wanted["per_class"])
    assert list(found.counts) == wanted["counts"]
    assert found.undefined == wanted["undefined"] > 0
    assert found.num_examples == int((parts[1] != parts[2]).sum()) == found.undefined + len(found.t)
    assert float(found.biases.mean()) == pytest.approx(wanted["corruption_bias"])
    assert found.per_class[3] is None
    assert not found.notes


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 500), st.integers(0, 91), st.sampled_from([0.1, 10.0, 1e3]))
def test_pieces_order_rotation_scale_and_offset(seed: int, cut: int, scale: float) -> None:
    features, assigned, original = noisy_clusters(seed)
    whole = measure_memorization(features, assigned, original, num_classes=5)
    right = assigned == original
    moments = Moments(5, 6)
    moments.update(features[right], original[right])
    meter = CorruptionMeter(moments.means)
    for rows in (slice(cut, None), slice(cut)):
        meter.update(features[rows], assigned[rows], original[rows])
    same(meter.compute(), whole, rel=1e-10)
    moved = scale * features @ rotation(6, seed=seed) + 1e3
    found = measure_memorization(moved, assigned, original, num_classes=5)
    same(found, whole, rel=1e-6, scale=scale)


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0, 1.3])
def test_planted_memorization_is_found_again(fraction: float) -> None:
    """Corrupted examples part of the way from their own vertex to the one they were assigned."""
    vertices = 2 * simplex(4, 7)
    original = torch.arange(80) % 4
    assigned = torch.where(torch.arange(80) >= 40, (original + 1) % 4, original)
    off = torch.linalg.svd(vertices).Vh[-1]  # at right angles to every edge
    aside = 0.5 * (assigned != original)[:, None] * off
    features = vertices[original] + fraction * (vertices[assigned] - vertices[original]) + aside
    found = measure_memorization(features.numpy(), assigned, original, num_classes=4)
    length = float(torch.linalg.vector_norm(vertices[0] - vertices[1]))
    assert found.memorised_way == pytest.approx(fraction, abs=1e-12)
    assert found.corruption_bias == pytest.approx((1 - fraction) * length, abs=1e-12)
    assert found.memorised_off_edge == pytest.approx(0.5 / length)
    distance = ((fraction * length) ** 2 + 0.25) ** 0.5
    assert found.memorization == pytest.approx(distance)
    assert found.memorization_relative == pytest.approx(distance / length)


def test_clean_labels_leave_nothing_to_measure() -> None:
    features, labels = clusters([5, 6], 3)
    found = measure_memorization(features, labels, labels, num_classes=2)
    assert set(found.measures().values()) == {None}
    assert set(found.notes) == set(MEASURES)
    assert found.num_examples == 0
    assert found.counts == (0, 0)


def test_coinciding_vertices_give_no_infinity() -> None:
    features = torch.cat([torch.ones(4, 2), torch.tensor([[2.0, 1]])])
    original, assigned = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([0, 0, 1, 1, 1])
    found = measure_memorization(features, assigned, original, num_classes=2)
    assert found.memorization == 1.0
    assert found.memorization_relative is None
    assert found.corruption_bias is None
    assert found.undefined == 1
    assert "differ" in found.notes["corruption_bias"]


@pytest.mark.parametrize("seed", [0, 1])
def test_dilation_is_the_trace_ratio_of_the_test_features(seed: int) -> None:
    features, labels = clusters([20, 20, 20], 5, seed=seed)
    moments = Moments(3, 5)
    moments.update(features, labels)
    assert dilation(moments) == pytest.approx(oracle.trace_nc1(features.numpy(), labels.numpy()))
    assert dilation(Moments(3, 5)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"assigned": torch.tensor([0, 1])}, "found 2 assigned classes"),
        ({"assigned": torch.tensor([0, 0, 1, 2])}, r"assigned classes must be in 0\.\.1, found 2"),
        ({"original": torch.tensor([0, 0, -1, 1])}, "original classes .* found -1"),
        ({"features": torch.zeros(4)}, r"\(N, D\)"),
        ({"features": torch.full((4, 2), torch.nan)}, "finite"),
        ({"assigned": torch.tensor([0, 0, 0, 1])}, "1 classes have two uncorrupted examples"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(changes: dict[str, Tensor], message: str) -> None:
    labels = torch.tensor([0, 0, 1, 1])
    parts = {"features": torch.eye(4), "assigned": labels, "original": labels} | changes
    with pytest.raises(InputError, match=message):
        measure_memorization(**parts, num_classes=2)

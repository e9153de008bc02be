"""Many classes in many dimensions: both ways to the span of the means, and the memory they take."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers_geometry import clusters, rotation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry import moments as moments_module
from robust_nc.geometry import nulls as nulls_module
from robust_nc.geometry import projection as projection_module
from robust_nc.geometry.moments import Groups, Moments
from robust_nc.geometry.nulls import isotropic_null, leap_null
from robust_nc.geometry.projection import Projection, Span, whitening

ROUTES = {"by SVD": (10**9, 10**9), "by Gram": (0, 0)}


def take_route(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    above, dim = ROUTES[name]
    monkeypatch.setattr(projection_module, "_GRAM_GROUPS", above)
    monkeypatch.setattr(projection_module, "_GRAM_DIM", dim)


def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every loop over pieces run more than once."""
    monkeypatch.setattr(moments_module, "_PIECE", 64)
    monkeypatch.setattr(projection_module, "_GRAM_ROWS", 7)


def wide(count: int, dim: int, *, decades: float, noise: float) -> tuple[Tensor, Tensor]:
    """Groups of 3 or 5 whose centred means have singular values spread over 10^decades."""
    generator = torch.Generator().manual_seed(0)
    sizes = 1e3 * torch.logspace(0, -decades, count - 1, dtype=torch.float64)
    directions = rotation(dim, seed=1)[: count - 1]
    codes = rotation(count, seed=2)[:, : count - 1]
    labels = torch.repeat_interleave(
        torch.arange(count), torch.tensor([3, 5]).repeat(count)[:count]
    )
    scatter = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
    return ((codes * sizes) @ directions)[labels] + noise * scatter, labels


def exact(features: Tensor, labels: Tensor) -> float:
    """NC1 in NumPy float64: the D x D Sigma_B, pinv by its singular values, cut to K - 1."""
    h, groups = features.numpy(), labels.numpy()
    count = int(groups.max()) + 1
    means = np.array([h[groups == k].mean(0) for k in range(count)])
    centred = means - h.mean(0)
    z = h - means[groups]
    # Sigma_B = C^T C / K: its pseudo-inverse is K C^+ C^+T, and C^+ spares it the squared spread.
    inverse = np.linalg.pinv(centred, rcond=1e-9)
    return float(np.square(z @ inverse).sum(1).mean())


def measured(features: Tensor, labels: Tensor) -> float:
    moments = Moments(int(labels.max()) + 1, features.shape[1])
    moments.update(features, labels)
    projection = Projection(moments)
    projection.update(features[:50], labels[:50])
    projection.update(features[50:], labels[50:])
    found = projection.nc1()
    assert found is not None
    return found


@pytest.mark.parametrize("noise", [0.01, 1e-5])
@pytest.mark.parametrize("name", ROUTES)
def test_a_wide_spectrum_agrees_with_float64(
    name: str, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_route(monkeypatch, name)
    features, labels = wide(100, 300, decades=4, noise=noise)
    wanted = exact(features, labels)
    assert measured(features, labels) == pytest.approx(wanted, rel=1e-6)
    assert measured(features + 1e3, labels) == pytest.approx(wanted, rel=1e-5)


def test_the_gram_keeps_six_decades() -> None:
    """Orthogonalised twice: with the squared condition number alone, 1e12, two digits are left."""
    features, labels = wide(40, 90, decades=6, noise=1e-5)
    groups = Groups.of(
        torch.stack([features[labels == k].mean(0) for k in range(40)]), torch.bincount(labels)
    )
    found = torch.linalg.svdvals(Span.of(groups).coordinates)
    wanted = torch.linalg.svdvals(groups.weighted_rows())[:39]
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=0)


def test_directions_below_the_resolution_of_the_gram_are_cut() -> None:
    means = torch.diag(torch.tensor([1.0, 1, 1, 1e-9, 0], dtype=torch.float64))
    groups = Groups.of(means, torch.full((5,), 2))
    assert Span.of(groups).coordinates.shape == (5, 3)
    assert len(whitening(groups.rows)) == 4


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 7), st.integers(2, 9), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_both_routes_agree_on_any_features(groups: int, dim: int, seed: int, scale: float) -> None:
    counts = [2 + (seed * (k + 3)) % 9 for k in range(groups)]
    features, labels = clusters(counts, dim, seed=seed % 1000, noise=0.5)
    found = {}
    for name in ROUTES:
        with pytest.MonkeyPatch.context() as patch:
            take_route(patch, name)
            cut_small(patch)
            found[name] = measured(scale * features, labels)
    assert found["by Gram"] == pytest.approx(found["by SVD"], rel=1e-7)


def test_moments_that_change_under_a_projection_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_route(monkeypatch, "by Gram")
    features, labels = clusters([9, 9, 9], 5)
    more = Moments(3, 5)
    more.update(features, labels)
    for change in (lambda m: m.update(features, labels), lambda m: m.merge(more)):
        moments = Moments(3, 5)
        moments.update(features, labels)
        projection = Projection(moments)
        projection.update(features, labels)
        change(moments)
        with pytest.raises(InputError, match="have changed"):
            projection.update(features, labels)


def test_projections_by_gram_merge_onto_the_same_means_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_route(monkeypatch, "by Gram")
    features, labels = clusters([9, 9, 9], 5)
    moments, turned = Moments(3, 5), Moments(3, 5)
    moments.update(features, labels)
    turned.update(features @ rotation(5, seed=3), labels)
    whole, first, second = (Projection(moments) for _ in range(3))
    whole.update(features, labels)
    first.update(features[:4], labels[:4])
    second.update(features[4:], labels[4:])
    assert first.merge(second).nc1() == pytest.approx(whole.nc1(), rel=1e-12)
    with pytest.raises(InputError, match="different class means"):
        whole.merge(Projection(turned))


def test_nulls_do_not_depend_on_the_route(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters([20, 30, 25, 1], 6)
    moments = Moments(4, 6)
    moments.update(features, labels)
    joint = torch.tensor([[18, 1, 1, 0], [2, 20, 8, 0], [0, 5, 20, 0], [1, 0, 0, 0]])
    found = []
    for name in ROUTES:
        take_route(monkeypatch, name)
        cut_small(monkeypatch)
        for null in (
            leap_null(joint, moments.means),
            isotropic_null(moments, moments.means, seed=3, num_examples=300),
        ):
            assert null.nc1 is not None
            found.append((null.nc1, null.nc1_trace))
    np.testing.assert_allclose(found[:2], found[2:], rtol=1e-9)
    assert nulls_module.by_gram(1, 1)


def test_noise_without_two_vertices_has_no_collapse() -> None:
    features, labels = clusters([9, 9], 3)
    moments = Moments(2, 3)
    moments.update(features, labels)
    for missing in (slice(0, 1), slice(0, 2)):
        vertices = moments.means
        vertices[missing] = torch.nan
        assert isotropic_null(moments, vertices, seed=0) == (None, None)


PEAK = """
import sys
import torch
from robust_nc.benchmarks.races.memory import held_bytes, peak_bytes
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.projection import Projection

def batches(groups, dim, examples):
    source = torch.Generator().manual_seed(0)
    row = torch.randn(dim + 7 * groups, generator=source)
    means = row.unfold(0, dim, 7)  # windows of one row take no memory
    sizes = torch.logspace(0, -3, groups)[:, None]
    noise = 0.1 * torch.randn(100, dim, generator=source)
    for start in range(0, examples, 100):
        labels = torch.arange(start, min(start + 100, examples)) % groups
        yield noise[: len(labels)].roll(start, 0).addcmul_(means[labels], sizes[labels]), labels

def measure(groups, dim, examples):
    moments = Moments(groups, dim)
    for features, labels in batches(groups, dim, examples):
        moments.update(features, labels)
    projection = Projection(moments)
    for features, labels in batches(groups, dim, examples):
        projection.update(features, labels)
    assert collapse(moments, projection=projection).nc1 is not None

setting = tuple(map(int, sys.argv[1:]))
measure(2, 3, 8)  # what torch loads at first use is not the features'
batch = next(batches(*setting))
before = held_bytes()
del batch
measure(*setting)
print((peak_bytes(torch.device("cpu")) - before) / 2**20)
"""


def peak(groups: int, dim: int, examples: int) -> float:
    """MiB of exact NC1 and all one-pass measures above what the process held, in a fresh one."""
    arguments = [sys.executable, "-c", PEAK, str(groups), str(dim), str(examples)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [10, 100, 1_000])
def test_a_thousand_classes_at_the_first_block_take_less_than_two_gibibytes(groups: int) -> None:
    assert peak(groups, 65_536, 2 * groups) < 2048

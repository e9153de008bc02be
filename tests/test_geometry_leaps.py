"""Leaps against the oracle, planted leaps found again, and the nulls of attacked collapse."""

import math

import numpy as np
import pytest
import torch
from helpers_geometry import clusters, rotation
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import leaps as oracle
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.collapse import measure_collapse
from robust_nc.geometry.leaps import MEASURES, LeapMeter, Leaps, leap_layer, measure_leaps
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.nearest import nearest_vertex
from robust_nc.geometry.nulls import isotropic_draws, isotropic_null, joint_counts, leap_null


def attacked_clusters(seed: int = 0) -> tuple[Tensor, ...]:
    """Clean, attacked, labels, vertices, destinations, flipped: everything happens in it."""
    clean, labels = clusters([25, 14, 31, 9], 5, noise=0.5, seed=seed)
    vertices = torch.stack([clean[labels == k].mean(0) for k in range(4)])
    generator = torch.Generator().manual_seed(seed + 1)
    destinations = torch.randint(0, 4, (len(labels),), generator=generator)
    way = torch.rand(len(labels), 1, generator=generator, dtype=torch.float64) * 1.4
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    attacked = clean + way * (vertices[destinations] - vertices[labels]) + 0.1 * noise
    flipped = torch.rand(len(labels), generator=generator) < 0.5
    return clean, attacked, labels, vertices, destinations, flipped


def metered(
    parts: tuple[Tensor, ...], rows: slice = slice(None), meter: LeapMeter | None = None
) -> LeapMeter:
    clean, attacked, labels, vertices, destinations, flipped = parts
    meter = meter or LeapMeter(vertices)
    meter.update(
        clean[rows], attacked[rows], labels[rows], destinations[rows], flipped=flipped[rows]
    )
    return meter


def same(found: Leaps, wanted: Leaps, rel: float = 1e-12) -> None:
    for name, value in wanted.measures().items():
        assert found.measures()[name] == pytest.approx(value, rel=rel, abs=1e-9), name
    assert torch.equal(found.matrix, wanted.matrix)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_leaps_agree_with_the_oracle(seed: int) -> None:
    parts = attacked_clusters(seed)
    found = metered(parts).compute()
    wanted = oracle.leaps(*(part.numpy() for part in parts))
    for name in MEASURES:
        if name != "mean_row_entropy":
            assert found.measures()[name] == pytest.approx(wanted[name], rel=1e-10), name
    assert np.array_equal(found.matrix.numpy(), wanted["matrix"])
    assert found.row_entropy == pytest.approx(wanted["row_entropy"])
    assert found.undefined == wanted["undefined"]
    assert len(found.t) + found.undefined == found.num_examples
    np.testing.assert_allclose(found.t.numpy(), wanted["t"], rtol=1e-10)
    np.testing.assert_allclose(found.off_edges.numpy(), wanted["off_edges"], rtol=1e-9, atol=1e-12)
    leaps = found.matrix.sum(1) - found.matrix.diagonal()
    weighted = [e * int(n) for e, n in zip(found.row_entropy, leaps, strict=True) if e is not None]
    assert found.mean_row_entropy == pytest.approx(sum(weighted) / int(leaps.sum()))
    assert not found.notes


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 500), st.integers(0, 79), st.sampled_from([0.1, 10.0, 1e3]))
def test_splits_rotation_scale_and_offset_change_nothing(seed: int, cut: int, scale: float) -> None:
    parts = attacked_clusters(seed)
    whole = metered(parts).compute()
    halves = metered(parts, slice(0, cut)).merge(metered(parts, slice(cut, None)))
    same(halves.compute(), whole)
    turn = rotation(5, seed=seed)
    moved = [scale * part @ turn + 1e3 for part in (parts[0], parts[1], parts[3])]
    same(metered((moved[0], moved[1], parts[2], moved[2], *parts[4:])).compute(), whole, rel=1e-6)


def test_nothing_seen_gives_no_values_and_no_error() -> None:
    found = LeapMeter(torch.eye(3)).compute()
    assert set(found.measures().values()) == {None}
    assert set(found.notes) == set(MEASURES)
    assert found.num_examples == found.undefined == len(found.t) == 0


def test_coinciding_vertices_give_no_infinity() -> None:
    found = metered((*attacked_clusters()[:3], torch.ones(4, 5), *attacked_clusters()[4:]))
    values = found.compute().measures().values()
    assert all(value is None or math.isfinite(value) for value in values)


def test_a_class_without_a_vertex_is_no_destination() -> None:
    vertices = torch.eye(3)
    vertices[2] = torch.nan
    clean, attacked = torch.eye(3)[[0, 1]], torch.eye(3)[[1, 1]]
    found = measure_leaps(clean, attacked, [0, 1], vertices, destinations=torch.tensor([2, 0]))
    assert found.undefined == 1
    assert found.leap_rate == 0.5
    assert found.displacement == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacked": torch.zeros(3, 2)}, "same examples"),
        ({"clean": torch.zeros(4, 2).long()}, "floating"),
        ({"labels": torch.zeros(3).long()}, "3 labels"),
        ({"labels": torch.full((4,), 5)}, "found 5"),
        ({"destinations": torch.full((4,), 2)}, r"destinations must be in 0\.\.1"),
        ({"vertices": torch.tensor([[0.0, 1], [torch.inf, 0]])}, "finite"),
        ({"vertices": torch.tensor([[0.0, 1], [torch.nan, torch.nan]])}, "two classes"),
        ({"vertices": torch.eye(3)}, r"\(N, 3\)"),
        ({"vertices": torch.zeros(2)}, r"\(K, D\)"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(changes: dict[str, Tensor], message: str) -> None:
    given = {
        "clean": torch.zeros(4, 2),
        "attacked": torch.zeros(4, 2),
        "labels": torch.zeros(4).long(),
        "vertices": torch.eye(2),
        "destinations": torch.ones(4).long(),
    } | changes
    with pytest.raises(InputError, match=message):
        measure_leaps(**given)


def test_meters_of_other_vertices_do_not_merge() -> None:
    with pytest.raises(InputError, match="different vertices"):
        LeapMeter(torch.eye(2)).merge(LeapMeter(2 * torch.eye(2)))
    with pytest.raises(InputError, match="flipped"):
        LeapMeter(torch.eye(2)).update(
            torch.eye(2), torch.eye(2), torch.tensor([0, 1]), flipped=torch.zeros(3)
        )


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(0, 10_000))
def test_leap_layers_agree_with_the_oracle(depth: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(0, 2, (2, depth, 20), generator=generator)
    labels = torch.randint(0, 2, (20,), generator=generator)
    origins, landings = list(draws[0]), list(draws[1])
    wanted = oracle.leap_layer(
        [o.numpy() for o in origins], [x.numpy() for x in landings], labels.numpy()
    )
    assert leap_layer(origins, landings, labels).tolist() == wanted


def test_leap_layer_needs_both_ends_of_every_tap() -> None:
    with pytest.raises(InputError, match="found 1 and 0"):
        leap_layer([torch.zeros(2).long()], [], torch.zeros(2).long())


def test_leap_null_is_the_collapse_of_examples_put_on_vertices() -> None:
    vertices = clusters([1] * 4, 6)[0]
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 4, (90,), generator=generator)
    ends = torch.where(torch.rand(90, generator=generator) < 0.5, labels, (labels + 1) % 4)
    wanted = measure_collapse(vertices[ends], labels)
    found = leap_null(joint_counts(labels, ends, 4), vertices)
    assert found.nc1 == pytest.approx(wanted.nc1, rel=1e-9)
    assert found.nc1_trace == pytest.approx(wanted.nc1_trace, rel=1e-9)


def test_leap_null_without_groups_or_spread_has_no_value() -> None:
    vertices = torch.eye(3, dtype=torch.float64)
    assert leap_null(torch.tensor([[5, 0, 0], [1, 0, 0], [0, 0, 0]]), vertices) == (None, None)
    assert leap_null(torch.tensor([[5, 0, 0], [5, 0, 0], [0, 0, 0]]), vertices) == (None, None)
    vertices[2] = torch.nan
    with pytest.raises(InputError, match="does not exist"):
        leap_null(torch.full((3, 3), 2), vertices)


def test_isotropic_null_is_keyed_and_has_the_variance_asked_for() -> None:
    features, labels = clusters([200, 300, 100], 8)
    moments = Moments(3, 8)
    moments.update(features + 5, labels)
    draws = isotropic_draws(torch.arange(4000), moments.global_mean, moments.total_variance, 0)
    spread = (draws - moments.global_mean).square().sum(1).mean()
    assert float(spread) == pytest.approx(moments.total_variance, rel=0.05)
    assert torch.equal(
        isotropic_draws(torch.tensor([7]), moments.global_mean, moments.total_variance, 0),
        draws[7:8],
    )
    found = isotropic_null(moments, moments.means, seed=0, num_examples=4000)
    landed = measure_collapse(draws, nearest_vertex(draws, moments.means), num_classes=3)
    assert found == (landed.nc1, landed.nc1_trace)
    assert found == isotropic_null(moments, moments.means, seed=0, num_examples=4000)
    assert found != isotropic_null(moments, moments.means, seed=1, num_examples=4000)

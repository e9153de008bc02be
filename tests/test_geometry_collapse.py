"""Collapse measures against the oracle, their invariances and their undefined cases."""

import importlib
import itertools
import math
import operator
import warnings
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from helpers_geometry import clusters, simplex
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import collapse as oracle
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.collapse import MEASURES, Collapse, collapse, measure_collapse
from robust_nc.geometry.leaps import MEASURES as LEAP_MEASURES
from robust_nc.geometry.measures import Measure
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.projection import Projection
from robust_nc.geometry.scatter import TotalScatter
from robust_nc.registry import METRICS


def agree(
    found: Mapping[str, float | None],
    wanted: Mapping[str, float | None],
    *,
    rel: float = 1e-9,
    size: float = 1e-12,
) -> None:
    for name, value in wanted.items():
        if value is None:
            assert found[name] is None, name
        else:
            assert found[name] == pytest.approx(value, rel=rel, abs=size), name


@pytest.mark.parametrize(
    ("counts", "dim"),
    [([30, 30, 30], 5), ([40, 7, 25, 2], 3), ([20, 30], 4), ([12] * 12, 4), ([60, 0, 1, 50], 6)],
    ids=["balanced", "unbalanced", "two classes", "more classes than dims", "empty and lone"],
)
def test_every_measure_agrees_with_its_oracle(counts: list[int], dim: int) -> None:
    features, labels = clusters(counts, dim)
    weight, target = clusters([1] * len(counts), dim, seed=1)[0], simplex(len(counts), len(counts))
    target = target + 0.1
    bias = torch.linspace(-1, 1, len(counts), dtype=torch.float64)
    found = measure_collapse(
        features, labels, num_classes=len(counts), weight=weight, bias=bias, target=target
    )
    values = found.measures()
    wanted = oracle.collapse(
        features.numpy(), labels.numpy(), weight=weight.numpy(), target=target.numpy()
    )
    if len(labels) < 10 * dim:
        assert "10 D" in found.notes["vci"]
        del wanted["vci"], wanted["vci_unweighted"]
    agree(values, wanted)
    assert set(wanted) | {"nc4", "vci", "vci_unweighted"} == set(MEASURES)
    vertices = np.array(
        [
            features[labels == k].mean(0).numpy() if n > 1 else np.full(dim, 1e9)
            for k, n in enumerate(counts)
        ]
    )
    assert values["nc4"] == oracle.nc4(
        features.numpy(), labels.numpy(), weight.numpy(), bias.numpy(), vertices
    )
    kept = [n for n in counts if n > 1]
    assert (found.num_examples, found.num_groups) == (sum(kept), len(kept))
    assert (found.empty_groups, found.single_groups) == (counts.count(0), counts.count(1))
    assert ("num_groups" in found.notes) == (len(kept) < len(counts))


def test_clean_reference_agrees_with_its_oracle() -> None:
    clean, labels = clusters([20, 35, 15], 4)
    moments = Moments(3, 4)
    moments.update(clean, labels)
    attacked, groups = clusters([9, 9, 9], 4, seed=5, noise=1.0)
    sizes = np.array([20, 35, 15])
    wanted = oracle.cleanref(attacked.numpy(), groups.numpy(), moments.means.numpy(), sizes)
    for projection in (Projection(moments), Projection.of(moments.means, moments.counts)):
        projection.update(attacked, groups)
        assert projection.nc1() == pytest.approx(wanted, rel=1e-10)
        shares = projection.per_group()
        assert sum(s for s in shares if s is not None) / 3 == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("counts", [[20] * 5, [50, 30, 10, 5, 2]], ids=["balanced", "unbalanced"])
def test_an_exact_simplex_is_full_collapse(counts: list[int]) -> None:
    frame = simplex(5, 8)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(counts))
    features = (3 * frame[labels] + 7).float()
    found = measure_collapse(
        features, labels, weight=0.1 * frame, bias=-0.7 * frame.sum(1), target=frame
    ).measures()
    unweighted = [name for name in MEASURES if "_w" not in name]
    other = {"vci_unweighted"} if len(set(counts)) > 1 else set()
    for name in set(unweighted) - {"nc3_raw", "nc2_target_raw", "ncc"} - other:
        assert found[name] == pytest.approx(0, abs=1e-5), name
    assert found["ncc"] == 1
    assert found["nc1"] is not None
    assert found["nc1"] < 1e-20
    tilted = [found[name] for name in ("nc2_angle_w", "nc2_gram_w", "nc3_w", "nc3_w_head_raw")]
    assert all(value is not None for value in tilted)
    if len(set(counts)) > 1:
        assert min(value for value in tilted if value is not None) > 0.1
    else:
        assert max(value for value in tilted if value is not None) < 1e-5


CASES = st.tuples(
    st.integers(2, 5), st.integers(2, 6), st.integers(0, 1000), st.sampled_from([0.05, 1.0])
)


def case(values: tuple[int, int, int, float]) -> tuple[Tensor, Tensor, Tensor]:
    groups, dim, seed, noise = values
    counts = [3 + (seed * (k + 7)) % 11 for k in range(groups)]
    features, labels = clusters(counts, dim, seed=seed, noise=noise)
    return features, labels, clusters([1] * groups, dim, seed=seed + 1)[0]


@settings(deadline=None, max_examples=25)
@given(CASES, st.sampled_from([1e3, 1e6]))
def test_a_common_offset_changes_nothing(
    values: tuple[int, int, int, float], offset: float
) -> None:
    features, labels, weight = case(values)
    plain = measure_collapse(features, labels, weight=weight).measures()
    moved = measure_collapse(features + offset, labels, weight=weight).measures()
    steady = {name: plain[name] for name in set(plain) - {"nc3_raw", "nc4"}}
    agree(moved, steady, rel=1e-5, size=1e-8)


@settings(deadline=None, max_examples=25)
@given(CASES, st.lists(st.integers(0, 60), max_size=4))
def test_merging_any_split_equals_the_whole(
    values: tuple[int, int, int, float], cuts: list[int]
) -> None:
    features, labels, _ = case(values)
    groups, dim = int(labels.max()) + 1, features.shape[1]
    whole, scatter = Moments(groups, dim), TotalScatter(dim)
    whole.update(features, labels)
    scatter.update(features)
    merged, outer = Moments(groups, dim), TotalScatter(dim)
    ends = [0, *sorted(min(cut, len(labels)) for cut in cuts), len(labels)]
    pieces = [slice(a, b) for a, b in itertools.pairwise(ends)]
    for rows in pieces:
        part, own = Moments(groups, dim), TotalScatter(dim)
        part.update(features[rows], labels[rows])
        own.update(features[rows])
        assert merged.merge(part) is merged
        outer.merge(own)
    projections = [Projection(merged) for _ in range(2)]
    projections[0].update(features[:5], labels[:5])
    projections[1].update(features[5:], labels[5:])
    exact = Projection(whole)
    exact.update(features, labels)
    found = collapse(merged, projection=projections[0].merge(projections[1]), scatter=outer)
    wanted = collapse(whole, projection=exact, scatter=scatter)
    assert found.num_examples == wanted.num_examples == len(labels)
    agree(found.measures(), wanted.measures())


@pytest.mark.parametrize(
    "features",
    [torch.full((12, 4), 0.1), torch.full((12, 4), 0.1, dtype=torch.float64), torch.zeros(12, 4)],
    ids=["float32", "float64", "zero"],
)
def test_constant_features_have_no_collapse(features: Tensor) -> None:
    labels = torch.arange(12) % 3
    with pytest.warns(UserWarning, match="undefined: nc1 .the group means coincide"):
        found = measure_collapse(features, labels, weight=torch.eye(3, 4))
    for name in ("nc1", "nc1_trace", "cdnv", "nc2_norm", "nc2_angle", "nc2_gram", "nc3"):
        assert found.measures()[name] is None
        assert found.notes[name].startswith("undefined"), name


def every_value_is_a_number_or_explained(found: Collapse) -> None:
    for name, value in found.measures().items():
        assert (value is None) == (name in found.notes), name
        assert value is None or math.isfinite(value), name


DEGENERATE = {
    "zero means": (torch.tensor([[1.0, 0], [-1, 0]]).repeat(6, 1), torch.arange(12) // 2 % 3),
    "two of three coincide": (torch.eye(3)[[0, 0, 0, 0, 2, 2]], torch.arange(6) // 2),
    "one at the centre": (
        torch.tensor([[-1.0, 0], [0, 0], [1, 0]]).repeat_interleave(3, 0),
        torch.arange(9) // 3,
    ),
    "one dimension": (torch.arange(9.0)[:, None], torch.arange(9) // 3),
    "huge": (1e18 * torch.eye(4).repeat(3, 1), torch.arange(12) % 4),
    "tiny": (1e-18 * torch.eye(4).repeat(3, 1), torch.arange(12) % 4),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_no_value_is_ever_nan(name: str) -> None:
    features, labels = DEGENERATE[name]
    groups = int(labels.max()) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = measure_collapse(
            features,
            labels,
            weight=torch.ones(groups, features.shape[1]),
            target=torch.eye(groups),
        )
    every_value_is_a_number_or_explained(found)


@pytest.mark.parametrize("counts", [[0, 0, 0], [5, 0, 0], [5, 1, 1], [1, 1, 1]])
def test_fewer_than_two_groups_give_no_values_and_no_error(counts: list[int]) -> None:
    moments = Moments(3, 2)
    features, labels = clusters(counts, 2)
    moments.update(features, labels)
    projection, scatter = Projection(moments), TotalScatter(2)
    projection.update(features, labels)
    scatter.update(features)
    found = collapse(moments, projection=projection, scatter=scatter, weight=torch.eye(3, 2))
    assert set(found.measures().values()) == {None}
    every_value_is_a_number_or_explained(found)


def test_every_measure_is_registered_under_its_name() -> None:
    for name in METRICS.names():
        measure = METRICS.load(name)
        assert isinstance(measure, Measure)
        assert measure.name == name
        module, path = measure.formula.split(":")
        assert callable(operator.attrgetter(path)(importlib.import_module(module)))
    assert {*MEASURES, *LEAP_MEASURES} <= set(METRICS.names())
    assert METRICS.load("ncc").higher_is_better


def test_numpy_and_torch_inputs_agree() -> None:
    features, labels = clusters([6, 7, 8], 3)
    wanted = measure_collapse(features, labels).measures()
    read_only = features.numpy().copy()
    read_only.flags.writeable = False
    for given_features, given_labels in [
        (read_only, labels.numpy().astype(np.uint8)),
        (features.numpy()[::-1][::-1], labels.int()),
        (features.numpy().astype(">f8"), labels.tolist()),
    ]:
        assert measure_collapse(given_features, given_labels).measures() == wanted


GOOD = (torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)


@pytest.mark.parametrize(
    ("features", "labels", "options", "message"),
    [
        (GOOD[0][:, :, None], GOOD[1], {}, r"shape \(N, D\)"),
        (GOOD[0].long(), GOOD[1], {}, "floating point"),
        (GOOD[0] / 0, GOOD[1], {}, "finite"),
        (GOOD[0], GOOD[1][:5], {}, "5 labels"),
        (GOOD[0], GOOD[1] + 0.5, {}, "whole numbers"),
        (GOOD[0], GOOD[1] - 1, {}, "found -1"),
        (GOOD[0], GOOD[1], {"num_classes": 1}, "found 1"),
        (GOOD[0], GOOD[1] * 0, {}, "one class"),
        (GOOD[0], GOOD[1] + 10**12, {}, "examples for"),
        (GOOD[0][:2], GOOD[1][:2], {}, "two examples"),
        (GOOD[0][:0], GOOD[1][:0], {}, "empty"),
        (GOOD[0], GOOD[1], {"weight": torch.zeros(2, 4)}, r"weight must have shape \(2, 3\)"),
        (GOOD[0], GOOD[1], {"target": torch.zeros(3, 4)}, r"target must have shape \(2, any\)"),
        (GOOD[0], GOOD[1], {"bias": torch.zeros(2)}, "without weight"),
        (GOOD[0], GOOD[1], {"weight": torch.eye(2, 3), "bias": torch.zeros(3)}, "bias must have"),
        (np.array([["a"]]), GOOD[1], {}, "numbers"),
        ([[1.0, 2.0], [3.0]], GOOD[1], {}, "rows of one length"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(
    features: Tensor, labels: Tensor, options: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        measure_collapse(features, labels, **options)


def test_parts_that_do_not_fit_are_refused() -> None:
    features, labels = clusters([4, 4], 3)
    moments, scatter = Moments(2, 3), TotalScatter(3)
    moments.update(features, labels)
    for _ in range(10):
        scatter.update(features)
    with pytest.raises(InputError, match="same features"):
        collapse(moments, scatter=scatter)
    with pytest.raises(InputError, match="cannot merge"):
        moments.merge(Moments(2, 4))
    with pytest.raises(InputError, match="cannot merge"):
        scatter.merge(TotalScatter(4))
    with pytest.raises(InputError, match="different class means"):
        Projection(moments).merge(Projection.of(torch.eye(2, 3)))
    with pytest.raises(InputError, match=r"\(N, 3\)"):
        moments.update(features[:, :2], labels)
    with pytest.raises(InputError, match=r">= 1, found 0"):
        Moments(0, 3)

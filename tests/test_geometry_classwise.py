"""Leaps by class, how they go with collapse, and how bad they are, against oracles."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import classwise as oracle
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.classwise import leap_rates, vulnerability
from robust_nc.geometry.severity import (
    check_distances,
    farthest_classes,
    mean_severity,
    return_rate,
    severity_null,
)


def draws(seed: int, count: int = 80, num_classes: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Origin, destination and noisy classes; about a third stay."""
    generator = torch.Generator().manual_seed(seed)
    origin, away, noisy = torch.randint(0, num_classes, (3, count), generator=generator)
    stays = torch.rand(count, generator=generator) < 0.33
    return origin, torch.where(stays, origin, away), torch.where(stays, away, noisy)


def tree(num_classes: int, seed: int) -> Tensor:
    """Symmetric whole distances with ties."""
    generator = torch.Generator().manual_seed(seed)
    above = torch.randint(1, 4, (num_classes, num_classes), generator=generator).triu(1)
    return above + above.T


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_leap_rates_agree_with_the_oracle(seed: int) -> None:
    labels, destination, _ = draws(seed, count=20)
    leaped = labels != destination
    found = leap_rates(labels, leaped, 8)
    assert list(found.rates) == oracle.leap_rates(labels.numpy(), leaped.numpy(), 8)
    assert found.counts == tuple(int((labels == k).sum()) for k in range(8))
    assert found.rates[7] is None
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    assert leap_rates(labels[order], leaped[order], 8) == found


def test_leap_rates_of_nobody_are_none() -> None:
    nobody = torch.zeros(0, dtype=torch.int64)
    assert leap_rates(nobody, nobody.bool(), 2) == ((None, None), (0, 0))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(3, 12), st.booleans())
def test_vulnerability_agrees_with_the_oracle(seed: int, count: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(2, count))
    if ties:
        x, y = np.round(x, 0), np.round(y, 0)
        x[:2], y[-2:] = (-9, 9), (-9, 9)
    found = vulnerability(x, torch.tensor(y))
    ranked = oracle.pearson(oracle.ranks(x.tolist()), oracle.ranks(y.tolist()))
    assert found.spearman == pytest.approx(ranked, abs=1e-12)
    assert found.pearson == pytest.approx(oracle.pearson(x.tolist(), y.tolist()), abs=1e-12)
    assert (found.num_classes, found.notes) == (count, {})
    order = generator.permutation(count)
    moved = vulnerability(np.exp(x[order]), 1e3 + 0.01 * y[order])
    assert moved.spearman == pytest.approx(found.spearman)
    straight = vulnerability(7 - 2 * x, y)
    assert straight.pearson == pytest.approx(-found.pearson)
    assert straight.spearman == pytest.approx(-found.spearman)


def test_classes_without_one_of_the_values_are_left_out() -> None:
    found = vulnerability([1.0, None, 2.0, 3.0, 9.0], [0.1, 0.9, 0.3, 0.2, float("nan")])
    assert found == vulnerability([1.0, 2.0, 3.0], [0.1, 0.3, 0.2])
    assert found.num_classes == 3
    assert found.spearman == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("collapse", "rates", "reason"),
    [
        ([], [], "0 classes"),
        ([0.1, 0.2], [0.1, 0.3], "2 classes"),
        ([0.1, 0.2, None], [0.1, 0.3, 0.4], "2 classes"),
        ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0], "leap rate is the same"),
        ([0.0, 0.0, 0.0], [0.1, 0.2, 0.3], "collapse is the same"),
        ([0.1 + 0.2, 0.3, 0.3], [0.1, 0.2, 0.3], "collapse is the same"),
    ],
)
def test_no_correlation_without_three_classes_that_differ(
    collapse: list[float | None], rates: list[float], reason: str
) -> None:
    found = vulnerability(collapse, rates)
    assert found.spearman is found.pearson is None
    assert set(found.notes) == {"spearman", "pearson"}
    assert all(reason in note for note in found.notes.values())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 7))
def test_severity_agrees_with_the_oracle(seed: int, num_classes: int) -> None:
    parts = draws(seed, num_classes=num_classes)
    parts[1][0] = (parts[0][0] + 1) % num_classes
    origin, destination, noisy = parts
    distances = check_distances(tree(num_classes, seed).numpy(), num_classes)
    arrays = [part.numpy() for part in (origin, destination)]
    mean, null = oracle.severity(*arrays, distances.numpy())
    assert mean_severity(origin, destination, distances) == pytest.approx(mean)
    assert severity_null(origin, destination, distances) == pytest.approx(null)
    returned = oracle.return_rate(*arrays, noisy.numpy())
    assert return_rate(origin, destination, noisy) == pytest.approx(returned)
    far = oracle.farthest_classes(origin.numpy(), distances.numpy())
    assert farthest_classes(distances, origin).tolist() == far
    order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed))
    renamed = torch.empty_like(distances)
    renamed[order[:, None], order] = 3 * distances
    assert mean_severity(order[origin], order[destination], renamed) == pytest.approx(3 * mean)
    assert severity_null(order[origin], order[destination], renamed) == pytest.approx(3 * null)


def test_where_nobody_leaps_there_is_no_severity() -> None:
    labels = torch.tensor([0, 1, 1])
    for some in (labels, labels[:0]):
        assert mean_severity(some, some, torch.ones(2, 2)) is None
        assert severity_null(some, some, torch.ones(2, 2)) is None
        assert return_rate(some, some, some) is None


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        ([[0, 1, 2], [1, 0, 2]], r"shape \(3, 3\).*found \(2, 3\)"),
        ([[0, 1, 2], [1, 0, np.nan], [2, 2, 0]], r"be finite; found distances\[1, 2\] = nan"),
        ([[0, 1, -2], [1, 0, 2], [-2, 2, 0]], r"0 or more; found distances\[0, 2\] = -2"),
        ([[0, 1, 2], [1, 0, 2], [2, 2, 3]], r"diagonal; found distances\[2, 2\] = 3$"),
        (
            [[0, 1, 2], [1, 0, 2], [2, 5, 0]],
            r"symmetric.*found distances\[1, 2\] = 2 and distances\[2, 1\] = 5",
        ),
        ([["a"]], "numbers"),
    ],
)
def test_distances_name_the_entry_at_fault(distances: list[list[float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_distances(distances, 3)


def test_what_does_not_fit_is_answered_in_one_sentence() -> None:
    three, distances = torch.arange(3), check_distances(tree(3, 0), 3)
    with pytest.raises(InputError, match="bool of shape"):
        leap_rates(three, three, 3)
    with pytest.raises(InputError, match="found 3 labels"):
        leap_rates(three, torch.zeros(2, dtype=torch.bool), 3)
    with pytest.raises(InputError, match="found 2"):
        leap_rates(three, torch.zeros(3, dtype=torch.bool), 2)
    with pytest.raises(InputError, match="same classes, found 3 and 2"):
        vulnerability([1, 2, 3], [1, 2])
    with pytest.raises(InputError, match="infinite"):
        vulnerability([1, 2, np.inf], [1, 2, 3])
    with pytest.raises(InputError, match="one number or None"):
        vulnerability([1, 2, "x"], [1, 2, 3])
    with pytest.raises(InputError, match="one number per class"):
        vulnerability(np.ones((2, 2)), [1, 2])
    with pytest.raises(InputError, match="3 destinations"):
        mean_severity(three[:2], three, distances)
    with pytest.raises(InputError, match=r"origins must be in 0\.\.2, found 3"):
        mean_severity(three + 1, three, distances)
    with pytest.raises(InputError, match="2 noisy classes"):
        return_rate(three, three, three[:2])
    with pytest.raises(InputError, match=r"labels must be in 0\.\.2"):
        farthest_classes(distances, three + 1)
    with pytest.raises(InputError, match="class 1 has distance 0 to every class"):
        farthest_classes(torch.zeros(3, 3), three[1:])

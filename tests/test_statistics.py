"""Intervals and tests of differences against SciPy, by hand, and against slow code."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robust_nc.exceptions import InputError
from robust_nc.statistics.intervals import mean_interval, paired_interval, wilson
from robust_nc.statistics.significance import (
    holm,
    mcnemar,
    paired_shares,
    paired_t,
    seed_interval,
    step_down,
)

VALUES = st.lists(st.floats(-10, 10), min_size=3, max_size=8)
PS = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(n: int, share: float, level: float) -> None:
    successes = round(share * n)
    assert wilson(0, n).low == 0, "exactly"
    assert wilson(n, n).high == 1
    found = wilson(successes, n, level)
    oracle = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert found.value == successes / n
    assert (found.n, found.kind) == (n, "wilson")
    np.testing.assert_allclose([found.low, found.high], [oracle.low, oracle.high], atol=1e-12)


@pytest.mark.parametrize(
    "refused",
    [
        lambda: wilson(0, 0),
        lambda: wilson(-1, 5),
        lambda: wilson(6, 5),
        lambda: wilson(1, 5, 1.0),
        lambda: mean_interval([]),
        lambda: mean_interval([0.1, math.nan, 0.2]),
        lambda: mean_interval([math.inf]),
        lambda: paired_interval({0: 1.0}, {1: 1.0}),
        lambda: paired_shares(np.ones(3, dtype=bool), np.ones(4, dtype=bool)),
        lambda: paired_shares(np.ones(0, dtype=bool), np.ones(0, dtype=bool)),
    ],
)
def test_what_has_no_interval_is_refused(refused: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        refused()


@settings(deadline=None, max_examples=40)
@given(VALUES)
def test_mean_interval_equals_scipy(values: list[float]) -> None:
    found = mean_interval(values)
    scale = np.std(values, ddof=1) / math.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * scale
    assert found.kind == "t95"
    assert found.value == pytest.approx(np.mean(values))
    assert found.high - found.value == pytest.approx(half, abs=1e-9)
    assert found.value - found.low == pytest.approx(half, abs=1e-9)


def test_mcnemar_equals_the_exact_binomial_test_on_a_grid() -> None:
    counts = [*range(13), 40, 41, 250, 1000, 4990]
    found = mcnemar(np.array(counts)[:, None], np.array(counts))
    for i, j in itertools.product(range(len(counts)), repeat=2):
        both = counts[i] + counts[j]
        oracle = stats.binomtest(counts[i], both).pvalue if both else 1.0
        assert found[i, j] == pytest.approx(oracle, rel=1e-9, abs=1e-300)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-40, 40), min_size=2, max_size=9))
def test_paired_t_equals_scipy(differences: list[int]) -> None:
    values = np.array(differences, dtype=float)
    found = float(paired_t(values.sum(), (values**2).sum(), len(values), unit=1.0))
    if values.std(ddof=1) >= 1:
        assert found == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=1e-12)


def test_equal_differences_are_no_certainty() -> None:
    """A spread below one example counts as one: 2 P(T > 3 / (1 / sqrt 3)), two degrees."""
    found = float(paired_t(9, 27, 3, unit=1.0))
    assert found == pytest.approx(2 * stats.t.sf(3 * math.sqrt(3), 2))
    assert 0.03 < found < 0.05
    assert math.isnan(float(paired_t(3, 9, 1, unit=1.0)))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-9, 9), min_size=3, max_size=6))
def test_the_interval_over_seeds_says_what_the_p_value_says(differences: list[int]) -> None:
    values = np.array(differences, dtype=float)
    p = float(paired_t(values.sum(), (values**2).sum(), len(values), unit=1.0))
    found = seed_interval(values.tolist(), unit=1.0)
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (found.low > 0 or found.high < 0)


def test_holm_by_hand() -> None:
    # Sorted: 0.005 x 5, 0.011 x 4, 0.02 x 3, 0.028 x 2, 0.13; the fourth is lifted to the third's.
    found = step_down([0.02, 0.13, 0.005, 0.028, 0.011])
    assert found.tolist() == pytest.approx([0.06, 0.13, 0.025, 0.06, 0.044])
    assert step_down([0.6, 0.7]).tolist() == [1, 1]
    assert step_down([]).tolist() == []


def slowly(ps: list[float], alpha: float) -> set[int]:
    """Holm as a procedure: take the smallest that is left as long as it is small enough."""
    left, rejected = dict(enumerate(ps)), set()
    while left:
        index = min(left, key=lambda index: left[index])
        if left[index] * len(left) >= alpha:
            break
        rejected.add(index)
        del left[index]
    return rejected


@settings(deadline=None, max_examples=40)
@given(PS, st.sampled_from([0.01, 0.05, 0.3]))
def test_holm_rejects_what_its_procedure_rejects(ps: list[float], alpha: float) -> None:
    adjusted = step_down(ps)
    assert {i for i, p in enumerate(adjusted) if p < alpha} == slowly(ps, alpha)
    found = holm(ps, alpha)
    assert [one.p for one in found] == adjusted.tolist()
    assert (adjusted >= np.array(ps)).all()
    for p, one in zip(ps, found, strict=True):  # the level says the same, but for rounding
        if abs(one.p - alpha) > 1e-9:
            assert (p < 1 - one.level) == (one.p < alpha)


def flags_of(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    one = [True] * (both + first) + [False] * (second + neither)
    other = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(one), np.array(other)


@pytest.mark.parametrize("cells", [(36, 12, 2, 0), (5, 60, 1, 40), (300, 20, 31, 649)])
def test_newcombe_interval_from_its_parts(cells: tuple[int, int, int, int]) -> None:
    """Method 10 from SciPy's Wilson intervals and the correlation, corrected for continuity."""
    one, other = flags_of(*cells)
    ends = [
        stats.binomtest(int(flags.sum()), len(flags)).proportion_ci(0.95, method="wilson")
        for flags in (one, other)
    ]
    p, q = one.mean(), other.mean()
    covariance = len(one) * ((one & other).mean() - p * q)
    corrected = covariance if covariance < 0 else max(covariance - 0.5, 0)
    phi = corrected / (len(one) * one.std() * other.std())
    low = (p - ends[0].low) ** 2 - 2 * phi * (p - ends[0].low) * (ends[1].high - q)
    high = (ends[0].high - p) ** 2 - 2 * phi * (ends[0].high - p) * (q - ends[1].low)
    found = paired_shares(one, other)
    assert found.value == pytest.approx(p - q)
    assert found.low == pytest.approx(p - q - math.sqrt(low + (ends[1].high - q) ** 2))
    assert found.high == pytest.approx(p - q + math.sqrt(high + (q - ends[1].low) ** 2))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 60), min_size=4, max_size=4).filter(any))
def test_the_interval_of_a_difference_changes_sides_with_its_arguments(cells: list[int]) -> None:
    one, other = flags_of(*cells)
    found, swapped = paired_shares(one, other), paired_shares(other, one)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert (found.low, found.high) == pytest.approx((-swapped.high, -swapped.low))

"""Intervals against SciPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robust_nc.exceptions import InputError
from robust_nc.statistics.intervals import mean_interval, paired_interval, wilson

VALUES = st.lists(st.floats(-10, 10), min_size=3, max_size=8)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(n: int, share: float, level: float) -> None:
    successes = round(share * n)
    found = wilson(successes, n, level)
    oracle = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert found.value == successes / n
    assert (found.n, found.kind) == (n, "wilson")
    np.testing.assert_allclose([found.low, found.high], [oracle.low, oracle.high], atol=1e-12)


def test_wilson_is_exact_at_the_ends() -> None:
    assert wilson(0, 10).low == 0
    assert wilson(10, 10).high == 1
    assert wilson(0, 10).high == pytest.approx(0.2775328)


@pytest.mark.parametrize(
    ("successes", "n", "level"), [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)]
)
def test_wilson_refuses(successes: int, n: int, level: float) -> None:
    with pytest.raises(InputError):
        wilson(successes, n, level)


@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_mean_interval_equals_scipy(values: list[float]) -> None:
    found = mean_interval(values)
    scale = np.std(values, ddof=1) / math.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * scale
    assert found.kind == "t95"
    assert found.value == pytest.approx(np.mean(values))
    assert found.high - found.value == pytest.approx(half, abs=1e-9)
    assert found.value - found.low == pytest.approx(half, abs=1e-9)


def test_few_values_have_a_range_or_nothing() -> None:
    two = mean_interval([0.4, 0.2])
    assert two.value == pytest.approx(0.3)
    assert two[1:] == (0.2, 0.4, 2, "range")
    one = mean_interval([0.4])
    assert (one.value, one.n, one.kind) == (0.4, 1, "none")
    assert math.isnan(one.low)
    assert math.isnan(one.high)


@pytest.mark.parametrize("values", [[], [0.1, math.nan, 0.2], [math.inf]])
def test_mean_interval_refuses(values: list[float]) -> None:
    with pytest.raises(InputError):
        mean_interval(values)


def test_paired_interval_takes_the_common_seeds_only() -> None:
    first, second = {0: 1.0, 1: 2.0, 2: 4.0, 9: 50.0}, {2: 1.0, 1: 1.0, 0: 0.5, 7: -50.0}
    found = paired_interval(first, second)
    oracle = stats.ttest_rel([1.0, 2.0, 4.0], [0.5, 1.0, 1.0]).confidence_interval(0.95)
    assert found.n == 3
    np.testing.assert_allclose(found[:3], [1.5, oracle.low, oracle.high])
    with pytest.raises(InputError, match="none in common"):
        paired_interval({0: 1.0}, {1: 1.0})

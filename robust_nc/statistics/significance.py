"""Tests of differences: exact McNemar over examples, paired t over seeds, Holm over all of them.

>>> f"{float(mcnemar(12, 2)):.4f}"
'0.0129'
>>> step_down([0.01, 0.04, 0.03]).round(2).tolist()
[0.03, 0.06, 0.06]
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, stdtr, stdtrit

from robust_nc.exceptions import InputError
from robust_nc.statistics.intervals import MIN_SEEDS_FOR_T, Interval, mean_interval, wilson

ALPHA = 0.05

Floats = npt.NDArray[np.float64]


class Adjusted(NamedTuple):
    """A p-value in Holm's order, and the level of the interval that agrees with it."""

    p: float
    level: float


def mcnemar(first_only: npt.ArrayLike, second_only: npt.ArrayLike) -> Floats:
    """Exact two-sided p-values of McNemar's test (Psychometrika 1947), element by element.

    Of the examples that exactly one of two models gets right, `first_only` and `second_only` (any
    shapes that broadcast, counts) are those of each; they are Binomial(1/2) if neither is better:
    p = min(1, 2 P(X <= the smaller one)). Without any such example p = 1.
    """
    first = np.asarray(first_only, dtype=np.float64)
    second = np.asarray(second_only, dtype=np.float64)
    larger, smaller = np.maximum(first, second), np.minimum(first, second)
    # P(X <= k) of n tosses of a coin is the regularised incomplete beta function I_1/2(n - k, k+1).
    tail = betainc(np.maximum(larger, 1.0), smaller + 1.0, 0.5)
    return np.asarray(np.where(larger == 0, 1.0, np.minimum(1.0, 2.0 * tail)))


def paired_t(
    totals: npt.ArrayLike, squares: npt.ArrayLike, seeds: npt.ArrayLike, *, unit: float
) -> Floats:
    """Two-sided p-values of Student's paired t test, element by element; NaN below 2 seeds.

    `totals` and `squares` are sums over `seeds` seeds of the differences and of their squares, in
    any unit. A standard deviation below `unit`, the smallest difference that one seed can show (one
    example), counts as that much: three equal differences of three examples are no certainty.
    """
    count = np.asarray(seeds, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.asarray(totals, dtype=np.float64) / count
        spread = np.asarray(squares, dtype=np.float64) - count * mean**2
        deviation = np.sqrt(np.maximum(spread, 0.0) / (count - 1))
        t = np.abs(mean) / (np.maximum(deviation, unit) / np.sqrt(count))
        p = 2.0 * stdtr(count - 1, -t)
    return np.asarray(np.where(count < 2, np.nan, p))


def seed_interval(differences: Sequence[float], *, unit: float, level: float = 0.95) -> Interval:
    """Mean of differences over seeds with the interval that says the same as `paired_t`.

    As `statistics.mean_interval`, with a standard deviation of at least `unit`.
    """
    found = mean_interval(differences, level)
    if found.n < MIN_SEEDS_FOR_T or float(np.std(differences, ddof=1)) >= unit:
        return found
    half = float(stdtrit(found.n - 1, (1 + level) / 2)) * unit / math.sqrt(found.n)
    return found._replace(low=found.value - half, high=found.value + half)


def step_down(ps: npt.ArrayLike) -> Floats:
    """Adjust p-values `(m,)` by Holm's step-down method (Scandinavian Journal of Statistics 1979).

    An adjusted p below alpha is significant; the chance of any false one among the m is at most
    alpha, however they depend on each other.
    """
    values = np.asarray(ps, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    left = len(values) - np.arange(len(values))
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, left * values[order]))
    return adjusted


def holm(ps: Sequence[float], alpha: float = ALPHA) -> list[Adjusted]:
    """Adjust p-values by Holm's method, each with the level of the interval that says the same.

    The level that belongs to the k-th smallest of m (k from 0) is 1 - alpha / (m - k) as long as
    all up to it are rejected; from the first that is not, it stays where that one stood.

    >>> [f"{p:.3f} {level:.4f}" for p, level in holm([0.001, 0.2, 0.02])]
    ['0.003 0.9833', '0.200 0.9500', '0.040 0.9750']
    """
    adjusted = step_down(ps).tolist()
    found: dict[int, Adjusted] = {}
    share, rejecting = alpha, True
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        if rejecting:
            share = alpha / (len(ps) - rank)
            rejecting = ps[index] < share
        found[index] = Adjusted(adjusted[index], 1 - share)
    return [found[index] for index in range(len(ps))]


def paired_shares(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], level: float = 0.95
) -> Interval:
    """Difference of two shares of the same examples, flags `(N,)`, with Newcombe's interval.

    Method 10 of Newcombe (Statistics in Medicine 1998): Wilson intervals of the two shares, put
    together by the correlation phi of the flags, corrected for continuity where it is positive.
    Raises `InputError` for no flags or two lengths.

    >>> found = paired_shares(np.arange(50) < 48, np.arange(50) < 36)
    >>> f"{found.value:.2f} {found.kind}"
    '0.24 newcombe'
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise InputError(
            f"flags of the same examples are needed, found shapes {first.shape}, {second.shape}"
        )
    n = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    one, other = int((first & ~second).sum()), int((~first & second).sum())
    left, right = wilson(both + one, n, level), wilson(both + other, n, level)
    scale = math.sqrt(float(both + one) * (other + neither) * float(both + other) * (one + neither))
    product = float(both * neither - one * other)
    corrected = max(product - n / 2, 0.0) if product > 0 else product
    phi = corrected / scale if scale else 0.0
    value = (one - other) / n
    low = value - _joined(left.value - left.low, right.high - right.value, phi)
    high = value + _joined(left.high - left.value, right.value - right.low, phi)
    return Interval(value, max(-1.0, low), min(1.0, high), n, "newcombe")


def _joined(left: float, right: float, phi: float) -> float:
    return math.sqrt(max(0.0, left**2 - 2 * phi * left * right + right**2))

"""Intervals: how far a number may be trusted, by examples (Wilson) or by seeds (Student t).

>>> share = wilson(80, 100)
>>> f"{share.value:.2f} [{share.low:.3f}, {share.high:.3f}] over {share.n}"
'0.80 [0.711, 0.867] over 100'
>>> mean_interval([0.50, 0.52, 0.57]).kind
't95'
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from robust_nc.exceptions import InputError

MIN_SEEDS_FOR_T = 3


class Interval(NamedTuple):
    """A value with its interval, over `n` examples (wilson) or `n` seeds (all others).

    `kind`: `wilson`; `t95` (t and the level in percent); `range` (minimum and maximum of fewer than
    3 values); `none` (one value: low and high are NaN).
    """

    value: float
    low: float
    high: float
    n: int
    kind: str


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Share of successes with its score interval (Wilson, JASA 1927), exact formula.

    With p = successes / n and z the normal quantile of (1 + level) / 2, the ends solve
    (p - q)^2 = z^2 q (1 - q) / n for q. Raises `InputError` for n = 0, or successes outside 0..n.
    """
    _check_level(level)
    if n < 1:
        raise InputError(f"a share needs at least one example, found n = {n}")
    if not 0 <= successes <= n:
        raise InputError(f"successes must be in 0..{n}, found {successes}")
    square = float(ndtri((1 + level) / 2)) ** 2
    share = successes / n
    centre = (share + square / (2 * n)) / (1 + square / n)
    spread = math.sqrt(square * share * (1 - share) / n + (square / (2 * n)) ** 2)
    half = spread / (1 + square / n)
    # At the ends one bound is exact; rounding must not move it outside [0, 1].
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(share, low, high, n, "wilson")


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean over seeds with Student's t interval (ddof 1); fewer than 3 values give their range.

    Raises `InputError` for no values, and for a value that is not finite.
    """
    _check_level(level)
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"a mean needs at least one value, found shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"a mean needs finite values, found {array.tolist()}")
    mean, n = float(array.mean()), array.size
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1, "none")
    if n < MIN_SEEDS_FOR_T:
        return Interval(mean, float(array.min()), float(array.max()), n, "range")
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(array.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, f"t{100 * level:g}")


def paired_interval(
    first: Mapping[int, float], second: Mapping[int, float], level: float = 0.95
) -> Interval:
    """Mean difference first - second over the seeds that both have, as `mean_interval`.

    Both map seed to value. Raises `InputError` where they share no seed.

    >>> paired_interval({0: 0.50, 1: 0.60, 2: 0.1}, {0: 0.40, 1: 0.45}).n
    2
    """
    common = sorted(set(first) & set(second))
    if not common:
        raise InputError(
            f"nothing to pair: seeds {sorted(first)} and {sorted(second)} have none in common"
        )
    return mean_interval([first[seed] - second[seed] for seed in common], level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"the level of an interval is between 0 and 1, found {level}")

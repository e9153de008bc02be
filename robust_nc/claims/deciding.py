"""Decide: is a mean over seeds beyond its reference by an effect that matters, or equal to it?

Every test yields one p-value, and Holm's method orders all tests of a file. The interval of a test
has the level at which that order judges it, so that decision and interval say the same.

>>> values = (0.80, 0.82, 0.81, 0.79, 0.83)
>>> (decision,) = decide([Test("above", reference=0.5, effect=0.1, values=values)])
>>> decision.verdict, f"{decision.interval.low:.3f}"
('supported', '0.790')
>>> decide([Test("equal", reference=0.8, effect=0.05, values=values)])[0].verdict
'supported'
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from scipy.special import stdtr, stdtrit

from robust_nc.statistics.intervals import MIN_SEEDS_FOR_T, Interval, mean_interval
from robust_nc.statistics.significance import Adjusted, holm

Expect = Literal["above", "below", "equal"]
Word = Literal["supported", "contradicted", "undecided"]

EQUAL_LEVEL = 0.9  # of the interval that must lie within the margin: two one-sided tests at 0.05
MOST_SEEDS = 1_000  # more than these decide nothing in practice


class Test(NamedTuple):
    """One test: values by seed, what is expected of their mean, and what bars a decision.

    "above": beyond `reference` by more than `effect`; "below": the other way; "equal": within
    `effect` of it. `bar` is the reason why it cannot be decided, whatever the values are.
    """

    expect: Expect
    reference: float
    effect: float
    values: tuple[float, ...]
    bar: str = ""


class Decision(NamedTuple):
    """A verdict with its reason, and what it rests on.

    `interval` is the one that decides, of the values themselves, at `level`. Of fewer than 3 values
    it is their range (None: there are no values), and `level`, `p` and `p_holm` are None. `p_holm`
    is None too where the interval that is not adjusted supports an equality. `enough`: with so many
    seeds of this mean and spread the interval would decide an open test; None for a decided one,
    and where more than `MOST_SEEDS` would be needed or something else bars a decision.
    """

    verdict: Word
    reason: str
    interval: Interval | None
    level: float | None
    p: float | None
    p_holm: float | None
    enough: int | None = None


def p_value(test: Test) -> float | None:
    """Return the p-value of a test, or None for fewer than 3 values.

    With t = |distance of the mean from the claimed effect| / standard error: 2 P(T > t), since the
    mean may turn out on either side of it ("supported" and "contradicted" are both looked for). It
    is below alpha exactly where the interval of level 1 - alpha does not hold the claimed effect.
    For "equal" with the mean within the margin it is the larger p of the two one-sided tests
    (Schuirmann 1987); with the mean outside, that of the margin. Without any spread it is 0 or 1.
    """
    n = len(test.values)
    if n < MIN_SEEDS_FOR_T:
        return None
    mean = math.fsum(test.values) / n
    square = math.fsum((value - mean) ** 2 for value in test.values) / (n - 1)
    error = math.sqrt(square / n)
    distance = abs(_beyond(test, mean))
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    tail = float(stdtr(n - 1, -distance / error))
    within = test.expect == "equal" and _beyond(test, mean) < 0
    return tail if within else min(1.0, 2 * tail)


def _beyond(test: Test, mean: float) -> float:
    """By how much a mean is beyond the claimed effect; of an equality, beyond its margin."""
    off = mean - test.reference
    signed = {"above": off, "below": -off, "equal": abs(off)}[test.expect]
    return signed - test.effect


def decide(tests: Sequence[Test]) -> list[Decision]:
    """Decide all tests of a family together; their number is what Holm's method adjusts for.

    A test that is barred, or has fewer than 3 values, stays in the family with p = 1: the others
    get no easier for it. "equal" is supported by its 90 % interval, which is not adjusted, and
    contradicted by the adjusted one alone.
    """
    raw = [p_value(test) for test in tests]
    counted = [1.0 if p is None or test.bar else p for test, p in zip(tests, raw, strict=True)]
    return [
        _decision(test, p, adjusted)
        for test, p, adjusted in zip(tests, raw, holm(counted), strict=True)
    ]


def combine(decisions: Sequence[Decision]) -> tuple[Word, str]:
    """Judge a claim by its variants: decided only where all of them say the same."""
    words = {decision.verdict for decision in decisions}
    if len(words) == 1:
        return decisions[0].verdict, decisions[0].reason
    return "undecided", "its variants differ"


def value_range(values: Sequence[float]) -> Interval | None:
    """Return the mean of a few values with their smallest and largest, or None without values."""
    if not values:
        return None
    return Interval(math.fsum(values) / len(values), min(values), max(values), len(values), "range")


def _decision(test: Test, p: float | None, adjusted: Adjusted) -> Decision:
    if p is None:
        reason = test.bar or f"fewer than {MIN_SEEDS_FOR_T} seeds have no interval"
        return Decision("undecided", reason, value_range(test.values), None, None, None)
    level, p_holm = adjusted.level, adjusted.p
    interval = mean_interval(test.values, level)
    word, reason = _judge(test, interval)
    if test.expect == "equal" and not test.bar and word == "undecided":
        # Only support comes from the interval that is not adjusted.
        near = mean_interval(test.values, EQUAL_LEVEL)
        if -test.effect < near.low - test.reference and near.high - test.reference < test.effect:
            word, reason = "supported", "the 90 % interval lies within the margin"
            level, interval = EQUAL_LEVEL, near
            return Decision(word, reason, interval, level, p, None)
    enough = _enough(test, level) if word == "undecided" and not test.bar else None
    return Decision(word, reason, interval, level, p, p_holm, enough)


def _enough(test: Test, level: float) -> int | None:
    """How many seeds of this mean and spread the interval would need to decide."""
    mean, n = math.fsum(test.values) / len(test.values), len(test.values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in test.values) / (n - 1))
    distance = _beyond(test, mean)
    if test.expect == "equal" and distance < 0:
        level = EQUAL_LEVEL
    seeds = range(n, MOST_SEEDS + 1)
    return next((k for k in seeds if _half(k, level) * deviation < abs(distance)), None)


def _half(seeds: int, level: float) -> float:
    """Half of the width of a Student t interval of values of standard deviation 1."""
    return float(stdtrit(seeds - 1, (1 + level) / 2)) / math.sqrt(seeds)


def _judge(test: Test, interval: Interval) -> tuple[Word, str]:
    if test.bar:
        return "undecided", test.bar
    low, high = interval.low - test.reference, interval.high - test.reference
    if test.expect == "equal":
        if low > test.effect or high < -test.effect:
            return "contradicted", "the interval lies wholly outside the margin"
        return "undecided", "the interval reaches over an end of the margin"
    if test.expect == "below":
        low, high = -high, -low
    if low > test.effect:
        return "supported", f"the interval lies wholly {test.expect} the reference by the effect"
    if high < -test.effect:
        return "contradicted", "the interval lies wholly on the other side, beyond the effect"
    if high < test.effect:
        return "contradicted", "the interval lies wholly short of the claimed effect"
    return "undecided", "the interval holds the claimed effect and less"

"""Whether two evaluations disagree, and whether one of them is weaker: an exact sign test.

Flags are rows of 0 and 1, one per example, 1 where it was found robust: a verdict is weaker on an
example that it finds robust and the other broke.

>>> count("1101", "1010")
Disagreements(weaker=2, stronger=1)
>>> round(pooled([("1111", "1100")] * 3).one_sided, 4)
0.0156
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scipy.stats import binomtest


class Disagreements(NamedTuple):
    """On how many examples the first is the weaker one, and on how many the stronger."""

    weaker: int
    stronger: int


class SignTest(NamedTuple):
    """Pooled disagreements with p-values: of "one is weaker", and of "the first is weaker"."""

    weaker: int
    stronger: int
    two_sided: float
    one_sided: float


def count(first: str, second: str) -> Disagreements:
    """Compare two rows of flags."""
    pairs = list(zip(first, second, strict=True))
    return Disagreements(pairs.count(("1", "0")), pairs.count(("0", "1")))


def pooled(pairs: Iterable[tuple[str, str]]) -> SignTest:
    """Test the disagreements of pairs of verdicts, pooled; without any, p is 1."""
    counts = [count(first, second) for first, second in pairs]
    weaker, stronger = sum(c.weaker for c in counts), sum(c.stronger for c in counts)
    total = weaker + stronger
    if not total:
        return SignTest(0, 0, 1.0, 1.0)
    two_sided = float(binomtest(weaker, total).pvalue)
    return SignTest(
        weaker, stronger, two_sided, float(binomtest(weaker, total, alternative="greater").pvalue)
    )


def between(rows: Sequence[str]) -> list[int]:
    """Disagreements of each pair of verdicts of one contestant, in both directions together."""
    return [sum(count(first, second)) for first, second in itertools.combinations(rows, 2)]


def share(row: str) -> float:
    """Share of robust examples."""
    return row.count("1") / len(row)

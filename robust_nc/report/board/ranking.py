"""Tiers of one table: a tier is what the best of it does not beat significantly.

A row holds the flags of its models on the examples that all rows share. Two rows with at least 3
seeds in common are compared by the paired t test over these. Any other two are compared on the
examples: by the exact McNemar test, and where a row has several models, one row beats another only
if each of its models beats each of the other's, so the largest p of all these pairs counts (an
intersection-union test: valid without any assumption on seeds, and conservative).

The best row is compared with all below it, adjusted by Holm's method, and from the first that it
beats on, the next tier begins, whose best is compared with what is left. Which row is the best was
seen on the same examples: so p also counts against all k (k - 1) / 2 pairs of the k rows that were
left, any of which could have been the best and a worse one (ADR 10).

>>> good, bad = np.arange(1000) < 600, np.arange(1000) < 500
>>> rows = [{0: bad}, {0: good}, {0: np.roll(bad, 90)}]
>>> tiers(rows, clean=rows).tolist()
[2.0, 1.0, 2.0]
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from robust_nc.statistics.intervals import MIN_SEEDS_FOR_T
from robust_nc.statistics.significance import ALPHA, Floats, mcnemar, paired_t, step_down

# Fewer examples than that separate nothing that is worth a rank.
MIN_EXAMPLES = 1000
# Models that agree on so many of the clean and of the attacked examples are one, nudged.
_SAME_CLEAN, _SAME_ROBUST = 0.999, 0.99

Row = Mapping[int | str, npt.NDArray[np.bool_]]


class Comparison(NamedTuple):
    """One row against R others: `p` (R,), not adjusted, and `side` (R,): 1 where it is above.

    `side` is -1 where it is below, 0 where neither is; there p is 1.
    """

    p: Floats
    side: Floats


def tiers(rows: Sequence[Row], *, clean: Sequence[Row], alpha: float = ALPHA) -> Floats:
    """Return the tier of each row `(R,)`, from 1 on; no row stands above one of a higher share.

    `rows` and `clean` map seeds to flags `(N,)`, in the order of the same N examples. A near-copy
    of a row above it (`_copies`) takes part in no comparison, and stands in its tier.
    """
    share = np.array([np.mean([flags.mean() for flags in row.values()]) for row in rows])
    order = np.argsort(-share, kind="stable").tolist()
    original = _copies([rows[i] for i in order], [clean[i] for i in order])
    left = [place for place, first in enumerate(original) if place == first]
    found, tier = np.zeros(len(rows)), 0
    while left:
        tier += 1
        best, *rest = left
        seen = compare_with(rows[order[best]], [rows[order[place]] for place in rest])
        beaten = (step_down(seen.p) * len(left) / 2 < alpha) & (seen.side > 0)
        first = int(beaten.argmax()) if beaten.any() else len(rest)
        found[[best, *rest[:first]]] = tier
        left = rest[first:]
    ordered = found[original]
    found[order] = ordered
    return found


def compare_with(first: Row, others: Sequence[Row]) -> Comparison:
    """Compare a row with each of R others, each in the way that they allow (see the module)."""
    found = _over_examples(first, others)
    for place, other in enumerate(others):
        common = sorted(first.keys() & other.keys(), key=str)
        if len(common) >= MIN_SEEDS_FOR_T:
            # Counts are whole numbers, so that these sums are exact.
            lost = np.array([int(first[seed].sum()) - int(other[seed].sum()) for seed in common])
            p = paired_t(lost.sum(), (lost**2).sum(), len(common), unit=1.0)
            found.p[place] = 1.0 if lost.sum() == 0 else p
            found.side[place] = np.sign(lost.sum())
    return found


def _over_examples(first: Row, others: Sequence[Row]) -> Comparison:
    """Exact McNemar, the largest p over all pairs of models; p = 1 where these disagree."""
    if not others:
        return Comparison(np.ones(0), np.zeros(0))
    here, there = _stacked([first]), _stacked(others)
    both = (here @ there.T).astype(np.float64)
    only = (here.sum(1, dtype=np.float64)[:, None] - both, there.sum(1, dtype=np.float64) - both)
    p, side = mcnemar(*only).max(axis=0), np.sign(only[0] - only[1])
    starts = _starts(others)
    above = np.minimum.reduceat(side.min(axis=0), starts)
    below = np.maximum.reduceat(side.max(axis=0), starts)
    agree = (above == below) & (above != 0)
    return Comparison(
        np.where(agree, np.maximum.reduceat(p, starts), 1.0), np.where(agree, above, 0.0)
    )


def _copies(rows: Sequence[Row], clean: Sequence[Row]) -> list[int]:
    """Return for each row the first of which it is a near-copy, or its own place.

    Each of its models agrees with one of the other's on 99.9 % of the clean flags and 99 % of the
    attacked ones: far more than two trainings ever do.
    """
    near = _agreement(rows) >= _SAME_ROBUST
    near &= _agreement(clean) >= _SAME_CLEAN
    starts = _starts(rows)
    by_row = np.logical_and.reduceat(np.logical_or.reduceat(near, starts, axis=1), starts, axis=0)
    found: list[int] = []
    for place, copies in enumerate(by_row):
        first = next((i for i in range(place) if copies[i] and found[i] == i), place)
        found.append(first)
    return found


def _agreement(rows: Sequence[Row]) -> Floats:
    """Share of examples on which every two of all models agree, `(M, M)`."""
    signs = 2 * _stacked(rows) - 1
    return np.asarray((1 + (signs @ signs.T).astype(np.float64) / signs.shape[1]) / 2)


def _stacked(rows: Sequence[Row]) -> npt.NDArray[np.floating]:
    """Stack the flags of all models of all rows, `(M, N)`; sums of ones are exact in either."""
    flags = np.stack([flags for row in rows for flags in row.values()])
    return flags.astype(np.float32 if flags.shape[1] < 2**24 else np.float64)


def _starts(rows: Sequence[Row]) -> npt.NDArray[np.int64]:
    """Place of the first model of each row among all."""
    return np.cumsum([0, *(len(row) for row in rows[:-1])])

"""Ranks of one table: how many of its rows are significantly better than this one.

A row holds the flags of its models (one per seed) on the examples that all rows share. Rows with at
least 3 seeds in common are compared by the paired t test over these. Any other two are compared on
the examples: by the exact McNemar test, and where a row has several models, one row beats another
only if each of its models beats each of the other's, so the largest p of all these pairs counts (an
intersection-union test: valid without any assumption on seeds, and conservative). All pairs of the
table are adjusted together by Holm's method.

>>> good, bad = np.arange(1000) < 600, np.arange(1000) < 500
>>> ranks([{0: bad}, {0: good}, {0: bad.copy()}]).tolist()
[2.0, 1.0, 2.0]
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from robust_nc.statistics.intervals import MIN_SEEDS_FOR_T
from robust_nc.statistics.significance import ALPHA, Floats, mcnemar, paired_t, step_down

# Fewer examples than that separate nothing that is worth a rank.
MIN_EXAMPLES = 1000

_Row = Mapping[int, npt.NDArray[np.bool_]]

_BLOCK = 2**22


class Comparison(NamedTuple):
    """All pairs of R rows: `p` (R, R), not adjusted, and `side` (R, R): 1 where i is above j.

    `side` is -1 where it is below, 0 where neither is; there p is 1.
    """

    p: Floats
    side: Floats


def ranks(rows: Sequence[_Row], alpha: float = ALPHA) -> Floats:
    """Return the rank of each row `(R,)`: 1 + the number of rows that beat it.

    `rows` map seeds to flags `(N,)`, in the order of the same N examples.
    """
    return np.asarray(1.0 + beats(rows, alpha).sum(axis=0), dtype=np.float64)


def beats(rows: Sequence[_Row], alpha: float = ALPHA) -> npt.NDArray[np.bool_]:
    """Whether row i beats row j, `(R, R)`: it is above, with an adjusted p below alpha."""
    found = compare_all(rows)
    upper = np.triu_indices(len(rows), 1)
    significant = np.zeros(found.p.shape, dtype=bool)
    significant[upper] = step_down(found.p[upper]) < alpha
    return np.asarray((significant | significant.T) & (found.side > 0))


def compare_all(rows: Sequence[_Row], *, block: int = _BLOCK) -> Comparison:
    """Compare every two rows, each in the way that they allow (see the module).

    `block` is how many comparisons of models are held at a time.
    """
    counts, seen = _counts(rows)
    common = seen @ seen.T
    over_seeds = common >= MIN_SEEDS_FOR_T
    found = _over_seeds(counts, seen, common)
    if over_seeds.all():
        return found
    other = _over_examples(rows, ~over_seeds, block)
    p = np.where(over_seeds, found.p, other.p)
    return Comparison(p, np.where(over_seeds, found.side, other.side))


def _counts(rows: Sequence[_Row]) -> tuple[Floats, Floats]:
    """Robust examples per row and seed `(R, S)`, 0 where a row lacks the seed, and who has it."""
    place = {seed: i for i, seed in enumerate(sorted({seed for row in rows for seed in row}))}
    counts = np.zeros((len(rows), len(place)))
    seen = np.zeros_like(counts)
    for i, row in enumerate(rows):
        for seed, flags in row.items():
            counts[i, place[seed]], seen[i, place[seed]] = flags.sum(), 1.0
    return counts, seen


def _over_seeds(counts: Floats, seen: Floats, common: Floats) -> Comparison:
    """Paired t over common seeds. Counts are whole numbers, so that these sums are exact."""
    totals = counts @ seen.T - seen @ counts.T
    squares = counts**2 @ seen.T + seen @ (counts**2).T - 2 * (counts @ counts.T)
    p = paired_t(totals, squares, common, unit=1.0)
    return Comparison(np.where(totals == 0, 1.0, p), np.sign(totals))


def _over_examples(rows: Sequence[_Row], wanted: npt.NDArray[np.bool_], block: int) -> Comparison:
    """Exact McNemar, the largest p over all pairs of models; p = 1 where these disagree."""
    models = np.stack([flags for row in rows for flags in row.values()])
    # Sums of up to 2^24 ones are exact in float32.
    flags: npt.NDArray[Any] = models.astype(np.float32 if models.shape[1] < 2**24 else np.float64)
    sizes = models.sum(axis=1).astype(np.float64)
    ends = np.cumsum([len(row) for row in rows])
    starts = ends - [len(row) for row in rows]
    found = Comparison(np.ones(wanted.shape), np.zeros(wanted.shape))
    first = 0
    while first < len(rows):
        room = starts[first] + max(1, block // len(models))
        last = max(first + 1, int(np.searchsorted(ends, room, side="right")))
        if wanted[first:last, first:].any():
            here, there = slice(starts[first], ends[last - 1]), slice(starts[first], None)
            both = (flags[here] @ flags[there].T).astype(np.float64)
            only = (sizes[here, None] - both, sizes[None, there] - both)
            places = (starts[first:last] - starts[first], starts[first:] - starts[first])
            p, side = _joined(mcnemar(*only), np.sign(only[0] - only[1]), places)
            found.p[first:last, first:], found.p[first:, first:last] = p, p.T
            found.side[first:last, first:], found.side[first:, first:last] = side, -side.T
        first = last
    return found


def _joined(
    p: Floats, side: Floats, places: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
) -> Comparison:
    """From pairs of models to pairs of rows, which begin at `places` on either axis."""

    def over(values: Floats, largest: bool) -> Floats:
        reduce = np.maximum.reduceat if largest else np.minimum.reduceat
        return np.asarray(reduce(reduce(values, places[0], axis=0), places[1], axis=1))

    above, below = over(side, True), over(side, False)
    agree = (above == below) & (above != 0)
    return Comparison(np.where(agree, over(p, True), 1.0), np.where(agree, above, 0.0))

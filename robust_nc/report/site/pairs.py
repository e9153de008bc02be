"""What the page needs to compare two rows of a table: their paired p, and who is right on what.

>>> frame = pd.DataFrame({"key": ["a", "b"], **dict.fromkeys(BOARD, 0)})
>>> flags = {"a": {0: np.array([True] * 8)}, "b": {0: np.array([True] * 2 + [False] * 6)}}
>>> with_pairs(frame, flags)[["p", "flags"]].to_dict("list")
{'p': ['', '0.031'], 'flags': ['ff', 'c0']}
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from robust_nc.report.board.ranking import Row, compare_with
from robust_nc.report.board.table import BOARD

_MOST = 40  # rows of a table
_MOST_FLAGS = 10_000  # examples


def with_pairs(frame: pd.DataFrame, flags: Mapping[str, Row]) -> pd.DataFrame:
    """Add to a leaderboard, for the first rows of each table, what a comparison needs, as text.

    `p` are the p-values (of one comparison alone) against each row above it, `flags` the
    examples that a single model withstands, 4 a hexadecimal digit. `flags` maps the `key` of each
    row to its models' flags `(N,)`.
    """
    frame = frame.assign(p="", flags="")
    for _, table in frame.groupby(list(BOARD), sort=False):
        first = table.index[:_MOST]
        rows = [flags[key] for key in frame.loc[first, "key"]]
        p = [compare_with(row, rows[:place]).p if place else () for place, row in enumerate(rows)]
        frame.loc[first, "p"] = [" ".join(f"{one:.2g}" for one in each) for each in p]
        frame.loc[first, "flags"] = [_hexadecimal(row) for row in rows]
    return frame


def _hexadecimal(row: Row) -> str:
    models = list(row.values())
    if len(models) > 1 or len(models[0]) > _MOST_FLAGS:
        return ""
    return np.packbits(models[0]).tobytes().hex()

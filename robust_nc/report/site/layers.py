"""The tables of one model's page: its measures per layer, and where its examples leap to.

>>> shade(0.0), shade(0.34), shade(1.0)
(0, 3, 9)
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from robust_nc.exceptions import InputError
from robust_nc.report.board.formats import count
from robust_nc.report.figures.drawing import Wanted, deepest, select, taps_in_order
from robust_nc.report.site.columns import Cell, Kind, shown
from robust_nc.report.site.text import cut

_MOST_LAYERS = 200
MOST_CLASSES = 20  # a larger matrix is a figure only
_CLEAN, _ATTACKED = ("clean",), ("attacked",)

_LAYERS: tuple[tuple[str, Wanted, Kind], ...] = (
    ("NC1 clean", Wanted("nc1", _CLEAN, "true", "train"), "short"),
    ("NC1 attacked", Wanted("nc1", _ATTACKED, "true", "train"), "short"),
    ("its null", Wanted("nc1_leap_null", _ATTACKED, None, "train"), "short"),
    ("NC1 landed", Wanted("nc1", _ATTACKED, "landed", "train"), "short"),
    ("its null", Wanted("nc1_landed_null", _ATTACKED, None, "train"), "short"),
    ("NC2 angle clean", Wanted("nc2_angle", _CLEAN, "true", "train"), "short"),
    ("leap %", Wanted("leap_rate", _ATTACKED, None, "train"), "percent"),
    ("leap % noise", Wanted("leap_rate", ("gaussian",), None, "train"), "percent"),
    ("landed %", Wanted("landed", _ATTACKED, None, "train"), "percent"),
    ("landing fraction", Wanted("landing_fraction", _ATTACKED, None, "train"), "short"),
)


class Layers(NamedTuple):
    """Measures per layer: headers of the numbers, and (layer, numbers) from input to output."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


class Leaps(NamedTuple):
    """The leap matrix: classes, and per clean class its row as (share of the row, shade 0..9)."""

    caption: str
    classes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]


def layers(rows: pd.DataFrame, seeds: int) -> Layers:
    """Tabulate the headline measures per layer, means over seeds; no rows where none were made."""
    columns: list[dict[str, float]] = []
    places: list[pd.DataFrame] = []
    for _, wanted, _ in _LAYERS:
        try:
            found = select(rows, wanted)
        except InputError:
            columns.append({})
            continue
        places.append(found)
        means = found.groupby("tap")["value"].mean()
        columns.append({str(tap): float(value) for tap, value in means.items()})
    taps = taps_in_order(pd.concat(places)) if places else []
    told = f"; the first {_MOST_LAYERS} of {len(taps)}" if len(taps) > _MOST_LAYERS else ""
    return Layers(
        caption=f"Last weights, training images, mean of {count(seeds, seeds, 'seed')}; "
        f"layers from input to output{told}",
        headers=tuple(header for header, _, _ in _LAYERS),
        rows=tuple((cut(tap), _numbers(tap, columns)) for tap in taps[:_MOST_LAYERS]),
    )


def leaps(rows: pd.DataFrame) -> Leaps | None:
    """Tabulate the leap matrix of the deepest layer, all seeds together; None where there is none.

    None as well for more than `MOST_CLASSES` classes.
    """
    try:
        found = deepest(select(rows, Wanted("leap_matrix", _ATTACKED, None, "train")))
    except InputError:
        return None
    matrix = found.pivot_table(index="i", columns="j", values="value", aggfunc="sum", fill_value=0)
    if max(matrix.shape) > MOST_CLASSES:
        return None
    shares = matrix.div(matrix.sum(axis=1).where(lambda total: total > 0), axis=0).fillna(0.0)
    return Leaps(
        caption=f"Layer {cut(str(found['tap'].iloc[0]))}: % of the examples next to a clean class "
        "mean (row) that are next to another (column) once attacked",
        classes=tuple(map(str, shares.columns)),
        rows=tuple(
            (str(name), tuple((f"{100 * share:.0f}", shade(share)) for share in row))
            for name, row in zip(shares.index, shares.to_numpy().tolist(), strict=True)
        ),
    )


def shade(share: float) -> int:
    """Return the shade of a share, 0 (none) to 9 (all)."""
    return min(9, max(0, int(10 * share)))


def _numbers(tap: str, columns: Sequence[dict[str, float]]) -> tuple[Cell, ...]:
    return tuple(
        shown(column.get(tap, math.nan), kind)
        for column, (_, _, kind) in zip(columns, _LAYERS, strict=True)
    )

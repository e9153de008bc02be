"""The columns of the page's tables: what they are called, how they are written and sorted.

>>> shown(0.625, "percent")
Cell(text='62.5', value='0.625')
>>> shown(float("nan"), "short")
Cell(text='-', value='')
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from robust_nc.report.board.formats import MISSING, NULLS, percent, points, short
from robust_nc.report.site.text import SHORT, cut

Kind = Literal["count", "interval", "percent", "points", "short", "name"]


class Column(NamedTuple):
    """One column: its key in the leaderboard, header, how it is written, what it means.

    `extra` columns show once a reader asks for them; `first` is the order of the first click.
    """

    key: str
    header: str
    kind: Kind
    meaning: str
    extra: bool = False
    first: Literal["ascending", "descending"] = "descending"

    @property
    def number(self) -> bool:
        """Whether the column holds numbers."""
        return self.kind != "name"


class Cell(NamedTuple):
    """What is shown, and the number to sort by where the text does not say it."""

    text: str
    value: str = ""


_UP: Literal["ascending"] = "ascending"
COLUMNS = (
    Column(
        "rank",
        "rank",
        "count",
        "1 + the number of rows of the table that beat this one significantly; ties share a rank",
        first=_UP,
    ),
    Column("model", "model", "name", "name of the model; leads to its page", first=_UP),
    Column("head", "head", "name", "last linear map, and how it is fixed or learned", first=_UP),
    Column("objective", "objective", "name", "how the model was trained", first=_UP),
    Column("clean", "clean %", "interval", "accuracy on the images as they are"),
    Column(
        "robust", "robust %", "interval", "share of examples that no attack of the protocol broke"
    ),
    Column(
        "gap",
        "gap",
        "points",
        "points by which accuracy under a weaker protocol, judged beside, is above robust",
    ),
    Column(
        "leap_rate",
        "leap %",
        "percent",
        "share of examples whose nearest class mean differs once attacked",
    ),
    Column(
        "nc1_clean",
        "NC1 clean",
        "short",
        "spread within classes over spread between them; 0 is full collapse",
        first=_UP,
    ),
    Column(
        "nc1_attacked", "NC1 attacked", "short", "the same of attacked examples, by true label"
    ),
    Column("nc1_leap_null", "its null", "short", NULLS.split("; ")[0]),
    Column(
        "collapse_radius",
        "collapse radius",
        "short",
        "smallest eps at which one example in ten leaps; - where none was reached",
    ),
    Column(
        "leap_layer",
        "leap layer",
        "short",
        "depth of the layer where most leaps begin; 0 is the first layer measured",
    ),
    Column("seeds", "seeds", "count", "trained models that the row is a mean of"),
    Column(
        "passes_per_example",
        "passes",
        "count",
        "forward and backward passes of the protocol, per example",
    ),
    Column("protocol", "protocol", "name", "the attacks whose worst case is robust", first=_UP),
    Column("badge", "evidence", "name", "what was checked again, by whom does not matter"),
    Column(
        "challenged",
        "challenged",
        "count",
        "examples that were claimed robust, and that someone broke; robust counts them as broken",
        extra=True,
    ),
    Column(
        "landed",
        "landed %",
        "percent",
        "share of leaped examples as close to the new class mean as that class itself is",
        extra=True,
    ),
    Column(
        "nc1_landed",
        "NC1 landed",
        "short",
        "NC1 of attacked examples, grouped by their nearest class mean",
        extra=True,
    ),
    Column("nc1_landed_null", "null of landed", "short", NULLS.split("; ")[1], extra=True),
    Column(
        "nc2_angle_clean",
        "NC2 angle",
        "short",
        "mean deviation of the cosines between class means from those of the simplex",
        extra=True,
        first=_UP,
    ),
    Column(
        "robust_last",
        "robust %, last",
        "percent",
        "of the last weights; the difference to robust is robust over-fitting",
        extra=True,
    ),
    Column("backbone", "backbone", "name", "the network below the head", extra=True, first=_UP),
    Column("parameters", "parameters", "count", "numbers that training could set", extra=True),
    Column("suite", "suite", "name", "the grid of experiments it is from", extra=True, first=_UP),
    Column("warnings", "warnings", "name", "doubts about the verdict, explained on the page of the "
           "model", extra=True, first=_UP),
)  # fmt: skip


def cell(row: Mapping[Any, Any], column: Column) -> Cell:
    """Write one value of a row of the leaderboard."""
    value = row.get(column.key)
    if column.kind == "name":
        return Cell(cut(str(value or ""), SHORT) or MISSING)
    number = math.nan if value is None else float(value)
    if column.kind == "interval":
        ends = (float(row[f"{column.key}_low"]), float(row[f"{column.key}_high"]))
        return Cell(percent(number, *ends), _plain(number))
    return shown(number, column.kind)


def shown(value: float, kind: Kind) -> Cell:
    """Write one number; the value to sort by is left out where the text is that number."""
    if not math.isfinite(value):
        return Cell(MISSING)
    if kind == "count":
        text = f"{value:,.0f}"
    else:
        text = {"percent": percent, "points": points}.get(kind, short)(value)
    exact = _plain(value)
    return Cell(text, "" if exact == text else exact)


def _plain(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""

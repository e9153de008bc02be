"""Rows that others published, in tables of their own: nothing of them was checked here.

>>> import pandas as pd
>>> rows = [{"dataset": "cifar10", "ball": "Linf 8/255", "model": "a", "clean": 0.9, "robust": 0.5}]
>>> [(table.title, len(table.rows)) for table in published_boards(pd.DataFrame(rows))]
[('cifar10, Linf 8/255', 1)]
"""

import math
from typing import Any

import pandas as pd

from robust_nc.exceptions import InputError
from robust_nc.report.site_board import UNVERIFIED, Board, Row
from robust_nc.report.site_columns import Cell, Column, shown
from robust_nc.report.site_text import LONG, SHORT, cut, https_link

NEEDED = ("dataset", "ball", "model", "clean", "robust")
CAPTION = "unverified, as published by RobustBench, 2025-03-31; their figures, nothing checked here"
_LONG = ("authors", "notes")
_COLUMNS = (
    Column("model", "model", "name", "name of the entry", first="ascending"),
    Column("clean", "clean %", "percent", "as published"),
    Column("robust", "robust %", "percent", "as published, under AutoAttack or what was stronger"),
    Column("architecture", "architecture", "name", "as published", first="ascending"),
    Column("extra_data", "extra data", "name", "as published", first="ascending"),
    Column("authors", "authors", "name", "as published", first="ascending"),
    Column("venue", "venue", "name", "as published", first="ascending"),
    Column("badge", "evidence", "name", "nothing was checked here", first="ascending"),
    Column("notes", "notes", "name", "as published", first="ascending"),
)


def published_boards(frame: pd.DataFrame) -> list[Board]:
    """Return one table per data set and ball, best robust accuracy first.

    Columns `NEEDED`, accuracies as shares in [0, 1] (NaN: not told); optional: architecture,
    authors, venue, link, notes (text), extra_data (bool). Raises `InputError` for others.
    """
    missing = [name for name in NEEDED if name not in frame]
    if missing:
        raise InputError(f"published rows lack the columns {', '.join(missing)}")
    ordered = frame.sort_values(["dataset", "ball", "robust"], ascending=[True, True, False])
    found = []
    for (dataset, ball), part in ordered.groupby(["dataset", "ball"], sort=False):
        dataset, ball = cut(str(dataset)), cut(str(ball)) or "no ball"
        rows = tuple(_row(row) for row in part.to_dict("records"))
        found.append(Board(f"{dataset}, {ball}", CAPTION, dataset, ball, _COLUMNS, rows))
    return found


def _row(row: dict[Any, Any]) -> Row:
    name = cut(_text(row.get("model")))
    cells = tuple(_cell(row, column) for column in _COLUMNS)
    return Row("", https_link(_text(row.get("link"))), name, cells)


def _cell(row: dict[Any, Any], column: Column) -> Cell:
    if column.key == "badge":
        return Cell(UNVERIFIED)
    value = row.get(column.key)
    if column.number:
        return shown(float(value) if isinstance(value, int | float) else math.nan, column.kind)
    return Cell(cut(_text(value), LONG if column.key in _LONG else SHORT) or "-")


def _text(value: object) -> str:
    """Write a value of a frame, nothing where it is missing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else ""

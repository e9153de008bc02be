"""The boards of the page: rows that may be compared in one table, and what its caption must say.

>>> reasons(["", "fewer than 1,000 examples"])
'not ranked (-): fewer than 1,000 examples'
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from robust_nc.exceptions import InputError
from robust_nc.io.files import digest
from robust_nc.io.text import safe_link
from robust_nc.report.board.formats import GAP, count, display_names, has_gap, interval_note
from robust_nc.report.board.gather import Identity
from robust_nc.report.board.table import BOARD
from robust_nc.report.site.columns import COLUMNS, Cell, Column, cell, shown
from robust_nc.report.site.text import LONG, SHORT, cut, file_stem

_MOST_CHOICES = 200
FILTERS = ("dataset", "ball", "protocol", "head", "objective", "badge")
UNVERIFIED = "unverified"


class Row(NamedTuple):
    """One row: the key that an address names it by, its page, its name, and its cells."""

    key: str
    page: str
    name: str
    cells: tuple[Cell, ...]


class Board(NamedTuple):
    """One table: rows that may be compared."""

    title: str
    caption: str
    dataset: str
    ball: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


class Choice(NamedTuple):
    """One filter: the key of a column or a fact of the table, its label and its values."""

    key: str
    label: str
    values: tuple[str, ...]


def row_key(row: Any) -> str:
    """Name what a row is about: a digest of all that identifies it."""
    # An eps that is missing is NaN, which equals nothing; its ball says as much.
    return digest({name: str(row[name]) for name in Identity._fields if name != "eps"})


def boards(frame: pd.DataFrame) -> list[Board]:
    """Cut a leaderboard into its tables, in its order."""
    named = frame.assign(shown=display_names(frame))
    columns = tuple(one for one in COLUMNS if one.key != "gap" or has_gap(frame))
    return [_board(part, columns) for _, part in named.groupby(list(BOARD), sort=False)]


def choices(made: Sequence[Board], unverified: Sequence[Board]) -> list[Choice]:
    """Values that each filter offers."""
    found: dict[str, set[str]] = {key: set() for key in FILTERS}
    for board in (*made, *unverified):
        found["dataset"].add(board.dataset)
        found["ball"].add(board.ball)
        for index, column in enumerate(board.columns):
            if column.key in found:
                found[column.key] |= {row.cells[index].text for row in board.rows}
    labels = {"dataset": "data set", "badge": "evidence"}
    return [
        Choice(key, labels.get(key, key), tuple(sorted(values)[:_MOST_CHOICES]))
        for key, values in found.items()
    ]


def reasons(unranked: Iterable[str]) -> str:
    """Say why rows have no rank, from the reason of each row ("" where it has one)."""
    found = sorted(set(unranked) - {""})
    return f"not ranked (-): {'; '.join(found)}" if found else ""


def _board(part: pd.DataFrame, columns: tuple[Column, ...]) -> Board:
    rows = part.to_dict("records")
    first = rows[0]
    dataset, ball = cut(str(first["dataset"])), cut(str(first["ball"])) or "no ball"
    examples = count(int(part["examples"].min()), int(part["examples"].max()), "example")
    return Board(
        title=f"{dataset}, {ball}, protocol {cut(str(first['protocol']))}, {examples}",
        caption=_caption(part),
        dataset=dataset,
        ball=ball,
        columns=columns,
        rows=tuple(_row(row, columns) for row in rows),
    )


def _row(row: dict[Any, Any], columns: tuple[Column, ...]) -> Row:
    key, name = row_key(row), cut(str(row["shown"]), SHORT)
    cells = tuple(Cell(name) if column.key == "model" else cell(row, column) for column in columns)
    return Row(key[:8], f"model/{file_stem(str(row['model']), key)}.html", name, cells)


def _caption(part: pd.DataFrame) -> str:
    seeds = count(int(part["seeds"].min()), int(part["seeds"].max()), "seed")
    notes = [
        seeds,
        reasons(part["unranked"]),
        interval_note(set(part["interval"])),
        _gap_note(part),
    ]
    return "; ".join(note for note in notes if note)


def _gap_note(part: pd.DataFrame) -> str:
    if not has_gap(part):
        return ""
    weaker = sorted(set(part["beside"]) - {""})
    verb = "flatters" if len(weaker) == 1 else "flatter"
    return f"{GAP}: by how much {cut(', '.join(weaker))} {verb}"


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
        rows = tuple(_published_row(row) for row in part.to_dict("records"))
        found.append(Board(f"{dataset}, {ball}", CAPTION, dataset, ball, _COLUMNS, rows))
    return found


def _published_row(row: dict[Any, Any]) -> Row:
    name = cut(_text(row.get("model")))
    cells = tuple(_cell(row, column) for column in _COLUMNS)
    return Row("", safe_link(_text(row.get("link"))), name, cells)


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

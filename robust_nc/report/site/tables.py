"""The tables of the first page: columns, rows that may be compared, and what a caption must say.

`columns.csv` has one row a column of a table.

>>> column = Column("robust", "robust %", "percent", "")
>>> cell({"robust": 0.625}, column), cell({"robust": None}, column)
(('62.5', '0.625'), ('-', ''))
"""

import csv
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from importlib import resources
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pandas as pd

from robust_nc.exceptions import InputError
from robust_nc.io.files import digest
from robust_nc.io.text import safe_link
from robust_nc.report.board.formats import (
    GAP,
    RANKS,
    count_text,
    display_names,
    has_gap,
    interval_note,
    leader,
    percent,
    place_text,
    points,
    short,
    standing_notes,
)
from robust_nc.report.board.gather import Identity
from robust_nc.report.board.render import MISSING
from robust_nc.report.board.table import BOARD

SHORT, LONG = 80, 2000  # characters that are shown in a cell, and of a text
Kind = Literal["count", "interval", "percent", "points", "short", "layer", "place", "name"]
_MOST_CHOICES = 200
_BEHIND = 1e6  # what has a place by value alone is sorted behind what has a rank
_FILTERS = {
    "dataset": "data set",
    "ball": "ball",
    "protocol": "protocol",
    "head": "head",
    "objective": "objective",
    "state": "state",
}


class Column(NamedTuple):
    """One column: its key in the leaderboard, header, how it is written, what it means.

    `extra` columns show once a reader asks for them. The first click sorts names up and numbers
    down, unless `up` says otherwise. Of names the first `most` characters show.
    """

    key: str
    header: str
    kind: Kind
    meaning: str
    extra: bool = False
    up: bool | None = None
    most: int = SHORT

    @property
    def number(self) -> bool:
        """Whether the column holds numbers."""
        return self.kind != "name"

    @property
    def first(self) -> str:
        """The order of the first click."""
        up = not self.number if self.up is None else self.up
        return "ascending" if up else "descending"


def _read_columns(table: str) -> tuple[Column, ...]:
    text = resources.files("robust_nc.report.site").joinpath("columns.csv").read_text("utf-8")
    ups = {"ascending": True, "descending": False, "": None}
    return tuple(
        Column(
            key=row["key"],
            header=row["header"],
            kind=cast(Kind, row["kind"]),
            meaning=row["meaning"],
            extra=row["shown"] == "more",
            up=ups[row["first click"]],
            most=int(row["most"] or SHORT),
        )
        for row in csv.DictReader(text.splitlines())
        if row["table"] == table
    )


COLUMNS = _read_columns("board")
NEEDED = ("dataset", "ball", "model", "clean", "robust")
PUBLISHED = (
    "unverified, as published by RobustBench, 2025-03-31; their figures, nothing checked here"
)
_PUBLISHED_COLUMNS = _read_columns("published")


class Board(NamedTuple):
    """One table: rows of a frame that may be compared, with their `key` and the `page` of each."""

    title: str
    caption: str
    dataset: str
    ball: str
    leader: str
    columns: tuple[Column, ...]
    rows: list[dict[Hashable, Any]]


def cell(row: Mapping[Any, Any], column: Column) -> tuple[str, str]:
    """Return what is shown of a row, and the number to sort by where the text does not say it."""
    value = row.get(column.key)
    if column.kind == "name":
        known = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        return cut(known if isinstance(known, str) else "", column.most) or MISSING, ""
    if column.kind == "place":
        place = row["rank"] if math.isfinite(row["rank"]) else _BEHIND + row["order"]
        return place_text(row), f"{place:g}" if math.isfinite(place) else ""
    number = float(value) if isinstance(value, int | float) else math.nan
    exact = f"{number:.6g}" if math.isfinite(number) else ""
    if column.kind == "interval":
        low, high = float(row[f"{column.key}_low"]), float(row[f"{column.key}_high"])
        return percent(number, low, high), exact
    if column.kind == "layer" and (layer := row.get(f"{column.key}_name")):
        return cut(str(layer)), exact
    text = number_text(number, column.kind)
    return text, "" if exact == text else exact


def number_text(value: float, kind: Kind) -> str:
    """Write one number.

    >>> number_text(1234.0, "count"), number_text(float("nan"), "short")
    ('1,234', '-')
    """
    if kind == "count":
        return f"{value:,.0f}" if math.isfinite(value) else MISSING
    return {"percent": percent, "points": points}.get(kind, short)(value)


def with_pages(frame: pd.DataFrame) -> pd.DataFrame:
    """Add to a leaderboard the key of each row, its page, and the name that it shows by."""
    keys = [row_key(row) for row in frame.to_dict("records")]
    stems = [file_stem(str(model), key) for model, key in zip(frame["model"], keys, strict=True)]
    return frame.assign(
        key=keys, page=[f"model/{stem}.html" for stem in stems], model=display_names(frame)
    )


def ranked_first(frame: pd.DataFrame) -> pd.DataFrame:
    """Put the tables with most ranked rows first, then those of most examples and rows."""
    tables = frame.groupby(list(BOARD), sort=False)["rank"]
    keys = (tables.transform("size"), frame["examples"], tables.transform("count"))
    order = np.lexsort([np.arange(len(frame)), *(-key.to_numpy() for key in keys)])
    return frame.iloc[order].reset_index(drop=True)


def row_key(row: Mapping[Any, Any]) -> str:
    """Name what a row is about: a digest of all that identifies it."""
    # An eps that is missing is NaN, which equals nothing; its ball says as much.
    return digest({name: str(row[name]) for name in Identity._fields if name != "eps"})


def boards(frame: pd.DataFrame) -> list[Board]:
    """Cut a leaderboard with its pages (`with_pages`) into its tables, in its order."""
    columns = tuple(one for one in COLUMNS if one.key != "gap" or has_gap(frame))
    found = []
    for _, part in frame.groupby(list(BOARD), sort=False):
        first = part.iloc[0]
        examples = count_text(int(part["examples"].min()), int(part["examples"].max()), "example")
        about = f"protocol {cut(str(first['protocol']))}, {examples}"
        found.append(_board(part, columns, about, _caption(part)))
    return found


def published_boards(frame: pd.DataFrame) -> list[Board]:
    """Return one table per data set and ball, best robust accuracy first.

    Columns `NEEDED`, accuracies as shares in [0, 1] (NaN: not told); optional: architecture,
    authors, venue, link, notes (text), extra_data (bool). Raises `InputError` for others.
    """
    missing = [name for name in NEEDED if name not in frame]
    if missing:
        raise InputError(f"published rows lack the columns {', '.join(missing)}")
    links = frame["link"] if "link" in frame else [""] * len(frame)
    pages = [safe_link(link) if isinstance(link, str) else "" for link in links]
    ordered = frame.assign(key="", page=pages, state="unverified").sort_values(
        ["dataset", "ball", "robust"], ascending=[True, True, False]
    )
    groups = ordered.groupby(["dataset", "ball"], sort=False)
    return [_board(part, _PUBLISHED_COLUMNS, "", PUBLISHED) for _, part in groups]


def choices(made: Sequence[Board]) -> list[tuple[str, str, list[str]]]:
    """Return the filters of the page: key of a column or of a table, label, values to choose."""
    found: dict[str, set[str]] = {key: set() for key in _FILTERS}
    for board in made:
        found["dataset"].add(board.dataset)
        found["ball"].add(board.ball)
        for column in board.columns:
            if column.key in found:
                found[column.key] |= {cell(row, column)[0] for row in board.rows}
    return [(key, label, sorted(found[key])[:_MOST_CHOICES]) for key, label in _FILTERS.items()]


def cut(text: str, most: int = SHORT) -> str:
    """Cut a text that is longer than a reader wants, and say so.

    >>> cut("abcdef", 3), cut("abc", 3)
    ('abc... (6 characters)', 'abc')
    """
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def file_stem(text: str, digest: str) -> str:
    """Name a file after a stranger's text: safe characters, and a digest that tells it apart.

    >>> file_stem("../../etc/passwd", "0123456789abcdef"), file_stem("...", "01234567")
    ('etc_passwd-01234567', 'x-01234567')
    """
    words = re.sub(r"[^A-Za-z0-9._=-]+", "_", text[:200]).strip("._-")
    return f"{words[:60] or 'x'}-{digest[:8]}"


def _board(part: pd.DataFrame, columns: tuple[Column, ...], about: str, caption: str) -> Board:
    rows = part.to_dict("records")
    dataset, ball = cut(str(rows[0]["dataset"])), cut(str(rows[0]["ball"])) or "no ball"
    title = ", ".join(word for word in (dataset, ball, about) if word)
    leads = cut(leader(part), LONG) if "order" in part else ""
    return Board(title, caption, dataset, ball, leads, columns, rows)


def _caption(part: pd.DataFrame) -> str:
    seeds = count_text(int(part["seeds"].min()), int(part["seeds"].max()), "seed")
    notes = [seeds, *(one for one in standing_notes(part) if one != RANKS)]
    notes.append(interval_note(set(part["interval"])))
    if has_gap(part):
        weaker = sorted(set(part["beside"]) - {""})
        verb = "flatters" if len(weaker) == 1 else "flatter"
        notes.append(f"{GAP}: by how much {cut(', '.join(weaker))} {verb}")
    return "; ".join(notes)

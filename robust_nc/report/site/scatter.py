"""Clean against robust accuracy: a dot a model, and grey dots of rows that others published.

>>> rows = {"model": ["a", "b"], "clean": 0.95, "robust": [0.5, 0.2], "page": "", "rank": 1.0}
>>> (found,) = scatters(pd.DataFrame({**dict.fromkeys(BOARD, "x"), **rows}), None)
>>> found.ticks, [(dot.x, dot.y) for dot in found.ours]
([(100, 300.0), (95, 150.0), (90, 0.0)], [(150.0, 100.0), (150.0, 160.0)])
"""

import math
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from robust_nc.report.board.formats import percent
from robust_nc.report.board.table import BOARD
from robust_nc.report.site.tables import cut

WIDTH, HEIGHT = 300, 200  # of the area between the axes
_MOST = 2  # scatters
_MOST_DOTS = 300


class Dot(NamedTuple):
    """A model: where its dot is, what it says, the page that it leads to, if it has a rank."""

    x: float
    y: float
    text: str
    page: str
    ranked: bool


class Scatter(NamedTuple):
    """The models of one data set and ball; `ticks` are clean accuracies in %, and their places."""

    title: str
    ours: list[Dot]
    theirs: list[Dot]
    ticks: list[tuple[int, float]]


def scatters(frame: pd.DataFrame, published: pd.DataFrame | None) -> list[Scatter]:
    """Return the scatter of a leaderboard's first table, and one that others published rows for.

    Each holds two dots or more; without published rows the second is of the next data set or ball.
    `frame` is a leaderboard with its pages, `published` has its columns `NEEDED`: rows of others,
    shown where data set and ball are the same.
    """
    found: list[Scatter] = []
    tables = frame.groupby(list(BOARD), sort=False).ngroup()
    for (dataset, ball), part in frame.groupby(["dataset", "ball"], sort=False):
        first = part[tables[part.index] == tables[part.index[0]]]  # others do not compare
        ours = _known(first, str(dataset), str(ball))
        theirs = [] if published is None else _known(published, str(dataset), str(ball))
        if ball and ours and len(ours) + len(theirs) > 1:
            low = min(float(row["clean"]) for row in (*ours, *theirs))
            start = min(90, 10 * math.floor(10 * low))
            step = 5 if start >= 80 else 10 if start >= 50 else 20
            ticks = [(tick, _place(tick, start)) for tick in range(100, start - 1, -step)]
            title = f"{cut(str(dataset))}, {cut(str(ball))}"
            own, others = ([_dot(row, start) for row in rows] for rows in (ours, theirs))
            found.append(Scatter(title, own, others, ticks))
    return [*found[:1], *sorted(found[1:], key=lambda one: not one.theirs)][:_MOST]


def _place(clean: float, start: int) -> float:
    return round(WIDTH * (clean - start) / (100 - start), 1)


def _known(frame: pd.DataFrame, dataset: str, ball: str) -> list[dict[Hashable, Any]]:
    here = frame[(frame["dataset"] == dataset) & (frame["ball"] == ball)]
    return here.dropna(subset=["clean", "robust"])[:_MOST_DOTS].to_dict("records")


def _dot(row: Mapping[Hashable, Any], start: int) -> Dot:
    name, clean, robust = cut(str(row["model"]), 28), float(row["clean"]), float(row["robust"])
    return Dot(
        x=_place(100 * clean, start),
        y=round(HEIGHT * (1 - robust), 1),
        text=f"{name}: clean {percent(clean)} %, robust {percent(robust)} %",
        page=str(row.get("page", "")),
        ranked=math.isfinite(row.get("rank", math.nan)),
    )

"""Two models or methods on one page: figures with shared axes, and the examples they differ on.

>>> _spread([3, 1])
'2 examples: number 3, 1'
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from robust_nc.io.files import write_text
from robust_nc.record.schema import Stored
from robust_nc.report.board.formats import count_text
from robust_nc.report.figures import SavedFigure
from robust_nc.report.site.figures import SiteFigures, rows_of
from robust_nc.report.site.tables import cut
from robust_nc.report.site.write import Pages

_FIGURES = ("story", "leap_matrix", "landing_fraction")
_MOST_NAMED = 50


class Differing(NamedTuple):
    """Examples that one of two models alone withstands, and how the other one falls on some."""

    text: str
    rows: Sequence[int]
    pictures: Sequence[SavedFigure]

    @property
    def named(self) -> str:
        """Their number, and their places in the official order."""
        return _spread(self.rows)


def write_comparison(
    sides: Sequence[Sequence[Stored]],
    out: Path,
    *,
    verdict: str,
    about: Sequence[str],
    tables: Sequence[Sequence[Sequence[str]]],
    differing: Sequence[Differing],
) -> Path:
    """Write the page of two sides into `out`, and return its path, `compare.html`.

    `sides` are the records of A and of B; `verdict` and `about` sentences; each of the `tables`
    rows of text, headers first. Pictures lie in `out` already.
    """
    names = [f"{letter} {side[0].record.model}" for letter, side in zip("AB", sides, strict=True)]
    figures = SiteFigures(out)
    frames = [
        rows_of(side).assign(model=cut(name, 40), head="", objective="", suite="", backbone="")
        for side, name in zip(sides, names, strict=True)
    ]
    pages = Pages(out, "A against B", alone=True)
    write_text(out / "style.css", pages.source("style.css"))
    shown = [(one, figures.shown(one.pictures)) for one in differing]
    return pages.write(
        "compare.html",
        "compare.html",
        names=names,
        verdict=verdict,
        about=about,
        tables=tables,
        figures=figures.beside(pd.concat(frames, ignore_index=True), _FIGURES),
        differing=shown,
    )


def _spread(rows: Sequence[int]) -> str:
    told = ", ".join(map(str, rows[:_MOST_NAMED]))
    more = ", ..." if len(rows) > _MOST_NAMED else ""
    return f"{count_text(len(rows), len(rows), 'example')}{': number ' if told else ''}{told}{more}"

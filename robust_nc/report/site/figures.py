"""The figures of the pages: of each model, and of models side by side; no more than are read.

A site of many models draws fewer of each, and none again that lies there already.

>>> _brief("small_cnn"), len(_brief("x" * 10_000))
('small_cnn', 67)
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from robust_nc.exceptions import RecordError, RobustNCError
from robust_nc.io.files import digest
from robust_nc.record.schema import Stored
from robust_nc.report.board.gather import gather_rows, identity
from robust_nc.report.figures import PLOTS, save_each
from robust_nc.report.site.ledger import Ledger, SideBySide, SiteFigure, drawing_digest

# Of one set of results; the figure `story` shows collapse and leap rate per layer.
_TOGETHER = ("story", *(name for name in PLOTS if not name.endswith("_per_layer")), "leap_matrices")
# Of each of several sets.
_TOGETHER_FEW = ("story", "landing_fraction", "accuracy_against_eps", "leap_rate_against_eps")
_MOST_BESIDE = 6  # models of a set that are drawn side by side where a site has several
_NAMES = ("suite", "dataset", "backbone", "model", "head", "objective", "tap", "feature", "note")
_MOST_LETTERS = {"tap": 24}  # what stands along an axis
_MOST_OTHERS = 60


class FigureLimits(NamedTuple):
    """How much a site draws: up to `all_of` models `own` of each, of more models `own_few`.

    The first `models` have figures of their own; up to `together` models are drawn side by side
    where a site has one set of results.
    """

    models: int = 40
    all_of: int = 12
    together: int = 40
    own: tuple[str, ...] = (
        "collapse_per_layer",
        "leap_rate_per_layer",
        "nearest_vertex_accuracy",
        "leap_matrix",
        "landing_fraction",
        "leap_layers",
        "trajectory_on_edge",
        "trajectory_in_plane",
        "accuracy_against_eps",
        "leap_rate_against_eps",
        "collapse_against_eps",
        "collapse_over_epochs",
    )
    own_few: tuple[str, ...] = (
        "collapse_per_layer",
        "leap_rate_per_layer",
        "landing_fraction",
        "accuracy_against_eps",
        "leap_rate_against_eps",
    )


LIMITS = FigureLimits()


def rows_of(records: Sequence[Stored]) -> pd.DataFrame:
    """Read the rows of records, with names that a figure has room for.

    Raises `RecordError` where they are missing, damaged or no rows.
    """
    try:
        rows = gather_rows(records)
        return rows.assign(**{name: rows[name].map(_briefs(rows[name])) for name in _NAMES})
    except RobustNCError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        path = records[0].path
        raise RecordError(f"the rows of {path} are not rows of a record: {error}") from None


class SiteFigures:
    """Draws the figures of a site in the folder `out`, where they do not lie there already."""

    def __init__(self, out: Path, limits: FigureLimits = LIMITS) -> None:
        self.out, self.limits, self.ledger = out, limits, Ledger(out)

    def of_model(
        self, records: Sequence[Stored], rows: pd.DataFrame, key: str, *, models: int
    ) -> list[SiteFigure]:
        """Return the figures of one of so many models (`rows` of its `records`)."""
        few = models > self.limits.all_of
        names = [name for name in self.limits.own if not few or name in self.limits.own_few]
        return self._drawn(records, names, key[:16], rows=rows).figures

    def side_by_side(self, parts: Sequence[Sequence[Stored]]) -> SideBySide:
        """Return what each part (records that may share a figure) shows side by side."""
        told = SideBySide([], [])
        alone = len(parts) == 1
        names = _TOGETHER if alone else _TOGETHER_FEW
        most = self.limits.together if alone else min(self.limits.together, _MOST_BESIDE)
        for records in parts:
            count = len({stored.record.model for stored in records})
            if count > most or count == 1:
                told.left_out.append((_title(records), self._reason(count, most, alone=alone)))
                continue
            # A single part keeps plain names of files, which documents point to.
            cells = sorted(stored.record.cell for stored in records)
            folder = "" if alone else digest(cells)[:8]
            made = self._drawn(records, names, folder)
            told.figures.extend(made.figures)
            if alone:
                told.left_out.extend(made.left_out)
        return told

    def _drawn(
        self,
        records: Sequence[Stored],
        names: Sequence[str],
        folder: str,
        rows: pd.DataFrame | None = None,
    ) -> SideBySide:
        """Draw in a folder of `figures`; with the `rows` of one model, for the page of it."""

        def draw() -> SideBySide:
            told = SideBySide([], [])
            frame = rows_of(records) if rows is None else rows
            place = self.out / "figures" / folder
            for one in save_each(frame, place, names=names, alone=rows is not None):
                if one.path is None:
                    told.left_out.append((one.name, one.skipped))
                else:
                    file = one.path.relative_to(self.out).as_posix()
                    source = file if rows is None else f"../{file}"
                    size = _pixels(one.path)
                    told.figures.append(SiteFigure(source, one.title, one.caption, *size))
            return told

        return self.ledger.drawn(drawing_digest(records, names, folder), draw)

    def _reason(self, count: int, most: int, *, alone: bool) -> str:
        if count == 1:
            return "one model; its page has its figures"
        here = f"{count} models; at most {most} are drawn side by side here"
        more = "make a page of this folder alone for the figures of up to"
        return here if alone else f"{here}; {more} {self.limits.together}"


def _title(records: Sequence[Stored]) -> str:
    told = identity(records[0].record)
    return ", ".join(part for part in (told.suite, told.dataset, told.backbone, told.ball) if part)


def _brief(text: str, most: int = _MOST_OTHERS) -> str:
    """Shorten a name that a figure has no room or no letters for; a digest tells it apart."""
    if len(text) <= most and text.isascii() and text.isprintable():
        return text
    kept = "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:most])
    return f"{kept}~{digest(text)[:6]}"


def _briefs(names: pd.Series) -> dict[str, str]:
    most = _MOST_LETTERS.get(str(names.name), _MOST_OTHERS)
    return {name: _brief(str(name), most) for name in names.unique()}


def _pixels(path: Path) -> tuple[int, int]:
    # Pages that know the size of a picture do not jump when it comes: bytes 16 to 24 of a PNG.
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width, height

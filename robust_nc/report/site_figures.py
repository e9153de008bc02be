"""The figures of the page: of each model, and of models side by side; no more than are read.

>>> brief("small_cnn"), len(brief("x" * 10_000))
('small_cnn', 67)
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from robust_nc.exceptions import InputError, RecordError, RobustNCError
from robust_nc.files import digest
from robust_nc.record import Stored
from robust_nc.report.drawing import take_note
from robust_nc.report.figures import PLOTS, save_each
from robust_nc.report.gather import gather_rows
from robust_nc.report.layout import Made, one_legend, write

MOST_MODELS = 40  # with figures of their own, on one site
MOST_TOGETHER = 40  # models that are drawn side by side, over all sets of results of a site
_OWN = (
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
# The figure `story` shows these two already.
_IN_STORY = ("collapse_per_layer", "leap_rate_per_layer")
_NAMES = ("suite", "dataset", "backbone", "model", "head", "objective", "tap", "feature", "note")
_MOST_LETTERS = {"tap": 24}  # what stands along an axis
_MOST_OTHERS = 60


class Figure(NamedTuple):
    """A figure as a page shows it: where it lies as seen from the page, and its pixels."""

    source: str
    title: str
    caption: str
    width: int
    height: int


class Together(NamedTuple):
    """Figures of models side by side, and what is left out with the reason."""

    figures: list[Figure]
    left_out: list[tuple[str, str]]


def rows_of(records: Sequence[Stored]) -> pd.DataFrame:
    """Read the rows of records, with names that a figure has room for.

    Raises `RecordError` where they are missing, damaged or no rows.
    """
    try:
        rows = gather_rows(records)
        return rows.assign(
            **{name: rows[name].map(_briefs(rows[name])) for name in _NAMES if name in rows}
        )
    except RobustNCError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        path = records[0].path
        raise RecordError(f"the rows of {path} are not rows of a record: {error}") from None


def own_figures(rows: pd.DataFrame, key: str, out: Path) -> list[Figure]:
    """Draw the figures of one model into `out/figures`, named by digest."""
    made = []
    for name in _OWN:
        try:
            figure = _made(name, rows)
        except InputError:
            continue
        file = f"{digest([key, name])[:16]}.png"
        write(figure, out / "figures" / file, "")
        source = f"../figures/{file}"
        made.append(_figure(source, figure.title, figure.caption, out / "figures" / file))
    return made


def figures_together(parts: Sequence[Sequence[Stored]], out: Path) -> Together:
    """Draw what each part (records that may share a figure) shows, into `out/figures`."""
    told = Together([], [])
    drawn = 0
    for records in parts:
        models = {stored.record.model for stored in records}
        drawn += len(models)
        if drawn > MOST_TOGETHER:
            what = f"{records[0].record.suite}, {records[0].record.data.dataset}"
            told.left_out.append(
                (what, f"only {MOST_TOGETHER} models are drawn; make a page of this folder alone")
            )
            continue
        # A single part keeps plain names of files, which documents point to.
        folder = "" if len(parts) == 1 else f"/{digest(sorted(_cells(records)))[:8]}"
        for one in save_each(rows_of(records), out / f"figures{folder}"):
            if one.path is None:
                told.left_out.append((one.name, one.skipped))
            elif not one.name.endswith(_IN_STORY):
                source = f"figures{folder}/{one.path.name}"
                told.figures.append(_figure(source, one.title, one.caption, one.path))
    return told


def brief(text: str, most: int = _MOST_OTHERS) -> str:
    """Shorten a name that a figure has no room or no letters for; a digest tells it apart."""
    if len(text) <= most and text.isascii() and text.isprintable():
        return text
    kept = "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:most])
    return f"{kept}~{digest(text)[:6]}"


def _briefs(names: pd.Series) -> dict[str, str]:
    most = _MOST_LETTERS.get(str(names.name), _MOST_OTHERS)
    return {name: brief(str(name), most) for name in names.unique()}


def _cells(records: Sequence[Stored]) -> list[str]:
    return [stored.record.cell for stored in records]


def _figure(source: str, title: str, caption: str, path: Path) -> Figure:
    # Pages that know the size of a picture do not jump when it comes: bytes 16 to 24 of a PNG.
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return Figure(source, title, caption, width, height)


def _made(name: str, rows: pd.DataFrame) -> Made:
    ax = PLOTS[name](rows)
    title, figure = ax.get_title(loc="left"), ax.get_figure(root=True)
    assert figure is not None
    caption = take_note(ax)
    ax.set_title("", loc="left")
    one_legend(figure, [ax])
    return Made(figure, title, caption)

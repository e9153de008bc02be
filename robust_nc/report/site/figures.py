"""The figures of the page: of each model, and of models side by side; no more than are read.

A site of many models draws fewer of each, and none again that lies there already.

>>> brief("small_cnn"), len(brief("x" * 10_000))
('small_cnn', 67)
"""

import functools
import struct
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from robust_nc.exceptions import InputError, RecordError, RobustNCError
from robust_nc.io.files import digest
from robust_nc.record.schema import Stored
from robust_nc.report.board.gather import gather_rows, identity
from robust_nc.report.figures.drawing import take_note
from robust_nc.report.figures.figures import PLOTS, save_each
from robust_nc.report.figures.layout import Made, one_legend, write
from robust_nc.report.site.files import Figure, Ledger, Together, shown

MOST_MODELS = 40  # with figures of their own, on one site
FEW_MODELS = 12  # up to so many get all of their figures, more the first few
MOST_TOGETHER = 40  # models that are drawn side by side where a site has one set of results
_MOST_BESIDE = 6  # models of a set that are drawn side by side where a site has several
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
# Of each of many models.
_OWN_FEW = frozenset({"collapse_per_layer", "leap_rate_per_layer", "landing_fraction",
                      "accuracy_against_eps", "leap_rate_against_eps"})  # fmt: skip
# Of one set of results; the figure `story` shows collapse and leap rate per layer.
_TOGETHER = ("story", *(name for name in PLOTS if not name.endswith("_per_layer")), "leap_matrices")
# Of each of several sets.
_TOGETHER_FEW = ("story", "landing_fraction", "accuracy_against_eps", "leap_rate_against_eps")
_NAMES = ("suite", "dataset", "backbone", "model", "head", "objective", "tap", "feature", "note")
_MOST_LETTERS = {"tap": 24}  # what stands along an axis
_MOST_OTHERS = 60


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


def own_figures(
    ledger: Ledger, records: Sequence[Stored], rows: pd.DataFrame, key: str, *, few: bool
) -> list[Figure]:
    """Return the figures of one model (`rows` of its `records`), in `figures`, named by digest."""
    names = [name for name in _OWN if not few or name in _OWN_FEW]

    def draw() -> Together:
        made = []
        for name in names:
            try:
                figure = _made(name, rows)
            except InputError:
                continue
            file = f"{digest([key, name])[:16]}.png"
            path = ledger.out / "figures" / file
            write(figure, path, "")
            made.append(_figure(f"../figures/{file}", figure.title, figure.caption, path))
        return Together(made, [])

    return ledger.drawn(shown(records, names, key), draw).figures


def figures_together(ledger: Ledger, parts: Sequence[Sequence[Stored]]) -> Together:
    """Return what each part (records that may share a figure) shows side by side, in `figures`."""
    told = Together([], [])
    alone = len(parts) == 1
    names = _TOGETHER if alone else _TOGETHER_FEW
    most = MOST_TOGETHER if alone else min(MOST_TOGETHER, _MOST_BESIDE)
    for records in parts:
        count = len({stored.record.model for stored in records})
        if count > most or count == 1:
            told.left_out.append((_title(records), _reason(count, most, alone=alone)))
            continue
        # A single part keeps plain names of files, which documents point to.
        folder = "" if alone else f"/{digest(sorted(_cells(records)))[:8]}"
        draw = functools.partial(_draw_together, records, names, ledger.out, f"figures{folder}")
        made = ledger.drawn(shown(records, names, folder), draw)
        told.figures.extend(made.figures)
        if alone:
            told.left_out.extend(made.left_out)
    return told


def _draw_together(
    records: Sequence[Stored], names: Sequence[str], out: Path, folder: str
) -> Together:
    told = Together([], [])
    for one in save_each(rows_of(records), out / folder, names=names):
        if one.path is None:
            told.left_out.append((one.name, one.skipped))
        else:
            source = f"{folder}/{one.path.name}"
            told.figures.append(_figure(source, one.title, one.caption, one.path))
    return told


def _title(records: Sequence[Stored]) -> str:
    told = identity(records[0].record)
    parts = (told.suite, told.dataset, told.backbone, told.ball)
    return ", ".join(part for part in parts if part)


def _reason(count: int, most: int, *, alone: bool) -> str:
    if count == 1:
        return "one model; its page has its figures"
    elsewhere = "" if alone else "; make a page of this folder alone for the figures of up to "
    limit = "" if alone else f"{MOST_TOGETHER}"
    return f"{count} models; at most {most} are drawn side by side here{elsewhere}{limit}"


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

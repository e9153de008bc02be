"""The figures of the pages, no more than are read, and what a site's folder was left with.

A site of many models draws fewer of each, and none again that lies there already. The file
`.site-ledger` in the folder says which files the last call wrote, and what each figure shows. It is
read as a stranger's: what it says wrong costs a drawing, and no file of another name.

>>> import tempfile
>>> ledger = Ledger(Path(tempfile.mkdtemp()))
>>> ledger.drawn("what", lambda: SideBySide([], [("leap_matrix", "no rows")])).left_out
[('leap_matrix', 'no rows')]
>>> ledger.close()
>>> Ledger(ledger.out).drawn("what", lambda: 1 / 0).left_out
[('leap_matrix', 'no rows')]
>>> _brief("small_cnn"), len(_brief("x" * 10_000))
('small_cnn', 67)
"""

import functools
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
import seaborn as sns

from robust_nc.config import plain
from robust_nc.exceptions import RecordError, RobustNCError
from robust_nc.io.files import canonical_json, digest, remove_file, sha256_of, write_text
from robust_nc.io.untrusted import read_json
from robust_nc.record.schema import Stored
from robust_nc.report.board.gather import gather_rows, identity
from robust_nc.report.figures import PLOTS, SavedFigure, save_each
from robust_nc.report.figures.selection import RowFilter, optional

NAME = ".site-ledger"
# Draws the adversarial images of a record in a folder.
Pictures = Callable[[Stored, Path], Sequence[SavedFigure]]
# Draws an answer to a claim (`claims.answers`) into a PNG.
DrawClaim = Callable[[Any, Path], None]
# Files that a site consists of; no part begins with a dot.
_OURS = re.compile(
    r"claims\.html|model/[A-Za-z0-9][A-Za-z0-9._=-]*\.html"
    r"|figures/(([0-9a-f]{8}){1,2}/)?[A-Za-z0-9][A-Za-z0-9_-]*\.png"
)
# Of one set of results; the figure `story` shows collapse and leap rate per layer.
_TOGETHER = ("story", *(name for name in PLOTS if not name.endswith("_per_layer")), "leap_matrices")
# Of each of several sets.
_TOGETHER_FEW = ("story", "landing_fraction", "accuracy_against_eps", "leap_rate_against_eps")
# With the same axes for all models of a data set and ball; what a model's page opens with.
BESIDE = ("collapse_per_layer", "leap_rate_per_layer")
FIRST = (*BESIDE, "leap_matrix")
_MOST_BESIDE = 6  # models of a set that are drawn side by side where a site has several
_NAMES = ("suite", "dataset", "backbone", "model", "head", "objective", "tap", "feature", "note")
_MOST_LETTERS = {"tap": 24}  # what stands along an axis
_MOST_OTHERS = 60


class SiteFigure(NamedTuple):
    """A figure as a page shows it: where it lies as seen from the page, and its pixels."""

    source: str
    title: str
    caption: str
    width: int
    height: int

    @property
    def file(self) -> str:
        """Where it lies as seen from the site's folder."""
        return self.source.removeprefix("../")

    @property
    def name(self) -> str:
        """What it was drawn as."""
        return Path(self.source).stem


class SideBySide(NamedTuple):
    """Figures that were drawn in one go, and what was left out with the reason."""

    figures: list[SiteFigure]
    left_out: list[tuple[str, str]]


class Ledger:
    """What the last call left in the folder `out`, and what this one writes there."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._files: set[str] = set()
        self._drawn: dict[str, SideBySide] = {}
        self._last_drawn, self._last_files = _read(out / NAME)

    def page(self, path: str) -> None:
        """Say that a page was written, by its path from the folder."""
        self._files.add(path)

    def drawn(
        self, what: str, draw: Callable[[], SideBySide], *, whole: bool = False
    ) -> SideBySide:
        """Return the figures that the digest `what` tells apart, drawn anew where one is gone.

        Also where one was left out, if they are to be `whole`.
        """
        found = _figures(self._last_drawn.get(what))
        if (
            found is None
            or (whole and found.left_out)
            or not all((self.out / one.file).is_file() for one in found.figures)
        ):
            found = draw()
        self._drawn[what] = found
        self._files |= {one.file for one in found.figures}
        return found

    def close(self) -> None:
        """Remove the files of the last call that no page shows any more, and say what there is."""
        for file in sorted(self._last_files - self._files):
            remove_file(self.out / file)
        told = {"files": sorted(self._files), "drawn": self._drawn}
        write_text(self.out / NAME, canonical_json(told) + "\n")


@functools.cache
def _drawing() -> str:
    """Digest of the code that draws: figures of another version are drawn again."""
    sources = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return digest([matplotlib.__version__, sns.__version__, *map(sha256_of, sources)])


def _read(path: Path) -> tuple[Mapping[str, Any], set[str]]:
    try:
        found = read_json(path)
    except RecordError:
        return {}, set()
    if not isinstance(found, dict):
        return {}, set()
    drawn, files = found.get("drawn"), found.get("files")
    names = files if isinstance(files, list) else []
    ours = {name for name in names if isinstance(name, str) and _OURS.fullmatch(name)}
    return drawn if isinstance(drawn, dict) else {}, ours


def _figures(found: Any) -> SideBySide | None:
    """Return what the file says of figures; None where it is not what we write."""
    try:
        figures, left_out = found
        told = SideBySide(
            [SiteFigure(str(a), str(b), str(c), int(w), int(h)) for a, b, c, w, h in figures],
            [(str(name), str(reason)) for name, reason in left_out],
        )
    except (TypeError, ValueError):
        return None
    return told if all(_OURS.fullmatch(one.file) for one in told.figures) else None


class FigureLimits(NamedTuple):
    """How much a site draws: up to `all_of` models `own` of each, of more models `own_few`.

    The first `models` have figures of their own; up to `together` models are drawn side by side
    where a site has one set of results.
    """

    models: int = 40
    all_of: int = 12
    together: int = 40
    own: tuple[str, ...] = (
        *FIRST,
        "nearest_vertex_accuracy",
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
        *FIRST,
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
        for column in _NAMES:
            most = _MOST_LETTERS.get(column, _MOST_OTHERS)
            brief = {name: _brief(str(name), most) for name in rows[column].unique()}
            rows[column] = rows[column].map(brief)
        return rows
    except RobustNCError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        path = records[0].path
        raise RecordError(f"the rows of {path} are not rows of a record: {error}") from None


def nc1_ends(rows: pd.DataFrame) -> list[float]:
    """Smallest and largest positive NC1 that `collapse_per_layer` draws of rows, if any."""
    wanted = [
        RowFilter("nc1", ("clean", "attacked", "gaussian"), grouping="true", split="train"),
        RowFilter("nc1_leap_null", ("attacked",), split="train"),
    ]
    values = pd.concat([optional(rows, one)["value"] for one in wanted])
    values = values[(values > 0) & (values < math.inf)]
    return [] if values.empty else [float(values.min()), float(values.max())]


class SiteFigures:
    """Draws the figures of a site in the folder `out`, where they do not lie there already."""

    def __init__(self, out: Path, limits: FigureLimits = LIMITS) -> None:
        self.out, self.limits, self.ledger = out, limits, Ledger(out)

    def of_model(
        self,
        records: Sequence[Stored],
        rows: pd.DataFrame,
        key: str,
        *,
        models: int,
        span: tuple[float, float] | None = None,
    ) -> list[SiteFigure]:
        """Return the figures of one of so many models (`rows` of its `records`).

        NC1 goes from and to what `span` says.
        """
        few = models > self.limits.all_of
        names = [name for name in self.limits.own if not few or name in self.limits.own_few]
        return self._drawn(records, names, key[:8], rows=rows, span=span).figures

    def adversarial(self, stored: Stored, key: str, draw: Pictures) -> SideBySide:
        """Return the adversarial images of a record, and why there are none or no originals."""
        evidence = stored.record.evidence
        what = [_drawing(), key, stored.path.stem, evidence.sha256 if evidence else ""]
        place = self.out / "figures" / key[:8]

        def drawn() -> SideBySide:
            return self.shown(draw(stored, place), up="../")

        return self.ledger.drawn(digest(what), drawn, whole=True)

    def claim(self, answer: Any, draw: DrawClaim) -> SiteFigure:
        """Return the figure of an answer to a claim."""
        key = digest([_drawing(), plain(answer)])
        path = self.out / "figures" / key[:8] / "claim.png"

        def drawn() -> SideBySide:
            draw(answer, path)
            return self.shown([SavedFigure("claim", answer.claim.id, answer.verdict, path)])

        return self.ledger.drawn(key, drawn).figures[0]

    def leaders(self, records: Sequence[Stored]) -> SiteFigure | None:
        """Return collapse and leaps of a few models that may share a figure, if they have any."""
        drawn = self._drawn(records, ("story",), digest("leaders")[:8], words=False).figures
        return drawn[0] if drawn else None

    def beside(self, frame: pd.DataFrame, names: Sequence[str]) -> SideBySide:
        """Draw rows of models that may be compared in figures of their own, with shared axes."""
        return self.shown(save_each(frame, self.out / "figures", names=names, words=False))

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
        span: tuple[float, float] | None = None,
        words: bool = True,
    ) -> SideBySide:
        """Draw in a folder of `figures`; with the `rows` of one model, for the page of it."""

        def draw() -> SideBySide:
            frame = rows_of(records) if rows is None else rows
            place, spans = self.out / "figures" / folder, {BESIDE[0]: span} if span else {}
            alone = rows is not None
            told = words and not alone  # else the page says them
            saved = save_each(frame, place, names=names, alone=alone, spans=spans, words=told)
            return self.shown(saved, up="../" if alone else "")

        shown = [
            [[str(part) for part in identity(one.record)], one.record.seed, one.record.rows.sha256]
            for one in records
        ]
        return self.ledger.drawn(digest([_drawing(), folder, list(names), span, shown]), draw)

    def shown(self, saved: Sequence[SavedFigure], up: str = "") -> SideBySide:
        """Return figures as a page shows them from where `up` leads to the site's folder."""
        told = SideBySide([], [])
        for one in saved:
            if one.path is None:
                told.left_out.append((one.name, one.skipped))
            else:
                source = f"{up}{one.path.relative_to(self.out).as_posix()}"
                size = _pixels(one.path)
                told.figures.append(SiteFigure(source, one.title, one.caption, *size))
        return told

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


def _pixels(path: Path) -> tuple[int, int]:
    # Pages that know the size of a picture do not jump when it comes: bytes 16 to 24 of a PNG.
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width, height

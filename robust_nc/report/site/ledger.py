"""What a site's folder was left with: figures that need no drawing again, and pages gone stale.

The file `.site-ledger` in the folder says which files the last call wrote, and what each figure
shows. It is read as a stranger's: what it says wrong costs a drawing, and no file of another name.

>>> import tempfile
>>> ledger = Ledger(Path(tempfile.mkdtemp()))
>>> ledger.drawn("what", lambda: SideBySide([], [("leap_matrix", "no rows")])).left_out
[('leap_matrix', 'no rows')]
>>> ledger.close()
>>> Ledger(ledger.out).drawn("what", lambda: 1 / 0).left_out
[('leap_matrix', 'no rows')]
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import seaborn as sns

from robust_nc.exceptions import RecordError
from robust_nc.io.files import canonical_json, digest, remove_file, sha256_of, write_text
from robust_nc.io.untrusted import read_json
from robust_nc.record.schema import Stored
from robust_nc.report.board.gather import identity

NAME = ".site-ledger"
# Files that a site consists of; no part begins with a dot.
_OURS = re.compile(
    r"claims\.html|model/[A-Za-z0-9][A-Za-z0-9._=-]*\.html"
    r"|figures/(([0-9a-f]{8}){1,2}/)?[A-Za-z0-9][A-Za-z0-9_-]*\.png"
)


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

    def drawn(self, what: str, draw: Callable[[], SideBySide]) -> SideBySide:
        """Return the figures that the digest `what` tells apart, drawn anew where one is gone."""
        found = _figures(self._last_drawn.get(what))
        if found is None or not all((self.out / one.file).is_file() for one in found.figures):
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


def drawing_digest(records: Sequence[Stored], names: Sequence[str], key: str = "") -> str:
    """Name what figures show: a digest of the rows, of the figures' names, and of who draws."""
    rows = [
        [[str(part) for part in identity(one.record)], one.record.seed, one.record.rows.sha256]
        for one in records
    ]
    return digest([_drawing(), key, list(names), rows])


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

"""The leaderboard as static pages, which open from a folder or any web host and need nothing else.

`index.html` has the tables, `model/*.html` one page per model, `figures.html` what models show side
by side, `claims.html` the claims. All that a record says is a stranger's text, and escaped.

>>> part_of(["b", "a"], key=str.upper)
{'B': ['b'], 'A': ['a']}
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from robust_nc.record.schema import Stored
from robust_nc.report.board.formats import Section, sections
from robust_nc.report.board.gather import identity, read_results
from robust_nc.report.board.table import leaderboard, paired
from robust_nc.report.site.board import boards, row_key
from robust_nc.report.site.commands import common_root
from robust_nc.report.site.figures import (
    FEW_MODELS,
    MOST_MODELS,
    figures_together,
    own_figures,
    rows_of,
)
from robust_nc.report.site.files import Ledger
from robust_nc.report.site.layers import layers, leaps
from robust_nc.report.site.model import Drawn, facts, model_page
from robust_nc.report.site.pages import Shown, Site, write_index, write_page, write_style
from robust_nc.report.site.text import cut, file_stem

BASELINE = "linear"
_MOST_NAMED = 3  # suites in the title

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def write_site(
    records: Sequence[Stored],
    out: Path,
    *,
    published: pd.DataFrame | None = None,
    claims: Sequence[Shown] = (),
) -> Path:
    """Write the pages and their figures into `out`, and return the path of `index.html`.

    Figures that lie there from the last call, of the same rows, are kept; pages and figures of
    that call that nothing shows any more are removed. `published` are rows of others, told apart
    as unverified (see `published_boards`); `claims` answered claims (`claims.shown.claims_shown`).
    Of the models the first `MOST_MODELS` get figures, all get tables. Raises `RecordError` if there
    are no records, or the rows of one are missing or damaged.
    """
    records = read_results(records)
    frame = leaderboard(records)
    suites = sorted({stored.record.suite for stored in records} - {""})
    named = ", ".join(map(cut, suites)) if len(suites) <= _MOST_NAMED else f"{len(suites)} suites"
    title = f"robust_nc: {named or 'results'}"
    unverified = published is not None and not published.empty
    site = Site(out, title, bool(claims), unverified)
    ledger = Ledger(out)
    write_style(site)
    _models(site, ledger, records, frame)
    _figures(site, ledger, records)
    if claims:
        write_page(site, "claims.html", "claims.html", {"claims": claims})
        ledger.page("claims.html")
    told = facts([stored.record for stored in records])
    page = write_index(site, frame, facts=told, published=published if unverified else None)
    ledger.close()
    return page


def part_of(values: Iterable[T], *, key: Callable[[T], K]) -> dict[K, list[T]]:
    """Group values by a key, in the order in which they come."""
    found: dict[K, list[T]] = defaultdict(list)
    for value in values:
        found[key(value)].append(value)
    return dict(found)


def _models(site: Site, ledger: Ledger, records: Sequence[Stored], frame: pd.DataFrame) -> None:
    """Write the page of every row of the leaderboard."""
    root = common_root(records)
    groups = part_of(records, key=lambda one: row_key(identity(one.record)._asdict()))
    rows = [row for board in boards(frame) for row in board.rows]
    for index, values in enumerate(frame.to_dict("records")):
        key = row_key(values)
        members = sorted(groups[key], key=lambda one: one.record.seed)
        measured = rows_of(members)
        figures = (
            own_figures(ledger, members, measured, key, few=len(frame) > FEW_MODELS)
            if index < MOST_MODELS
            else None
        )
        drawn = Drawn(layers(measured, len(members)), leaps(measured), figures)
        path = f"model/{file_stem(str(values['model']), key)}.html"
        named = {**values, "shown": rows[index].name}
        page = model_page(named, members, drawn, path=path, root=root)
        write_page(site, path, "model.html", {"page": page, "most": MOST_MODELS}, up="../")
        ledger.page(path)


def _figures(site: Site, ledger: Ledger, records: Sequence[Stored]) -> None:
    """Write the page of what models show side by side."""

    def apart(stored: Stored) -> tuple[str, str, str, str]:
        told = identity(stored.record)
        return told.suite, told.dataset, told.backbone, told.ball

    parts = part_of(records, key=apart)
    together = figures_together(ledger, [parts[key] for key in sorted(parts)])
    values = {
        "figures": together.figures,
        "left_out": together.left_out,
        "differences": _differences(records),
        "baseline": BASELINE,
    }
    write_page(site, "figures.html", "figures.html", values)


def _differences(records: Sequence[Stored]) -> list[Section]:
    """Compare each head with the baseline head, where there is one."""
    if BASELINE not in {stored.record.head for stored in records}:
        return []
    frame = paired(records, against=BASELINE)
    return [] if frame.empty else sections(frame)

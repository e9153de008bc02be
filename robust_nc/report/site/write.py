"""The leaderboard as static pages, which open from a folder or any web host and need nothing else.

`index.html` has the tables, `model/*.html` one page per model, `figures.html` what models show side
by side, `claims.html` the claims. All that a record says is a stranger's text, and escaped.

>>> sorted({"C10", "C2", "C1b"}, key=_natural)
['C1b', 'C2', 'C10']
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robust_nc.record.schema import Stored
from robust_nc.report.board.formats import sections
from robust_nc.report.board.gather import identity, read_results
from robust_nc.report.board.table import leaderboard, paired
from robust_nc.report.site.commands import common_root
from robust_nc.report.site.figures import LIMITS, FigureLimits, SiteFigures, rows_of
from robust_nc.report.site.model import facts, page_values
from robust_nc.report.site.pages import Pages, script_hash
from robust_nc.report.site.tables import (
    COLUMNS,
    PUBLISHED,
    boards,
    choices,
    cut,
    published_boards,
    row_key,
    with_pages,
)

BASELINE = "linear"
_MOST_NAMED = 3  # suites in the title
_EARLY = "early.js"
_SCRIPTS = ("state.js", "table.js", "compare.js", "start.js")


def write_site(
    records: Sequence[Stored],
    out: Path,
    *,
    published: pd.DataFrame | None = None,
    claims: Sequence[Any] = (),
    limits: FigureLimits = LIMITS,
) -> Path:
    """Write the pages and their figures into `out`, and return the path of `index.html`.

    Figures that lie there from the last call, of the same rows, are kept; pages and figures of
    that call that nothing shows any more are removed. `published` are rows of others, told apart
    as unverified (see `published_boards`); `claims` are answers to claims (`claims.answers`).
    Of the models the first `limits.models` get figures, all get tables. Raises `RecordError` if
    there are no records, or the rows of one are missing or damaged.
    """
    records = read_results(records)
    frame = with_pages(leaderboard(records))
    suites = sorted({stored.record.suite for stored in records} - {""})
    named = ", ".join(map(cut, suites)) if len(suites) <= _MOST_NAMED else f"{len(suites)} suites"
    unverified = published if published is not None and not published.empty else None
    pages = Pages(
        out,
        f"robust_nc: {named or 'results'}",
        claims=bool(claims),
        published=unverified is not None,
    )
    figures = SiteFigures(out, limits)
    _write_models(pages, figures, records, frame)
    _write_figures(pages, figures, records)
    if claims:
        ordered = sorted(claims, key=lambda one: _natural(one.claim.id))
        pages.write("claims.html", "claims.html", claims=ordered)
        figures.ledger.page("claims.html")
    told = facts([stored.record for stored in records])
    page = write_index(pages, frame, facts=told, published=unverified)
    figures.ledger.close()
    return page


def write_index(
    pages: Pages,
    frame: pd.DataFrame,
    *,
    facts: Sequence[tuple[str, str]] = (),
    published: pd.DataFrame | None = None,
) -> Path:
    """Write the page of a leaderboard's tables; `facts` say what was measured."""
    pages.write_style()
    made = boards(frame)
    theirs = [] if published is None else published_boards(published)
    early, script = pages.source(_EARLY), "\n".join(map(pages.source, _SCRIPTS))
    return pages.write(
        "index.html",
        "index.html",
        boards=made,
        published=theirs,
        published_caption=PUBLISHED,
        choices=choices([*made, *theirs]),
        columns=made[0].columns,
        meanings=[(one.header, one.meaning) for one in COLUMNS],
        total=len(frame) + sum(len(one.rows) for one in theirs),
        models=len(frame),
        records=int(frame["seeds"].sum()),
        facts=facts,
        early=early,
        script=script,
        hashes=f"'{script_hash(early)}' '{script_hash(script)}'",
    )


def _write_models(
    pages: Pages, figures: SiteFigures, records: Sequence[Stored], frame: pd.DataFrame
) -> None:
    """Write the page of every row of the leaderboard."""
    root = common_root(records)
    groups: dict[str, list[Stored]] = defaultdict(list)
    for stored in records:
        groups[row_key(identity(stored.record)._asdict())].append(stored)
    for index, row in enumerate(frame.to_dict("records")):
        members = sorted(groups[row["key"]], key=lambda one: one.record.seed)
        rows = rows_of(members)
        drawn = None
        if index < figures.limits.models:
            drawn = figures.of_model(members, rows, row["key"], models=len(frame))
        values = page_values(row, members, rows, root)
        most = figures.limits.models
        pages.write(row["page"], "model.html", up="../", figures=drawn, most=most, **values)
        figures.ledger.page(row["page"])


def _write_figures(pages: Pages, figures: SiteFigures, records: Sequence[Stored]) -> None:
    """Write the page of what models show side by side."""
    parts: dict[tuple[str, ...], list[Stored]] = defaultdict(list)
    for stored in records:
        told = identity(stored.record)
        parts[told.suite, told.dataset, told.backbone, told.ball].append(stored)
    together = figures.side_by_side([parts[key] for key in sorted(parts)])
    pages.write(
        "figures.html",
        "figures.html",
        figures=together.figures,
        left_out=together.left_out,
        differences=_differences(records),
        baseline=BASELINE,
    )


def _differences(records: Sequence[Stored]) -> list[Any]:
    """Compare each head with the baseline head, where there is one."""
    if BASELINE not in {stored.record.head for stored in records}:
        return []
    frame = paired(records, against=BASELINE)
    return [] if frame.empty else sections(frame)


def _natural(name: str) -> list[tuple[str, int]]:
    return [(word, int(part or 0)) for word, part in re.findall(r"([^0-9]*)([0-9]*)", name)]

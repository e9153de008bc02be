"""Writing the pages of a site: templates, the style that they share, and the page of the tables.

>>> import tempfile
>>> site = Site(Path(tempfile.mkdtemp()), "mine", claims=False, published=False)
>>> write_style(site).name
'style.css'
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from robust_nc.io.files import write_text
from robust_nc.report.site.board import CAPTION, boards, choices, published_boards
from robust_nc.report.site.columns import COLUMNS
from robust_nc.report.site.text import environment, script_hash

_EARLY = "early.js"
_SCRIPTS = ("state.js", "table.js", "compare.js", "start.js")


class Site(NamedTuple):
    """What the pages of a site share: folder, title, and which of the optional pages there are."""

    out: Path
    title: str
    claims: bool
    published: bool


def write_index(
    site: Site,
    frame: pd.DataFrame,
    *,
    facts: Sequence[tuple[str, str]] = (),
    published: pd.DataFrame | None = None,
) -> Path:
    """Write the page of a leaderboard's tables; `facts` say what was measured."""
    made = boards(frame)
    theirs = [] if published is None else published_boards(published)
    early, script = _source(_EARLY), "\n".join(map(_source, _SCRIPTS))
    values = {
        "boards": made,
        "published": theirs,
        "published_caption": CAPTION,
        "choices": choices(made, theirs),
        "columns": made[0].columns,
        "meanings": [(one.header, one.meaning) for one in COLUMNS],
        "total": len(frame) + sum(len(one.rows) for one in theirs),
        "models": len(frame),
        "records": int(frame["seeds"].sum()),
        "facts": facts,
        "early": early,
        "script": script,
        "hashes": f"'{script_hash(early)}' '{script_hash(script)}'",
    }
    return write_page(site, "index.html", "index.html", values)


def write_page(
    site: Site, path: str, template: str, values: Mapping[str, Any], *, up: str = ""
) -> Path:
    """Fill a template and write it to `path`, from where `up` leads to the site's folder."""
    page = (
        environment()
        .get_template(template)
        .render({"hashes": "", "site": site, "up": up, **values})
    )
    write_text(site.out / path, page + "\n")
    return site.out / path


def write_style(site: Site) -> Path:
    """Write the style that all pages share."""
    write_text(site.out / "style.css", _source("style.css"))
    return site.out / "style.css"


def _source(name: str) -> str:
    templates = environment()
    assert templates.loader is not None
    return templates.loader.get_source(templates, name)[0]


class ShownTest(NamedTuple):
    """One test of a claim: its quantity, and what came of it, as text."""

    quantity: str
    mean: str
    expected: str
    p: str
    p_holm: str
    seeds: str
    verdict: str


class Shown(NamedTuple):
    """One claim, as it was asked and answered; `scale` says what it was measured on."""

    id: str
    verdict: str
    says: str
    source: str
    reason: str
    scale: str
    tests: tuple[ShownTest, ...]

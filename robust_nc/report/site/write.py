"""The leaderboard as static pages, which open from a folder or any web host and need nothing else.

`index.html` has the tables, `model/*.html` one page per model, `figures.html` what models show side
by side, `claims.html` the claims. All that a record says is a stranger's text, and escaped.

>>> environment().from_string("{{ name }}").render(name="<script>")
'&lt;script&gt;'
>>> sorted({"C10", "C2", "C1b"}, key=_natural)
['C1b', 'C2', 'C10']
"""

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robust_nc.io.files import write_text
from robust_nc.io.text import printable, safe_link
from robust_nc.record.schema import Stored
from robust_nc.report.board.formats import number, percent, sections
from robust_nc.report.board.gather import identity, models_of_row, read_results
from robust_nc.report.board.table import BOARD, leaderboard, paired
from robust_nc.report.site.figures import (
    BESIDE,
    FIRST,
    LIMITS,
    DrawClaim,
    FigureLimits,
    Pictures,
    SideBySide,
    SiteFigure,
    SiteFigures,
    nc1_ends,
    rows_of,
)
from robust_nc.report.site.model import common_root, facts, leap_layer_name, page_values
from robust_nc.report.site.pairs import with_pairs
from robust_nc.report.site.scatter import HEIGHT, WIDTH, scatters
from robust_nc.report.site.tables import (
    COLUMNS,
    LONG,
    PUBLISHED,
    boards,
    cell,
    choices,
    cut,
    published_boards,
    ranked_first,
    row_key,
    with_pages,
)

BASELINE = "linear"
_MOST_NAMED = 3  # suites in the title
_LEADERS = 4  # models that the first page's figure shows
_EARLY = "early.js"
_SCRIPTS = ("state.js", "table.js", "compare.js", "start.js")


class Pages:
    """What the pages of a site share: folder, title, and which of the optional pages there are.

    A page that is `alone` leads to no other; `docs` says whether there is a documentation (default:
    whether it lies there).
    """

    def __init__(
        self,
        out: Path,
        title: str,
        *,
        claims: bool = False,
        published: bool = False,
        alone: bool = False,
        docs: bool | None = None,
    ) -> None:
        self.out, self.title, self.claims, self.published = out, title, claims, published
        self.alone = alone
        self.docs = (out / "docs" / "index.html").is_file() if docs is None else docs
        self._templates = environment()

    def write(self, path: str, template: str, *, up: str = "", **values: Any) -> Path:
        """Fill a template and write it to `path`, from where `up` leads to the site's folder."""
        page = self._templates.get_template(template).render(
            {"hashes": "", "site": self, "up": up, **values}
        )
        write_text(self.out / path, page + "\n")
        return self.out / path

    def source(self, name: str) -> str:
        """Return a style or a script as it is."""
        assert self._templates.loader is not None
        return self._templates.loader.get_source(self._templates, name)[0]


def environment() -> Environment:
    """Return the templates' environment: all output visible and escaped, no undefined names."""
    templates = Environment(
        loader=PackageLoader("robust_nc.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    for written in (cell, cut, file_size, number, percent, safe_link):
        templates.filters[written.__name__] = written
    templates.globals |= {"LONG": LONG, "WIDTH": WIDTH, "HEIGHT": HEIGHT}
    return templates


def script_hash(script: str) -> str:
    """Source expression that lets a content security policy run this script and no other.

    >>> script_hash("")
    'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    found = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(found).decode()}"


def file_size(amount: int) -> str:
    """Write a number of bytes.

    >>> file_size(1_234_567)
    '1.2 MB'
    """
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next((f"{amount / n:.1f} {unit}" for unit, n in units if amount >= n), f"{amount} B")


def _finalize(value: Any) -> Any:
    # Markup is what a template itself made; everything else is text.
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def write_site(
    records: Sequence[Stored],
    out: Path,
    *,
    published: pd.DataFrame | None = None,
    beside: pd.DataFrame | None = None,
    claims: Sequence[Any] = (),
    draw_claim: DrawClaim | None = None,
    pictures: Pictures | None = None,
    limits: FigureLimits = LIMITS,
) -> Path:
    """Write the pages and their figures into `out`, and return the path of `index.html`.

    Figures that lie there from the last call, of the same rows, are kept; pages and figures of
    that call that nothing shows any more are removed. `published` are rows of others, told apart
    as unverified (see `published_boards`), `beside` what a scatter shows of others in grey
    (default: the same); `claims` are answers to claims (`claims.answers`), which `draw_claim`
    draws, and `pictures` draws adversarial images. Of the models the first `limits.models` get
    figures, all get tables. Raises `RecordError` if there are no records, or the rows of one are
    missing or damaged.
    """
    records = read_results(records)
    frame = ranked_first(with_pages(leaderboard(records)))
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
    groups: dict[str, list[Stored]] = defaultdict(list)
    for stored in records:
        groups[row_key(identity(stored.record)._asdict())].append(stored)
    frame = _write_models(pages, figures, groups, frame, pictures)
    _write_figures(pages, figures, records)
    if claims:
        ordered = sorted(claims, key=lambda one: _natural(one.claim.id))
        drawn = [None if draw_claim is None else figures.claim(one, draw_claim) for one in ordered]
        pages.write("claims.html", "claims.html", claims=list(zip(ordered, drawn, strict=True)))
        figures.ledger.page("claims.html")
    flags = {
        key: {one.member: one.robust for one in models_of_row(members)}
        for key, members in groups.items()
    }
    page = write_index(
        pages,
        with_pairs(frame, flags),
        facts=facts([stored.record for stored in records]),
        published=unverified,
        beside=unverified if beside is None else beside,
        story=_story(figures, groups, frame),
    )
    figures.ledger.close()
    return page


def write_model(stored: Stored, pictures: Pictures) -> Path:
    """Write the site of one record into its folder, and return the page of its model."""
    index = write_site([stored], stored.path.parent, pictures=pictures)
    return index.parent / str(with_pages(leaderboard([stored]))["page"].iloc[0])


def write_index(
    pages: Pages,
    frame: pd.DataFrame,
    *,
    facts: Sequence[tuple[str, str]] = (),
    published: pd.DataFrame | None = None,
    beside: pd.DataFrame | None = None,
    story: SiteFigure | None = None,
) -> Path:
    """Write the page of a leaderboard's tables; `facts` say what was measured."""
    write_text(pages.out / "style.css", pages.source("style.css"))
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
        story=story,
        scatters=scatters(frame, beside),
        early=early,
        script=script,
        hashes=f"'{script_hash(early)}' '{script_hash(script)}'",
    )


def _write_models(
    pages: Pages,
    figures: SiteFigures,
    groups: Mapping[str, Sequence[Stored]],
    frame: pd.DataFrame,
    pictures: Pictures | None,
) -> pd.DataFrame:
    """Write the page of every row of the leaderboard; return it with what only the rows tell."""
    root = common_root([stored for members in groups.values() for stored in members])
    most, told = figures.limits.models, []
    spans = _spans(groups, frame[:most])
    for index, row in enumerate(frame.to_dict("records")):
        members = sorted(groups[row["key"]], key=lambda one: one.record.seed)
        rows = rows_of(members)
        row["leap_layer_name"] = leap_layer_name(rows)
        drawn, images = None, SideBySide([], [])
        if index < most:
            span = spans.get((row["dataset"], row["ball"]))
            drawn = figures.of_model(members, rows, row["key"], models=len(frame), span=span)
            if pictures is not None:
                images = figures.adversarial(members[0], row["key"], pictures)
        values = page_values(row, members, rows, root)
        first = [one for one in drawn or [] if one.name in FIRST]
        more = [one for one in drawn or [] if one.name not in FIRST]
        about = {"first": first, "more": more, "drawn": drawn is not None, "most": most}
        pages.write(row["page"], "model.html", up="../", images=images, **about, **values)
        figures.ledger.page(row["page"])
        names = [one.name for one in first if one.name in BESIDE]
        told.append((row["leap_layer_name"], " ".join(names)))
    return frame.assign(
        **dict(zip(("leap_layer_name", "drawn"), zip(*told, strict=True), strict=True))
    )


def _spans(
    groups: Mapping[str, Sequence[Stored]], frame: pd.DataFrame
) -> dict[tuple[str, str], tuple[float, float]]:
    """Find the smallest and largest NC1 that models of one data set and ball show, with room."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in frame.to_dict("records"):
        found[row["dataset"], row["ball"]] += nc1_ends(rows_of(groups[row["key"]]))
    return {key: (min(ends) / 1.3, max(ends) * 1.3) for key, ends in found.items() if ends}


def _story(
    figures: SiteFigures, groups: Mapping[str, Sequence[Stored]], frame: pd.DataFrame
) -> SiteFigure | None:
    """Draw collapse and leaps of the first models of the first table side by side."""
    first = frame.iloc[0]
    like = [*BOARD, "suite", "backbone"]
    leaders = frame[(frame[like] == first[like]).all(axis=1)][:_LEADERS]
    records = [stored for key in leaders["key"] for stored in groups[key]]
    return figures.leaders(records) if figures.limits.together else None


def _write_figures(pages: Pages, figures: SiteFigures, records: Sequence[Stored]) -> None:
    """Write the page of what models show side by side."""
    parts: dict[tuple[str, ...], list[Stored]] = defaultdict(list)
    for stored in records:
        told = identity(stored.record)
        parts[told.suite, told.dataset, told.backbone, told.ball].append(stored)
    together = figures.side_by_side([parts[key] for key in sorted(parts)])
    there = BASELINE in {stored.record.head for stored in records}
    differences = paired(records, against=BASELINE) if there else pd.DataFrame()
    pages.write(
        "figures.html",
        "figures.html",
        figures=together.figures,
        left_out=together.left_out,
        differences=[] if differences.empty else sections(differences),
        baseline=BASELINE,
    )


def _natural(name: str) -> list[tuple[str, int]]:
    return [(word, int(part or 0)) for word, part in re.findall(r"([^0-9]*)([0-9]*)", name)]

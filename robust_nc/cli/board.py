"""`robust-nc board`: the leaderboard as text, pages, figures or files, or the answer to a query.

>>> try:
...     BoardOptions(format="html", sql="select 1").check()
... except ConfigError as error:
...     print(error)
the answer to --sql is written as table, csv, latex or markdown, found --format html
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import tyro
from rich.console import Console

from robust_nc.exceptions import ConfigError, RecordError, unknown_name

# What takes long to import is imported where it is needed: a mistake is to be told at once.
if TYPE_CHECKING:
    import pandas as pd

    from robust_nc.record.schema import Stored

Text = Literal["table", "csv", "latex", "markdown"]
Picture = Literal["pdf", "svg", "png"]
Format = Literal[
    "table", "csv", "latex", "markdown", "bibtex", "robustbench", "html", "pdf", "svg", "png"
]
_Tell = Callable[[str], None]

_TEXTS: tuple[Text, ...] = get_args(Text)
_PICTURES: tuple[Picture, ...] = get_args(Picture)
_SHOWN = 1000  # rows of an answer in a terminal


@dataclass(frozen=True)
class BoardOptions:
    """Show the leaderboard of a results folder."""

    results: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS")] = Path(
        "results"
    )
    """Folder with records, searched recursively."""
    format: Format = "table"
    """What to make of it; html writes pages with figures into --out, robustbench a folder of
    model_info files, pdf (with figures.tex, their captions), svg and png the figures alone."""
    out: Path | None = None
    """For html, robustbench and figures: the folder (html: default RESULTS). Otherwise a file."""
    columns: tuple[str, ...] | None = None
    """Show these columns, by their names in --format csv: --columns model clean robust."""
    figures: tuple[str, ...] | None = None
    """Write figures into --out (pdf unless --format says svg or png): these, or all."""
    width: Literal["column", "page"] | float | None = None
    """How wide figures are: one column (3.25 inches) or the page (6.75) of a paper, or inches."""
    against: str | None = None
    """Show, instead of the leaderboard, every head minus this one, seed by seed, with paired
    intervals (the html page has both)."""
    like: str | None = None
    """Show, instead of the leaderboard, the measures of a paper by its names: su2023, ..."""
    where: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Keep rows such as head=etf, "robust>=0.4", "model~trades"; once per condition."""
    sort: str | None = None
    """Column to sort by; --sort=-robust for largest first."""
    sql: str | None = None
    """Answer a query of your own over the tables records, rows and board."""
    published: bool = False
    """Also show RobustBench's published rows, as unverified."""

    @property
    def picture(self) -> Picture | None:
        """What figures are written as, where they are wished for."""
        found = next((one for one in _PICTURES if one == self.format), None)
        return found or (None if self.figures is None else "pdf")

    def check(self) -> None:
        """Raise `ConfigError` for options that do not go together."""
        text = self.format in _TEXTS and self.figures is None
        if self.figures is not None and self.format not in ("table", *_PICTURES):
            raise ConfigError(
                f"--figures are written as {_listed(_PICTURES)}, found --format {self.format}"
            )
        if self.picture is not None:
            if self.out is None:
                raise ConfigError("figures need --out, the folder for their files")
            if self.published or self.sort is not None or self.sql is not None:
                raise ConfigError("figures are of records; leave --published, --sort and --sql out")
        elif self.width is not None:
            raise ConfigError("--width is of figures; name them by --figures, or take --format pdf")
        if self.columns is not None and (not text or self.sql is not None):
            raise ConfigError(f"--columns are of a table: {_listed(_TEXTS)}, and without --sql")
        if self.columns == ():
            raise ConfigError("--columns needs names, such as --columns model clean robust")
        if self.like is not None:
            others = (self.columns, self.against, self.sort, self.sql)
            if not text or self.published or any(one is not None for one in others):
                raise ConfigError(
                    f"--like is shown as {_listed(_TEXTS)}, with --where and --out alone"
                )
        if self.sql is not None:
            if not text:
                raise ConfigError(
                    f"the answer to --sql is written as {_listed(_TEXTS)}, "
                    f"found --format {self.format}"
                )
            if self.against or self.where or self.sort or self.published:
                raise ConfigError(
                    "--sql goes with --format and --out alone; say the rest in the query"
                )
        if self.format == "html" and self.sort is not None:
            raise ConfigError(
                "the page sorts by its own headers; leave --sort out, or take --format"
            )
        if self.against is not None and (self.published or not (text or self.format == "html")):
            raise ConfigError(
                f"--against is shown as {_listed(_TEXTS)}, and without --published, which has no "
                "seeds"
            )
        if self.format == "robustbench":
            if self.out is None:
                raise ConfigError("--format robustbench needs --out, the folder for its files")
            if self.published:
                raise ConfigError(
                    "--published are RobustBench's own files; leave one of the two out"
                )


def board_command(options: BoardOptions, stderr: Console) -> int:
    """Read the records and show them in the wished form.

    Raises `ConfigError` for options that do not go together, and `RecordError` where there is
    nothing to show.
    """
    tell = partial(stderr.print, markup=False, soft_wrap=True)
    options.check()
    if options.sql is not None:
        _show(_answer(options, options.sql, tell), options, tell)
    elif options.like is not None:
        from robust_nc.report.board.formats import format_answer
        from robust_nc.report.board.papers import like_paper

        found = like_paper(_split(options)[0], options.like)
        rows = list(found.itertuples(index=False, name=None))
        _show(
            format_answer(list(map(str, found.columns)), rows, cast(Text, options.format)),
            options,
            tell,
        )
    elif options.picture is not None:
        _figures(options, options.picture, tell)
    elif options.format == "html":
        _page(options, tell)
    elif options.format == "bibtex":
        _show(_bibtex(*_split(options)), options, tell)
    elif options.format == "robustbench":
        from robust_nc.exchange.robustbench_json import export_tree

        assert options.out is not None
        count = len(export_tree(_split(options)[0], options.out))
        tell(f"wrote {count:,} files below {options.out}")
    else:
        from robust_nc.report.board.formats import format_table
        from robust_nc.report.board.render import terminal_width

        style, width = cast(Text, options.format), None if options.out else terminal_width()
        frame = _frame(options)
        _show(format_table(frame, style, columns=options.columns, width=width), options, tell)
    return 0


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _show(text: str, options: BoardOptions, tell: _Tell) -> None:
    if options.out is None:
        print(text)
        return
    from robust_nc.io.files import write_text

    write_text(options.out, text.removesuffix("\n") + "\n")
    tell(f"wrote {options.out}")


def _answer(options: BoardOptions, sql: str, tell: _Tell) -> str:
    from robust_nc.report.board.formats import format_answer
    from robust_nc.report.board.render import terminal_width
    from robust_nc.report.board.sql import query

    style, answer = cast(Text, options.format), query(options.results, sql)
    shown = answer.rows
    if style == "table" and len(shown) > _SHOWN:
        shown = shown[:_SHOWN]
        tell(f"the first {_SHOWN:,} of {len(answer.rows):,} rows; --format csv has all")
    width = None if options.out else terminal_width()
    return format_answer(answer.columns, shown, style, width=width)


def _frame(options: BoardOptions) -> "pd.DataFrame":
    """Return the rows to show of the leaderboard, or of differences to one head."""
    records = _records(options, needed=not options.published)
    if options.against is None:
        return _rows(options, records)
    from robust_nc.report.board.table import paired

    frame = paired(records, against=options.against)
    if frame.empty:
        raise RecordError(
            f"{options.results} holds no other head to compare with {options.against!r}"
        )
    return _chosen(options, frame)


def _records(options: BoardOptions, *, needed: bool = True) -> "list[Stored]":
    from robust_nc.record.folder import read_all

    records = read_all(options.results)
    if needed and not records:
        raise RecordError(
            f"{options.results} holds no records; run a suite first: robust-nc run quickstart"
        )
    return records


def _rows(options: BoardOptions, records: "list[Stored]") -> "pd.DataFrame":
    """Return the rows of the leaderboard that the conditions leave, published ones last."""
    import pandas as pd

    from robust_nc.report.board.table import leaderboard

    frames = [leaderboard(records)] if records else []
    if options.published:
        from robust_nc.exchange.robustbench_published import published_rows

        frames.append(published_rows())
    return _chosen(options, pd.concat(frames, ignore_index=True))


def _chosen(options: BoardOptions, frame: "pd.DataFrame") -> "pd.DataFrame":
    from robust_nc.report.board.querying import kept, ordered

    found = ordered(kept(frame, options.where), options.sort)
    if found.empty:
        conditions = " and ".join(options.where)
        raise RecordError(f"none of {len(frame):,} rows meets {conditions}; leave a condition out")
    return found


def _split(options: BoardOptions) -> "tuple[list[Stored], pd.DataFrame | None]":
    """Return the records and the published rows that the conditions leave."""
    records = _records(options)
    frame = _rows(options, records)
    theirs = _with_cards(frame[frame["state"] == "unverified"]) if options.published else None
    return _of_rows(records, frame), theirs


def _of_rows(records: "Sequence[Stored]", frame: "pd.DataFrame") -> "list[Stored]":
    """Return the records that rows of a leaderboard are made of, in the order of the rows."""
    from robust_nc.report.board.gather import identity

    key = ("suite", "dataset", "images", "protocol", "model", "head", "objective", "recipe")
    places: dict[tuple[str, ...], int] = {}
    for place, row in enumerate(frame[list(key)].itertuples(index=False, name=None)):
        places.setdefault(row, place)
    found: dict[int, list[Stored]] = defaultdict(list)
    for stored in records:
        what = identity(stored.record)
        found[places.get(tuple(str(getattr(what, name)) for name in key), -1)].append(stored)
    return [stored for place in sorted(set(found) - {-1}) for stored in found[place]]


def _with_cards(theirs: "pd.DataFrame") -> "pd.DataFrame":
    """Add to published rows what their cards say: authors, venue, link, ..."""
    import dataclasses

    import pandas as pd

    from robust_nc.exchange.robustbench_published import published_cards

    cards = published_cards()
    told = [dataclasses.asdict(cards[recipe]) for recipe in theirs["recipe"]]
    fields = pd.DataFrame(told, index=theirs.index, dtype=object)
    return theirs.join(fields.drop(columns=[name for name in fields if name in theirs]))


def _figures(options: BoardOptions, picture: Picture, tell: _Tell) -> None:
    """Write the figures of the rows that `--where` leaves, and say which are left out, and why."""
    from robust_nc.report.board.gather import gather_rows
    from robust_nc.report.figures.axes import inches_of
    from robust_nc.report.figures.saving import FIGURES, save_each

    assert options.out is not None
    for name in options.figures or ():  # before rows are read, which takes long
        if name not in FIGURES:
            raise unknown_name("figure", name, FIGURES)
    inches_of(options.width or "column")
    saved = save_each(
        gather_rows(_split(options)[0]),
        options.out,
        names=options.figures or FIGURES,
        words=picture == "png",
        format=picture,
        width=options.width,
    )
    for one in saved:
        if one.path is None:
            tell(f"no {one.name}: {one.skipped}")
    made = sum(one.path is not None for one in saved)
    if not made:
        raise RecordError(f"{options.results} holds nothing that these figures show")
    more = f", and {options.out / 'figures.tex'} with their captions" if picture == "pdf" else ""
    tell(f"wrote {made} figures into {options.out}{more}")


def _page(options: BoardOptions, tell: _Tell) -> None:
    """Write the pages. Ranks and figures there are of the rows that `--where` leaves."""
    records, theirs = _split(options)
    claims = () if options.where else _claims(options.results)
    if options.where:
        tell("the page holds, and ranks, what --where leaves")
    from robust_nc.claims.figure import write_figure
    from robust_nc.exchange.robustbench_published import published_rows
    from robust_nc.report.site.write import write_site
    from robust_nc.verification.pictures import adversarial_pictures

    page = write_site(
        records,
        options.out or options.results,
        published=theirs,
        beside=published_rows(),
        claims=claims,
        draw_claim=write_figure,
        pictures=adversarial_pictures,
    )
    tell(f"wrote {page}")


def _claims(results: Path) -> Sequence[Any]:
    """Read the answered claims of a results folder, or of the suites' folders in it."""
    from robust_nc.claims.answers import read_answers
    from robust_nc.claims.reading import ANSWERS

    folders = sorted({*results.glob(ANSWERS), *results.glob(f"*/{ANSWERS}")})
    return [answer for folder in folders for answer in read_answers(folder)]


def _bibtex(records: "Sequence[Stored]", theirs: "pd.DataFrame | None") -> str:
    from robust_nc.exchange.bibliography import bibtex, entries
    from robust_nc.exchange.robustbench_published import published_cards

    if theirs is None:
        return bibtex(records).removesuffix("\n")
    cards = [stored.record.card for stored in records if stored.record.card is not None]
    cards += [published_cards()[recipe] for recipe in theirs["recipe"]]
    return "\n\n".join([bibtex([]).removesuffix("\n"), *entries(cards)])

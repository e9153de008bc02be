"""`robust-nc board`: the leaderboard as text, as pages or files, or the answer to a query.

>>> from rich.console import Console
>>> try:
...     board_command(Path("results"), Wanted("html", sql="select 1"), Console())
... except ConfigError as error:
...     print(error)
the answer to --sql is written as table, csv, latex or markdown, found --format html
"""

import importlib.util
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from rich.console import Console

from robust_nc.exceptions import ConfigError, RecordError

# What takes long to import is imported where it is needed: a query is to be answered at once.
if TYPE_CHECKING:
    import pandas as pd

    from robust_nc.record.schema import Stored

Format = Literal["table", "csv", "latex", "markdown", "bibtex", "robustbench", "html"]
Text = Literal["table", "csv", "latex", "markdown"]

_TEXTS: tuple[Text, ...] = get_args(Text)
_MANY = 1000  # records, from which on the board is kept in the index
_SHOWN = 1000  # rows of an answer in a terminal


class Wanted(NamedTuple):
    """What to show, and how: the options of the verb."""

    format: Format = "table"
    out: Path | None = None
    against: str | None = None
    where: tuple[str, ...] = ()
    sort: str | None = None
    sql: str | None = None
    published: bool = False


def board_command(results: Path, wanted: Wanted, stderr: Console) -> int:
    """Read the records, or their index, and show them in the wished form.

    Raises `ConfigError` for options that do not go together, and `RecordError` where there is
    nothing to show.
    """

    def tell(text: str) -> None:
        stderr.print(text, markup=False, soft_wrap=True)

    _check(wanted)
    style = cast(Text, wanted.format)
    if wanted.sql is not None:
        _show(_answer(results, wanted.sql, style, tell), wanted.out, tell)
    elif wanted.format == "html":
        _page(results, wanted, tell)
    elif wanted.format in {"bibtex", "robustbench"}:
        _exchange(results, wanted, tell)
    else:
        from robust_nc.report.board.table import format_table

        _show(format_table(_frame(results, wanted, tell), style), wanted.out, tell)
    return 0


def _check(wanted: Wanted) -> None:
    text = wanted.format in _TEXTS
    if wanted.sql is not None:
        if not text:
            raise ConfigError(
                f"the answer to --sql is written as {_listed(_TEXTS)}, "
                f"found --format {wanted.format}"
            )
        if wanted.against or wanted.where or wanted.sort or wanted.published:
            raise ConfigError("--sql goes with --format and --out alone; say the rest in the query")
    if wanted.format == "html" and wanted.sort is not None:
        raise ConfigError("the page sorts by its own headers; leave --sort out, or take --format")
    if wanted.against is not None and (wanted.published or not (text or wanted.format == "html")):
        raise ConfigError(
            f"--against is shown as {_listed(_TEXTS)}, and without --published, which has no seeds"
        )
    if wanted.format == "robustbench":
        if wanted.out is None:
            raise ConfigError("--format robustbench needs --out, the folder for its files")
        if wanted.published:
            raise ConfigError("--published are RobustBench's own files; leave one of the two out")


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _show(text: str, out: Path | None, tell: Callable[[str], None]) -> None:
    if out is None:
        print(text)
        return
    from robust_nc.io.files import write_text

    write_text(out, text.removesuffix("\n") + "\n")
    tell(f"wrote {out}")


def _answer(results: Path, sql: str, style: Text, tell: Callable[[str], None]) -> str:
    from robust_nc.report.board.formats import plain_text
    from robust_nc.report.board.index import ask

    answer = ask(results, sql, tell=tell)
    shown = answer.rows
    if style == "table" and len(shown) > _SHOWN:
        shown = shown[:_SHOWN]
        tell(f"the first {_SHOWN:,} of {len(answer.rows):,} rows; --format csv has all")
    return plain_text(answer.columns, shown, style)


def _frame(results: Path, wanted: Wanted, tell: Callable[[str], None]) -> "pd.DataFrame":
    """Return the rows to show of the leaderboard, or of differences to one head."""
    if wanted.against is None:
        return _chosen(_board(results, wanted, tell), wanted)
    from robust_nc.report.board.table import paired

    frame = paired(_records(results), against=wanted.against)
    if frame.empty:
        raise RecordError(f"{results} holds no other head to compare with {wanted.against!r}")
    return _chosen(frame, wanted)


def _board(results: Path, wanted: Wanted, tell: Callable[[str], None]) -> "pd.DataFrame":
    """Return the leaderboard; that of many records is kept in the index, and made only once."""
    from robust_nc.report.board.index import scan
    from robust_nc.report.board.table import leaderboard

    count = len(scan(results).found)
    if not count and wanted.published:
        return _with_published(None)
    if count >= _MANY and importlib.util.find_spec("duckdb"):
        from robust_nc.report.board.index import board_frame

        frame = board_frame(results, tell=tell)
    else:
        frame = leaderboard(_records(results))
    return _with_published(frame) if wanted.published else frame


def _records(results: Path) -> "list[Stored]":
    from robust_nc.record.folder import read_all

    records = read_all(results)
    if not records:
        raise RecordError(
            f"{results} holds no records; run a suite first: robust-nc run quickstart"
        )
    return records


def _with_published(frame: "pd.DataFrame | None") -> "pd.DataFrame":
    import pandas as pd

    from robust_nc.exchange.robustbench_published import published_rows

    theirs = published_rows()
    return theirs if frame is None else pd.concat([frame, theirs], ignore_index=True)


def _chosen(frame: "pd.DataFrame", wanted: Wanted) -> "pd.DataFrame":
    from robust_nc.report.board.querying import kept, ordered

    found = ordered(kept(frame, wanted.where), wanted.sort)
    if found.empty:
        raise RecordError(
            f"none of {len(frame):,} rows meets {' and '.join(wanted.where)}; leave a condition out"
        )
    return found


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


def _split(results: Path, wanted: Wanted) -> "tuple[list[Stored], pd.DataFrame | None]":
    """Return the records and the published rows that the conditions leave."""
    from robust_nc.report.board.table import leaderboard

    records = _records(results)
    frame = leaderboard(records)
    if not wanted.published:
        return _of_rows(records, _chosen(frame, wanted)), None
    frame = _chosen(_with_published(frame), wanted)
    return _of_rows(records, frame), _with_cards(frame[frame["badge"] == "unverified"])


def _with_cards(theirs: "pd.DataFrame") -> "pd.DataFrame":
    """Add to published rows what their cards say: authors, venue, link, ..."""
    import dataclasses

    import pandas as pd

    from robust_nc.exchange.robustbench_published import published_cards

    cards = published_cards()
    told = [dataclasses.asdict(cards[recipe]) for recipe in theirs["recipe"]]
    fields = pd.DataFrame(told, index=theirs.index, dtype=object)
    return theirs.join(fields.drop(columns=[name for name in fields if name in theirs]))


def _page(results: Path, wanted: Wanted, tell: Callable[[str], None]) -> None:
    """Write the pages. Ranks and figures there are of the rows that `--where` leaves."""
    write_site = _site_writer()
    records, theirs = _split(results, wanted)
    claims = () if wanted.where else _claims(results)
    if wanted.where:
        tell("the page holds, and ranks, what --where leaves")
    page = write_site(records, wanted.out or results, published=theirs, claims=claims)
    tell(f"wrote {page}")


def _claims(results: Path) -> Sequence[Any]:
    """Read the answered claims of a results folder, or of the suites' folders in it."""
    from robust_nc.claims.answers import read_answers
    from robust_nc.claims.reading import ANSWERS

    folders = sorted({*results.glob(ANSWERS), *results.glob(f"*/{ANSWERS}")})
    return [answer for folder in folders for answer in read_answers(folder)]


def _exchange(results: Path, wanted: Wanted, tell: Callable[[str], None]) -> None:
    records, theirs = _split(results, wanted)
    if wanted.format == "bibtex":
        _show(_bibtex(records, theirs), wanted.out, tell)
        return
    from robust_nc.exchange.robustbench_json import export_tree

    assert wanted.out is not None
    tell(f"wrote {len(export_tree(records, wanted.out)):,} files below {wanted.out}")


def _bibtex(records: "Sequence[Stored]", theirs: "pd.DataFrame | None") -> str:
    from robust_nc.exchange.bibliography import bibtex, entries
    from robust_nc.exchange.robustbench_published import published_cards

    if theirs is None:
        return bibtex(records).removesuffix("\n")
    cards = [stored.record.card for stored in records if stored.record.card is not None]
    cards += [published_cards()[recipe] for recipe in theirs["recipe"]]
    return "\n\n".join([bibtex([]).removesuffix("\n"), *entries(cards)])


def _site_writer() -> Callable[..., Any]:
    """Import what draws the page; figures are an extra."""
    try:
        from robust_nc.report.site.write import write_site
    except ImportError as error:
        raise ConfigError(
            f"the page needs {error.name}, which is not installed: pip install 'robust_nc[report]'"
        ) from None
    return write_site

"""A leaderboard, paired differences and answers of SQL, written as tables of text (`render`)."""

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from robust_nc.exceptions import RecordError, unknown_name
from robust_nc.record.standing import CLAIMED
from robust_nc.report.board.render import (
    MISSING,
    WIDTH,
    Section,
    Style,
    check_style,
    is_missing,
    render,
    render_csv,
)
from robust_nc.statistics.significance import ALPHA

GAP = "gap, points"
INTERVALS = {
    "t95": "95 % Student t interval over seeds",
    "range": "smallest and largest of 2 seeds",
    "wilson": "95 % Wilson interval over the examples of one seed",
}
RANKS = (
    "#: the tier; the best row of one is significantly better than the first of the next (exact "
    "McNemar over examples or paired t over seeds, Holm over what it is compared with, 0.05)"
)
NULLS = (
    "null of NC1 attacked: each example put on the vertex it leaped to; "
    "null of NC1 landed (grouped by nearest vertex): noise of the same variance"
)


def format_table(
    frame: pd.DataFrame,
    style: Style = "table",
    *,
    columns: Sequence[str] | None = None,
    width: int | None = None,
) -> str:
    """Write a leaderboard, or a frame of paired differences, as text.

    `csv` holds all columns, as numbers; the others show percentages with intervals, one table per
    board, each captioned with its number of examples and seeds. `columns` of the frame are shown
    instead, where given; a `table` is `width` characters wide (132). Raises `RecordError` for an
    empty frame and `UnknownNameError` for an unknown style or column.
    """
    check_style(style)
    if frame.empty:
        raise RecordError("there is nothing to show: the table has no rows")
    for name in columns or ():
        if name not in frame:
            raise unknown_name("column", name, list(frame.columns))
    if style == "csv":
        shown = frame[list(columns or frame.columns)]
        return render_csv(list(shown.columns), list(shown.itertuples(index=False, name=None)))
    return "\n\n".join(
        render(section._replace(width=width or WIDTH), style)
        for section in sections(frame, columns)
    )


def format_answer(
    columns: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
    style: Style,
    *,
    width: int | None = None,
) -> str:
    """Write what a query gave; numbers in 6 digits, except in CSV, which has them all.

    A `table` has `width` characters, where given.

    Raises `UnknownNameError` for an unknown style.

    >>> print(format_answer(["name", "value"], [("a", 0.123456789), ("b", None)], "table"))
    name     value
    --------------
    a     0.123457
    b            -
    """
    check_style(style)
    if style == "csv":
        return render_csv(columns, rows)
    numbers = tuple(
        any(_is_number(row[i]) for row in rows)
        and all(row[i] is None or _is_number(row[i]) for row in rows)
        for i in range(len(columns))
    )
    cells = [tuple(map(_cell, row)) for row in rows]
    spare = tuple(range(len(columns) - 1, 0, -1))
    return render(Section(tuple(columns), cells, numbers, width=width, spare=spare), style)


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if is_missing(value):
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def sections(frame: pd.DataFrame, columns: Sequence[str] | None = None) -> list[Section]:
    """Cut a leaderboard (or paired differences) into tables of what is comparable.

    They show the named columns of the frame, or those that we choose.
    """
    if "difference" in frame:
        boards, build = ["dataset", "ball", "protocol", "examples"], _paired_section
    else:
        boards, build = ["dataset", "ball", "protocol", "examples", "images"], _board_section
    found = [build(part, columns) for _, part in frame.groupby(boards, sort=False)]
    labels: dict[str, int] = {}
    for place, section in enumerate(found):
        label = "tab:" + re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
        labels[label] = again = labels.get(label, 0) + 1
        found[place] = section._replace(label=f"{label}-{again}" if again > 1 else label)
    return found


def percent(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """Write a share in percent, with its interval where there is one.

    >>> percent(0.5), percent(0.5, 0.416, 0.584), percent(float("nan"))
    ('50.0', '50.0 [41.6, 58.4]', '-')
    """
    if not math.isfinite(value):
        return MISSING
    ends = f" [{100 * low:.1f}, {100 * high:.1f}]" if math.isfinite(low + high) else ""
    return f"{100 * value:.1f}{ends}"


def points(value: float) -> str:
    """Write a difference of shares in points.

    >>> points(0.081), points(0.0), points(float("nan"))
    ('+8.1', '0.0', '-')
    """
    rounded = round(100 * value, 1) if math.isfinite(value) else math.nan
    if rounded == 0:
        return "0.0"
    return f"{rounded:+.1f}" if math.isfinite(rounded) else MISSING


def short(value: float) -> str:
    """Write a number in three digits.

    >>> short(0.12345), short(1234567.0), short(float("nan"))
    ('0.123', '1.23e+06', '-')
    """
    return f"{value:.3g}" if math.isfinite(value) else MISSING


def number(value: float | None) -> str:
    """Write a number in four digits, and none as a dash.

    >>> number(0.99954), number(-0.0), number(None)
    ('0.9995', '0', '-')
    """
    return MISSING if value is None else f"{value + 0.0:.4g}"


def interval_note(kinds: set[str]) -> str:
    """Say what the intervals of a table are."""
    known = [text for kind, text in INTERVALS.items() if kind in kinds]
    return f"brackets: {'; '.join(known)}" if known else "no intervals"


def display_names(frame: pd.DataFrame) -> list[str]:
    """Model names; where a name stands twice, with its suite and recipe."""
    twice = frame["model"].duplicated(keep=False)
    return [
        f"{row['model']} ({row['suite']}, {row['recipe'][:6]})" if again else str(row["model"])
        for again, row in zip(twice, frame.to_dict("records"), strict=True)
    ]


def count_text(low: int, high: int, noun: str) -> str:
    """Write a range of counts with its noun.

    >>> count_text(3, 3, "seed"), count_text(1, 3, "seed"), count_text(1, 1, "seed")
    ('3 seeds', '1 to 3 seeds', '1 seed')
    """
    number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{number} {noun}{'' if high == 1 else 's'}"


def has_gap(frame: pd.DataFrame) -> bool:
    """Whether any model of a board was judged by a weaker protocol, too."""
    return "gap" in frame and bool(frame["gap"].notna().any())


def told_columns(frame: pd.DataFrame) -> dict[str, tuple[str, Callable[[Any], str]]]:
    """Columns of a board that are shown where any row has something to say: header, writer."""
    known: dict[str, tuple[str, Callable[[Any], str]]] = {
        "state": ("state", str),
        "collapse_radius": ("collapse radius", short),
        "leap_layer": ("leap layer", short),
    }
    return {
        key: column
        for key, column in known.items()
        if (~frame[key].isin(["", CLAIMED]) & frame[key].notna()).any()
    }


def standing_notes(frame: pd.DataFrame, *, ranks: bool = True) -> list[str]:
    """Say what ranks mean, which rows have none and why, and what challenges took."""
    notes = [RANKS] if ranks and frame["rank"].notna().any() else []
    by_value = frame["order"].notna()
    signs = (("(n), by value and not tested", by_value), ("-, not ranked", ~by_value))
    for sign, which in signs if ranks else ():
        reasons = sorted(set(frame["unranked"][which]) - {""})
        if reasons:
            notes.append(f"{sign}: {', '.join(reasons)}")
    taken, pending = int(frame["challenged"].sum()), int(frame["pending"].sum())
    if taken:
        notes.append(f"after challenges, which took {count_text(taken, taken, 'example')}")
    if pending:
        notes.append(f"{count_text(pending, pending, 'challenge')} that nobody judged yet")
    return notes


def leader(frame: pd.DataFrame) -> str:
    """Say which row leads one board, by how much, and how sure that is; "" where none does.

    >>> row = {"rank": 1.0, "order": math.nan, "model": "a", "robust": 0.5, "lead_over": "b"}
    >>> row |= {"lead": 0.02, "lead_p": 0.2, "lead_test": "paired over 3 seeds"}
    >>> leader(pd.DataFrame([row]))[-70:]
    '2.0 points above b (p = 0.2, paired over 3 seeds), which may be chance'
    """
    placed = frame[frame["rank"].eq(1) | frame["order"].eq(1)]
    if placed.empty:
        return ""
    row = placed.iloc[0]
    told = f"{row['model']} leads with {percent(row['robust'])} % robust"
    if not row["lead_over"]:
        return told
    told += f", {100 * row['lead']:.1f} points above {row['lead_over']} "
    told += f"(p = {row['lead_p']:.2g}, {row['lead_test']})"
    return told if row["lead_p"] < ALPHA else f"{told}, which may be chance"


def place_text(row: Mapping[Hashable, Any]) -> str:
    """Write the place of a row in its table: its tier, or in brackets its place by value."""
    if math.isfinite(row["rank"]):
        return f"{row['rank']:.0f}"
    return f"({row['order']:.0f})" if math.isfinite(row["order"]) else MISSING


class _Column(NamedTuple):
    """A column as it is shown: its header, how a row is written in it, whether it is of numbers."""

    header: str
    write: Callable[[Mapping[Hashable, Any]], str]
    number: bool = True


def _interval_of(name: str) -> Callable[[Mapping[Hashable, Any]], str]:
    return lambda row: percent(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _with_null(name: str, null: str) -> Callable[[Mapping[Hashable, Any]], str]:
    return lambda row: f"{short(row[name])} ({short(row[null])})"


def _cells(name: str, write: Callable[[Any], str]) -> Callable[[Mapping[Hashable, Any]], str]:
    return lambda row: write(row[name])


_BOARD = {
    "rank": _Column("#", place_text, number=False),
    "model": _Column("model", _cells("name", str), number=False),
    "seeds": _Column("seeds", _cells("seeds", str)),
    "clean": _Column("clean %", _interval_of("clean")),
    "robust": _Column("robust %", _interval_of("robust")),
    "gap": _Column(GAP, _cells("gap", points)),
    "leap_rate": _Column("leap %", _cells("leap_rate", percent)),
    "landed": _Column("landed %", _cells("landed", percent)),
    "nc1_clean": _Column("NC1 clean", _cells("nc1_clean", short)),
    "nc1_attacked": _Column("NC1 attacked (null)", _with_null("nc1_attacked", "nc1_leap_null")),
    "nc1_landed": _Column("NC1 landed (null)", _with_null("nc1_landed", "nc1_landed_null")),
}
_PAIRED = {
    **{
        key: _Column(header, _cells(key, str), number=False)
        for key, header in (
            *(("objective", "objective"), ("model", "model"), ("against", "minus")),
            ("measure", "measure"),
        )
    },
    "seeds": _Column("seeds", _cells("seeds", str)),
    "difference": _Column("difference", lambda row: _difference(row)),
}
# What a terminal leaves out first, where it has no room, after the columns of `told_columns`.
_SPARE = (
    *("nc1_landed", "nc1_attacked", "nc1_clean", "landed", "seeds"),
    *("objective", "leap_rate", "gap", "state"),
)
_SHARES = ("clean", "robust", "leap_rate", "landed")
_OTHER_SHARES = ("robust_beside", "robust_last", "bound", "lead")


def _column(frame: pd.DataFrame, name: str) -> _Column:
    """Show a column of a board that is not shown unless it is asked for."""
    numbers = pd.api.types.is_numeric_dtype(frame[name])
    words = name.replace("_", " ")
    if name in _OTHER_SHARES or name.removesuffix("_low").removesuffix("_high") in _SHARES:
        return _Column(f"{words} %", _cells(name, percent))
    return _Column(words, _cells(name, _cell), number=numbers)


def _board_section(frame: pd.DataFrame, columns: Sequence[str] | None) -> Section:
    told = {
        key: _Column(header, _cells(key, write))
        for key, (header, write) in told_columns(frame).items()
    }
    frame, known = frame.assign(name=display_names(frame)), _BOARD | told
    chosen = columns or [key for key in known if key != "gap" or has_gap(frame)]
    shown = {key: known.get(key) or _column(frame, key) for key in chosen}
    notes = [
        _over(frame),
        *([interval_note(set(frame["interval"]))] if {"clean", "robust"} & {*shown} else []),
        *standing_notes(frame, ranks="rank" in shown),
    ]
    if "gap" in shown:
        weaker = sorted(set(frame["beside"]) - {""})
        verb = "flatters" if len(weaker) == 1 else "flatter"
        notes.append(f"gap: points by which {', '.join(weaker)} {verb}")
    if {"nc1_attacked", "nc1_landed"} & {*shown}:
        notes.append(NULLS)
    caption = ". ".join(filter(None, [leader(frame), "; ".join(notes)]))
    found = _section(frame, shown, caption, [key for key in told if key != "state"])
    tested = frame["rank"].notna().any()
    best = frame["rank" if tested else "order"].eq(1).to_numpy().nonzero()[0]
    if "robust" not in shown or not len(best):
        return found
    bold = frozenset((int(row), list(shown).index("robust")) for row in best)
    means = "the first tier" if tested else "the first by value, which is not tested"
    return found._replace(bold=bold, bold_means=means)


def _paired_section(frame: pd.DataFrame, columns: Sequence[str] | None) -> Section:
    shown = {key: _PAIRED.get(key) or _column(frame, key) for key in columns or _PAIRED}
    note = interval_note(set(frame["interval"]))
    what = "differences seed by seed, of accuracies and rates in points of a percent"
    return _section(frame, shown, f"{what}; {_over(frame)}; {note}", [])


def _section(
    frame: pd.DataFrame, columns: Mapping[str, _Column], caption: str, extra: Sequence[str]
) -> Section:
    """Make the table of these columns; a terminal may spare the `extra` ones first."""
    keys = list(columns)
    return Section(
        tuple(column.header for column in columns.values()),
        [
            tuple(column.write(row) for column in columns.values())
            for row in frame.to_dict("records")
        ],
        tuple(column.number for column in columns.values()),
        _title(frame),
        caption,
        width=WIDTH,
        spare=tuple(keys.index(key) for key in (*extra, *_SPARE) if key in keys),
        extra=sum(key in keys for key in extra),
    )


def _difference(row: Mapping[Hashable, Any]) -> str:
    """Write a difference as the board writes what it is of: in points with one digit, or short."""
    write = points if row["measure"] in _SHARES else _signed
    value, low, high = (row[name] for name in ("difference", "low", "high"))
    ends = f" [{write(low)}, {write(high)}]" if math.isfinite(low + high) else ""
    return f"{write(value)}{ends}"


def _signed(value: float) -> str:
    return f"{value:+.3g}" if math.isfinite(value) else MISSING


def _title(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    return f"{first['dataset']}, {first['ball'] or 'no ball'}, protocol {first['protocol']}"


def _over(frame: pd.DataFrame) -> str:
    seeds = count_text(int(frame["seeds"].min()), int(frame["seeds"].max()), "seed")
    examples = count_text(int(frame["examples"].min()), int(frame["examples"].max()), "example")
    return f"{examples}, {seeds}"

"""A leaderboard, paired differences and answers of SQL, written as tables of text (`render`)."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from robust_nc.exceptions import RecordError
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


def format_table(frame: pd.DataFrame, style: Style = "table") -> str:
    """Write a leaderboard, or a frame of paired differences, as text.

    `csv` holds all columns, as numbers; the others show percentages with intervals, one table per
    board, each captioned with its number of examples and seeds. Raises `RecordError` for an empty
    frame and `UnknownNameError` for an unknown style.
    """
    check_style(style)
    if frame.empty:
        raise RecordError("there is nothing to show: the table has no rows")
    if style == "csv":
        return render_csv(list(frame.columns), list(frame.itertuples(index=False, name=None)))
    return "\n\n".join(render(section, style) for section in sections(frame))


def format_answer(columns: Sequence[str], rows: Sequence[tuple[Any, ...]], style: Style) -> str:
    """Write what a query gave; numbers in 6 digits, except in CSV, which has them all.

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
    return render(Section(tuple(columns), cells, numbers), style)


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if is_missing(value):
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def sections(frame: pd.DataFrame) -> list[Section]:
    """Cut a leaderboard (or paired differences) into tables of what is comparable."""
    if "difference" in frame:
        boards, build = ["dataset", "ball", "protocol", "examples"], _paired_section
    else:
        boards, build = ["dataset", "ball", "protocol", "examples", "images"], _board_section
    return [build(part) for _, part in frame.groupby(boards, sort=False)]


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


def standing_notes(frame: pd.DataFrame) -> list[str]:
    """Say what ranks mean, which rows have none and why, and what challenges took."""
    notes = [RANKS] if frame["rank"].notna().any() else []
    by_value = frame["order"].notna()
    for sign, which in (("(n), by value and not tested", by_value), ("-, not ranked", ~by_value)):
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


def _board_section(frame: pd.DataFrame) -> Section:
    gaps, told = has_gap(frame), told_columns(frame)
    headers = (
        *("#", "model", "seeds", "clean %", "robust %"),
        *((GAP,) if gaps else ()),
        *("leap %", "landed %", "NC1 clean", "NC1 attacked (null)", "NC1 landed (null)"),
        *(header for header, _ in told.values()),
    )
    rows = [
        (
            place_text(row),
            name,
            str(row["seeds"]),
            percent(row["clean"], row["clean_low"], row["clean_high"]),
            percent(row["robust"], row["robust_low"], row["robust_high"]),
            *((points(row["gap"]),) if gaps else ()),
            percent(row["leap_rate"]),
            percent(row["landed"]),
            short(row["nc1_clean"]),
            f"{short(row['nc1_attacked'])} ({short(row['nc1_leap_null'])})",
            f"{short(row['nc1_landed'])} ({short(row['nc1_landed_null'])})",
            *(write(row[key]) for key, (_, write) in told.items()),
        )
        for name, row in zip(display_names(frame), frame.to_dict("records"), strict=True)
    ]
    notes = [_over(frame), interval_note(set(frame["interval"])), *standing_notes(frame)]
    if gaps:
        weaker = sorted(set(frame["beside"]) - {""})
        verb = "flatters" if len(weaker) == 1 else "flatter"
        notes.append(f"gap: points by which {', '.join(weaker)} {verb}")
    caption = ". ".join(filter(None, [leader(frame), "; ".join([*notes, NULLS])]))
    return _section(frame, headers, rows, caption, names=2, extra=len(told.keys() - {"state"}))


def _paired_section(frame: pd.DataFrame) -> Section:
    headers = ("objective", "model", "minus", "measure", "seeds", "difference")
    rows = [
        (
            row["objective"],
            row["model"],
            row["against"],
            row["measure"],
            str(row["seeds"]),
            _signed(row["difference"], row["low"], row["high"]),
        )
        for row in frame.to_dict("records")
    ]
    note = interval_note(set(frame["interval"]))
    caption = f"differences seed by seed, accuracies and rates as shares; {_over(frame)}; {note}"
    return _section(frame, headers, rows, caption, names=4)


def _section(
    frame: pd.DataFrame,
    headers: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    caption: str,
    *,
    names: int,
    extra: int = 0,
) -> Section:
    numbers = tuple(i >= names for i in range(len(headers)))
    return Section(headers, rows, numbers, _title(frame), caption, width=WIDTH, extra=extra)


def _signed(value: float, low: float, high: float) -> str:
    ends = f" [{low:+.3g}, {high:+.3g}]" if math.isfinite(low + high) else ""
    return f"{value:+.3g}{ends}"


def _title(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    return f"{first['dataset']}, {first['ball'] or 'no ball'}, protocol {first['protocol']}"


def _over(frame: pd.DataFrame) -> str:
    seeds = count_text(int(frame["seeds"].min()), int(frame["seeds"].max()), "seed")
    examples = count_text(int(frame["examples"].min()), int(frame["examples"].max()), "example")
    return f"{examples}, {seeds}"

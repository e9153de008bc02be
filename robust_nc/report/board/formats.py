"""Tables as text: for a terminal, CSV, LaTeX (booktabs), Markdown.

Names come from records that others wrote, so each format escapes them (`io.text`).
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import pandas as pd

from robust_nc.exceptions import RecordError, unknown_name
from robust_nc.io.text import escape_latex, escape_markdown, printable
from robust_nc.report.board.terminal import Section as Section
from robust_nc.report.board.terminal import terminal_table

Style = Literal["table", "csv", "latex", "markdown"]

GAP = "gap, points"
MISSING = "-"
INTERVALS = {
    "t95": "95 % Student t interval over seeds",
    "range": "smallest and largest of 2 seeds",
    "wilson": "95 % Wilson interval over the examples of one seed",
}
RANKS = (
    "#: 1 + the number of rows that are significantly better (exact McNemar over examples or "
    "paired t over seeds, Holm over the table, 0.05)"
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
    if style not in get_args(Style):
        raise unknown_name("format", style, get_args(Style))
    if frame.empty:
        raise RecordError("there is nothing to show: the table has no rows")
    if style == "csv":
        return frame.to_csv(index=False, lineterminator="\n").removesuffix("\n")
    render = {"table": terminal_table, "latex": _latex, "markdown": _markdown}[style]
    return "\n\n".join(render(section) for section in sections(frame))


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


def count(low: int, high: int, noun: str) -> str:
    """Write a range of counts with its noun.

    >>> count(3, 3, "seed"), count(1, 3, "seed"), count(1, 1, "seed")
    ('3 seeds', '1 to 3 seeds', '1 seed')
    """
    number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{number} {noun}{'' if high == 1 else 's'}"


def has_gap(frame: pd.DataFrame) -> bool:
    """Whether any model of a board was judged by a weaker protocol, too."""
    return "gap" in frame and bool(frame["gap"].notna().any())


def rank_text(rank: float) -> str:
    """Write a rank, or that there is none.

    >>> rank_text(2.0), rank_text(float("nan"))
    ('2', '-')
    """
    return f"{rank:.0f}" if math.isfinite(rank) else MISSING


def told_columns(frame: pd.DataFrame) -> dict[str, tuple[str, Callable[[Any], str]]]:
    """Columns of a board that are shown where any row has something to say: header, writer."""
    known: dict[str, tuple[str, Callable[[Any], str]]] = {
        "badge": ("badge", lambda badge: badge or MISSING),
        "collapse_radius": ("collapse radius", short),
        "leap_layer": ("leap layer", short),
    }
    told = {key for key in known if (frame[key].ne("") & frame[key].notna()).any()}
    return {key: column for key, column in known.items() if key in told}


def standing_notes(frame: pd.DataFrame) -> list[str]:
    """Say what ranks mean, which rows have none and why, and what challenges took."""
    notes = [RANKS] if frame["rank"].notna().any() else []
    reasons = sorted(set(frame["unranked"]) - {""})
    if reasons:
        notes.append(f"not ranked (-): {', '.join(reasons)}")
    taken = int(frame["challenged"].sum())
    if taken:
        notes.append(f"after challenges, which took {count(taken, taken, 'example')}")
    return notes


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
            rank_text(row["rank"]),
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
    caption = "; ".join([*notes, NULLS])
    return Section(
        _title(frame), caption, headers, rows, names=2, extra=len(told.keys() - {"badge"})
    )


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
    return Section(_title(frame), caption, headers, rows, names=4)


def _signed(value: float, low: float, high: float) -> str:
    ends = f" [{low:+.3g}, {high:+.3g}]" if math.isfinite(low + high) else ""
    return f"{value:+.3g}{ends}"


def _title(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    return f"{first['dataset']}, {first['ball'] or 'no ball'}, protocol {first['protocol']}"


def _over(frame: pd.DataFrame) -> str:
    seeds = count(int(frame["seeds"].min()), int(frame["seeds"].max()), "seed")
    examples = count(int(frame["examples"].min()), int(frame["examples"].max()), "example")
    return f"{examples}, {seeds}"


def _latex(section: Section) -> str:
    columns = "l" * section.names + "r" * (len(section.headers) - section.names)
    lines = [" & ".join(map(escape_latex, row)) + r" \\" for row in section.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(f'{section.title}: {section.caption}.')}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(escape_latex, section.headers)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _markdown(section: Section) -> str:
    def line(cells: tuple[str, ...], escape: Callable[[str], str]) -> str:
        shown = [escape(cell) if i < section.names else cell for i, cell in enumerate(cells)]
        return f"| {' | '.join(shown)} |"

    rules = ["---" if i < section.names else "---:" for i in range(len(section.headers))]
    return "\n".join(
        [
            f"**{escape_markdown(section.title)}**",
            "",
            line(section.headers, str),
            f"| {' | '.join(rules)} |",
            *(line(row, escape_markdown) for row in section.rows),
            "",
            f"{escape_markdown(section.caption)}.",
        ]
    )


_GAP = "  "
Rows = Sequence[tuple[Any, ...]]


def plain_text(columns: Sequence[str], rows: Rows, style: Style) -> str:
    """Write columns and rows as text; numbers in 6 digits, except in CSV, which has them all.

    Raises `UnknownNameError` for an unknown style.
    """
    if style not in get_args(Style):
        raise unknown_name("format", style, get_args(Style))
    if style == "csv":
        return _csv(columns, rows)
    numbers = [
        any(_is_number(row[i]) for row in rows)
        and all(row[i] is None or _is_number(row[i]) for row in rows)
        for i in range(len(columns))
    ]
    cells = [tuple(map(_cell, row)) for row in rows]
    render = {"table": _terminal, "latex": _plain_latex, "markdown": _plain_markdown}[style]
    return render(tuple(columns), cells, numbers)


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _csv(columns: Sequence[str], rows: Rows) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().removesuffix("\n")


def _terminal(columns: tuple[str, ...], cells: Rows, numbers: list[bool]) -> str:
    shown = [[printable(cell) for cell in row] for row in (columns, *cells)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(columns))]
    rules = ["-" * len(cell) for cell in shown[0]]
    lines = []
    for row in (shown[0], rules, *shown[1:]):
        aligned = zip(row, widths, numbers, strict=True)
        padded = [
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in aligned
        ]
        lines.append(_GAP.join(padded).rstrip())
    return "\n".join(lines)


def _plain_latex(columns: tuple[str, ...], cells: Rows, numbers: list[bool]) -> str:
    def line(row: tuple[str, ...]) -> str:
        return " & ".join(map(escape_latex, row)) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numbers)}}}",
            r"\toprule",
            line(columns),
            r"\midrule",
            *map(line, cells),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _plain_markdown(columns: tuple[str, ...], cells: Rows, numbers: list[bool]) -> str:
    rules = ["---:" if right else "---" for right in numbers]
    rows = [" | ".join(map(escape_markdown, row)) for row in cells]
    head = " | ".join(map(escape_markdown, columns))
    return "\n".join(f"| {row} |" for row in (head, " | ".join(rules), *rows))

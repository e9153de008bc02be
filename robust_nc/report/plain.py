"""Any table as text, each column as it is: what a query gave, for a terminal, CSV, LaTeX, Markdown.

>>> print(plain_text(("head", "robust"), [("etf", 0.5), ("linear", None)], "table"))
head    robust
----    ------
etf        0.5
linear       -
"""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any, get_args

from robust_nc.exceptions import unknown_name
from robust_nc.report.formats import MISSING, Style, escape_latex, escape_markdown

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
    render = {"table": _terminal, "latex": _latex, "markdown": _markdown}[style]
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
    shown = [[_printable(cell) for cell in row] for row in (columns, *cells)]
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


def _latex(columns: tuple[str, ...], cells: Rows, numbers: list[bool]) -> str:
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


def _markdown(columns: tuple[str, ...], cells: Rows, numbers: list[bool]) -> str:
    rules = ["---:" if right else "---" for right in numbers]
    rows = [" | ".join(map(escape_markdown, row)) for row in cells]
    head = " | ".join(map(escape_markdown, columns))
    return "\n".join(f"| {row} |" for row in (head, " | ".join(rules), *rows))


def _printable(text: str) -> str:
    """Replace what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)

"""One table as text: for a terminal, CSV, LaTeX (booktabs) or Markdown, whatever is in it.

Names come from records that others wrote, so each format makes them harmless (`io.text`).

>>> table = Section(("model", "clean %"), [("a", "90.1")], (False, True), "digits", "2 rows", 80)
>>> print(render(table, "table"))
digits
       clean
model      %
------------
a       90.1
2 rows
"""

import csv
import io
import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from rich.cells import cell_len

from robust_nc.exceptions import unknown_name
from robust_nc.io.text import escape_latex, escape_markdown, printable

Style = Literal["table", "csv", "latex", "markdown"]

WIDTH = 132  # of a terminal that a leaderboard fits
MISSING = "-"
_GAP = "  "
_NAME = 40  # characters that a name is given before extra columns are
_SHORTEST = 8  # that a name is ever given


class Section(NamedTuple):
    """One table as it is shown; `numbers` says which columns are set to the right.

    Where it has a `width`, a terminal shows it in so many columns: words above numbers are folded,
    the last `extra` columns left out where names would have to give way to them, names broken.
    """

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: tuple[bool, ...]
    title: str = ""
    caption: str = ""
    width: int | None = None
    extra: int = 0

    @property
    def names(self) -> int:
        """How many columns in front of the first number there are."""
        return (*self.numbers, True).index(True)


def check_style(style: str) -> None:
    """Raise `UnknownNameError` for what is none of the styles."""
    if style not in get_args(Style):
        raise unknown_name("format", style, get_args(Style))


def render(table: Section, style: Literal["table", "latex", "markdown"]) -> str:
    """Write one table as text."""
    return {"table": _terminal, "latex": _latex, "markdown": _markdown}[style](table)


def render_csv(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> str:
    """Write rows of values as CSV: every digit of a number, nothing where one is missing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([None if is_missing(value) else value for value in row] for row in rows)
    return text.getvalue().removesuffix("\n")


def is_missing(value: Any) -> bool:
    """Whether a value of a table says that there is none."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def aligned(rows: Sequence[Sequence[str]], numbers: Sequence[bool] = ()) -> list[str]:
    """Set cells in columns: numbers to the right, all else to the left; rows may be short.

    >>> aligned([("a", "12"), ("long", "3")], (False, True))
    ['a     12', 'long   3']
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in itertools.zip_longest(*shown, fillvalue="")]

    def padded(cell: str, width: int, right: bool) -> str:
        space = " " * (width - cell_len(cell))
        return space + cell if right else cell + space

    right = [*numbers, *[False] * len(widths)]
    return [_GAP.join(map(padded, row, widths, right)).rstrip() for row in shown]


def _terminal(table: Section) -> str:
    grid = [
        [_folded(table, cell, i) for i, cell in enumerate(row)]
        for row in (table.headers, *table.rows)
    ]
    widths = [
        max(cell_len(line) for cell in column for line in cell)
        for column in zip(*grid, strict=True)
    ]
    kept, caption = list(range(len(widths))), table.caption

    def total(name: int) -> int:
        """Width of what is kept, where names have at most so many characters."""
        found = (widths[i] if table.numbers[i] else min(widths[i], name) for i in kept)
        return sum(found) + len(_GAP) * (len(kept) - 1)

    if table.width is not None:
        first, left_out = len(kept) - table.extra, []
        while len(kept) > first and total(_NAME) > table.width:
            left_out.append(table.headers[kept.pop(first)])
        if left_out:
            caption += f"; no room for {', '.join(left_out)}: see the other formats"
        name = max(widths)
        while total(name) > table.width and name > _SHORTEST:
            name -= 1
        for row, i in itertools.product(grid[1:], kept):
            row[i] = row[i] if table.numbers[i] else textwrap.wrap(row[i][0], name)
    heads, *rows = ([row[i] for i in kept] for row in grid)
    # Headers stand at the foot of their line, all else at its head.
    height = max(map(len, heads))
    above = zip(*([""] * (height - len(head)) + head for head in heads), strict=True)
    below = (line for row in rows for line in itertools.zip_longest(*row, fillvalue=""))
    lines = aligned([*above, *below], [table.numbers[i] for i in kept])
    lines.insert(height, "-" * max(map(cell_len, lines)))
    around = (
        textwrap.wrap(printable(text), table.width or WIDTH, break_on_hyphens=False)
        for text in (table.title, caption)
    )
    return "\n".join([*next(around), *lines, *next(around)])


def _folded(table: Section, cell: str, column: int) -> list[str]:
    """Put each word of what stands among numbers on a line of its own, where width is dear."""
    text = printable(cell)
    fold = table.width is not None and table.numbers[column] and text[:1].isalpha()
    return text.split() if fold else [text]


def _latex(table: Section) -> str:
    def line(row: Sequence[str]) -> str:
        return " & ".join(map(escape_latex, row)) + r" \\"

    tabular = [
        rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in table.numbers)}}}",
        r"\toprule",
        line(table.headers),
        r"\midrule",
        *map(line, table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if not table.title:
        return "\n".join(tabular)
    caption = escape_latex(f"{table.title}: {table.caption}.")
    head = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    return "\n".join([*head, *tabular, r"\end{table}"])


def _markdown(table: Section) -> str:
    def line(row: Sequence[str]) -> str:
        # Numbers and their intervals are ours, and read better as they are.
        cells = zip(row, table.numbers, strict=True)
        return f"| {' | '.join(one if ours else escape_markdown(one) for one, ours in cells)} |"

    rules = ["---:" if right else "---" for right in table.numbers]
    head = f"| {' | '.join(map(escape_markdown, table.headers))} |"
    lines = [head, f"| {' | '.join(rules)} |", *map(line, table.rows)]
    if not table.title:
        return "\n".join(lines)
    title, caption = (escape_markdown(text) for text in (table.title, table.caption))
    return "\n".join([f"**{title}**", "", *lines, "", f"{caption}."])

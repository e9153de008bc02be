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
import os
import shutil
import sys
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
_NAMES = 0.3  # of the width that names are given before the last columns are
_SHORT, _SHORTEST = 24, 8  # characters that a name is given before the others are, and ever
# Points that a letter and the space between columns take in LaTeX, about, and a column of a page.
_LETTER, _SPACE, _COLUMN = 3.7, 8.0, 235.0
# The table is made smaller where, and only where, it is wider than the text.
_BOX = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


class Section(NamedTuple):
    """One table as it is shown; `numbers` says which columns are set to the right.

    Where it has a `width`, a terminal shows it in so many columns: words above numbers are folded,
    columns left out (`spare`, in this order, the `extra` first ones before names are shortened
    much) and named below it, names broken. `bold` and `label` are for LaTeX.
    """

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: tuple[bool, ...]
    title: str = ""
    caption: str = ""
    width: int | None = None
    spare: tuple[int, ...] = ()
    extra: int = 0
    label: str = ""
    bold: frozenset[tuple[int, int]] = frozenset()
    bold_means: str = ""

    @property
    def names(self) -> int:
        """How many columns in front of the first number there are."""
        return (*self.numbers, True).index(True)


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is, or that COLUMNS says; None where it is none."""
    if not os.environ.get("COLUMNS", "").isdigit() and not sys.stdout.isatty():
        return None
    return max(40, min(WIDTH, shutil.get_terminal_size().columns))


def folded(line: str, width: int | None, indent: int = 0) -> list[str]:
    """Cut a line at spaces for a terminal of this width, all but the first indented.

    >>> folded("state  claimed; checked", 18, indent=7)
    ['state  claimed;', '       checked']
    """
    if width is None or cell_len(line) <= width:
        return [line]
    start = len(line) - len(line.lstrip())
    rest = textwrap.wrap(
        line.lstrip(),
        width - start,
        subsequent_indent=" " * (indent - start),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [" " * start + part for part in rest]


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


def aligned(
    rows: Sequence[Sequence[str]], numbers: Sequence[bool] = (), *, width: int | None = None
) -> list[str]:
    """Set cells in columns: numbers to the right, all else to the left; rows may be short.

    Where they do not fit the width, what stands in the first column is broken.

    >>> aligned([("a", "12"), ("long", "3")], (False, True))
    ['a     12', 'long   3']
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in itertools.zip_longest(*shown, fillvalue="")]
    over = 0 if width is None else sum(widths) + len(_GAP) * (len(widths) - 1) - width
    if over > 0 and widths[0] > _SHORTEST:
        name = max(_SHORTEST, widths[0] - over)
        broken = [
            [textwrap.wrap(row[0], name) or [""], *([one] for one in row[1:])] for row in shown
        ]
        parts = [line for row in broken for line in itertools.zip_longest(*row, fillvalue="")]
        return aligned(parts, numbers)

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
        for place, i in enumerate(table.spare):
            name = _SHORT if table.width < WIDTH else _SHORTEST
            if place < table.extra:
                name = round(_NAMES * table.width)
            if total(name) > table.width:
                kept.remove(i)
        left_out = [head for i, head in enumerate(table.headers) if i not in kept]
        if left_out:
            told = f"no room for {', '.join(left_out)}: see the other formats"
            caption = f"{caption}; {told}" if caption else told
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
    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    def cell(row: int, column: int, text: str) -> str:
        value, *interval = text.split(" [", 1)
        shown = escape_latex(value)
        if (row, column) in table.bold:
            shown = rf"\textbf{{{shown}}}"
        return " [".join([shown, *map(escape_latex, interval)])

    def head(text: str, number: bool) -> str:
        words = [escape_latex(word) for word in text.split()]
        fold = number and bool(table.title) and len(text) > len("robust %")
        stacked = r"\\".join(words)
        return rf"\shortstack[r]{{{stacked}}}" if fold else " ".join(words)

    rows = [[cell(i, j, text) for j, text in enumerate(row)] for i, row in enumerate(table.rows)]
    tabular = [
        rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in table.numbers)}}}",
        r"\toprule",
        line([head(text, right) for text, right in zip(table.headers, table.numbers, strict=True)]),
        r"\midrule",
        *map(line, rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if not table.title:
        return "\n".join(tabular)
    told = f"; bold: {table.bold_means}" if table.bold else ""
    letters = sum(max(len(row[i]) for row in table.rows) for i in range(len(table.headers)))
    wide = _LETTER * letters + _SPACE * len(table.headers) > _COLUMN
    kind = "table*" if wide else "table"
    top = [
        r"% needs \usepackage{booktabs,graphicx}",
        rf"\begin{{{kind}}}",
        r"\centering",
        rf"\caption{{{escape_latex(f'{table.title}: {table.caption}{told}.')}}}",
        *([rf"\label{{{table.label}}}"] if table.label else []),
        r"\footnotesize",
        r"\smallskip",
        r"\setlength{\tabcolsep}{4pt}",
        _BOX,
    ]
    tabular[-1] += "}"
    return "\n".join([*top, *tabular, rf"\end{{{kind}}}"])


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

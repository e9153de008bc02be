"""One table as text for a terminal, whatever is in it and however wide it would be.

>>> print(terminal_table(Section("digits", "2 rows", ("model", "clean %"), [("a", "90.1")], 1)))
digits
       clean
model      %
------------
a       90.1
2 rows
"""

import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from robust_nc.io.text import printable

WIDTH = 132
_NAMES = 40  # characters that names are given before extra columns are
# A rule under the header and nothing else, in ASCII for any terminal.
_RULE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


class Section(NamedTuple):
    """One table as it is shown: the first `names` columns are names, the others numbers.

    The last `extra` columns are left out of a terminal where names would have to give way to them.
    """

    title: str
    caption: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    names: int
    extra: int = 0


class _Name(NamedTuple):
    """A name in a column that may be too narrow for it: broken after a hyphen where it has one."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, Text(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n".join(textwrap.wrap(self.text, options.max_width)))


def _fitting(section: Section) -> Section:
    """Leave out extra columns that do not fit, the first ones first; words are folded."""
    first = len(section.headers) - section.extra

    def folded(cell: str, column: int) -> str:
        text = printable(cell)
        words = column >= section.names and text[:1].isalpha()
        return text.replace(" ", "\n") if words else text

    rows = [tuple(folded(cell, i) for i, cell in enumerate(row)) for row in section.rows]
    lines = [tuple(header.replace(" ", "\n") for header in section.headers), *rows]

    def width(column: int) -> int:
        longest = max(len(part) for line in lines for part in line[column].split("\n"))
        return 2 + (min(longest, _NAMES) if column < section.names else longest)

    kept = list(range(len(section.headers)))
    while len(kept) > first and sum(map(width, kept)) - 2 > WIDTH:
        del kept[first]
    left_out = [section.headers[i] for i in range(first, len(section.headers)) if i not in kept]
    more = f"; no room for {', '.join(left_out)}: see the other formats" if left_out else ""
    return section._replace(
        caption=section.caption + more,
        headers=tuple(section.headers[i] for i in kept),
        rows=[tuple(row[i] for i in kept) for row in rows],
    )


def terminal_table(section: Section) -> str:
    """Write one table in at most `WIDTH` columns of ASCII."""
    section = _fitting(section)
    table = Table(
        title=Text(printable(section.title)),
        caption=Text(printable(section.caption)),
        title_justify="left",
        caption_justify="left",
        box=_RULE,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, header in enumerate(section.headers):
        name = index < section.names and header != "#"
        table.add_column(
            Text(header if name else header.replace(" ", "\n")),
            justify="left" if name else "right",
            no_wrap=not name,
            overflow="fold",
        )
    for row in section.rows:
        cells = enumerate(row)
        table.add_row(*[_Name(text) if i < section.names else Text(text) for i, text in cells])
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())

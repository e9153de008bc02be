"""`robust-nc board`: the leaderboard as text, or as a page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.files import write_text
from robust_nc.report.table import format_table, leaderboard, paired
from robust_nc.store import read_all

Format = Literal["table", "csv", "latex", "markdown", "html"]


def board_command(
    results: Path, style: Format, out: Path | None, against: str | None, stderr: Console
) -> int:
    """Read the records and show them in the wished form."""
    records = read_all(results)
    if not records:
        raise RecordError(
            f"{results} holds no records; run a suite first: robust-nc run quickstart"
        )
    if style == "html":
        write_site = _site_writer()
        page = write_site(records, out or results)
        stderr.print(f"wrote {page}", markup=False, soft_wrap=True)
        return 0
    frame = leaderboard(records) if against is None else paired(records, against=against)
    if frame.empty:
        raise RecordError(f"{results} holds no other head to compare with {against!r}")
    text = format_table(frame, style)
    if out is None:
        print(text)
    else:
        write_text(out, text + "\n")
        stderr.print(f"wrote {out}", markup=False, soft_wrap=True)
    return 0


def _site_writer() -> Callable[..., Any]:
    """Import what draws the page; figures are an extra."""
    try:
        from robust_nc.report.site import write_site
    except ImportError as error:
        raise ConfigError(
            f"the page needs {error.name}, which is not installed: pip install 'robust_nc[report]'"
        ) from None
    return write_site

"""`robust-nc board`: the leaderboard as text, or as a page."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from robust_nc.exceptions import RecordError
from robust_nc.files import write_text
from robust_nc.report.table import format_table, leaderboard
from robust_nc.store import read_all

Format = Literal["table", "csv", "latex", "markdown", "html"]


def board_command(results: Path, style: Format, out: Path | None, stderr: Console) -> int:
    """Read the records and show them in the wished form."""
    records = read_all(results)
    if not records:
        raise RecordError(
            f"{results} holds no records; run a suite first: robust-nc run quickstart"
        )
    if style == "html":
        from robust_nc.report.site import write_site

        page = write_site(records, out or results)
        stderr.print(f"wrote {page}", markup=False, soft_wrap=True)
        return 0
    text = format_table(leaderboard(records), style)
    if out is None:
        print(text)
    else:
        write_text(out, text + "\n")
        stderr.print(f"wrote {out}", markup=False, soft_wrap=True)
    return 0

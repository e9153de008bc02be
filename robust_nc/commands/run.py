"""`robust-nc run`: a suite, or claims, with progress on stderr and its table on stdout."""

import functools
import shlex
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import TaskID

from robust_nc.cell import CellEvent, CellResult
from robust_nc.claims.reading import holds_claims, read_claims
from robust_nc.commands.bars import bars
from robust_nc.commands.claims import claims_command
from robust_nc.exceptions import ConfigError
from robust_nc.record import read_record
from robust_nc.report.table import format_table, leaderboard
from robust_nc.runner import Hooks, Overwrite, run_suite
from robust_nc.store import record_path
from robust_nc.suite import Cell, Suite, read_suite


def run_command(
    name: str,
    out: Path | None,
    overwrite: Overwrite,
    workers: int | None,
    root: Path | None,
    stderr: Console,
) -> int:
    """Run a suite, or the suites of claims, show what came of it, and return the exit code."""
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers must be at least 1, found {workers}")
    again = _command(name, out, workers, root)
    say = functools.partial(stderr.print, markup=False, soft_wrap=True)

    def carry_out(suite: Suite, place: Path, *, table: bool) -> int:
        say(f"{suite.name}: {len(suite.cells)} cells into {place}")
        with Screen(suite, stderr) as screen:
            hooks = Hooks(screen.event, screen.result, screen.error)
            report = run_suite(
                suite, place, hooks=hooks, overwrite=overwrite, workers=workers, root=root
            )
        if table and (report.kept or report.made):
            print(_table(suite, place))
        say(f"{len(report.made)} cells made, {report.kept} kept, {len(report.failed)} failed")
        for cell in suite.cells:
            if cell.id in report.absent:
                say(f"missing: {_name(cell)} ({cell.id})")
        if report.failed:
            say(f"try the failed cells again with: {again}")
        return 1 if report.failed or report.absent else 0

    try:
        if holds_claims(name):
            claims = read_claims(name)
            run = functools.partial(carry_out, table=False)
            return claims_command(claims, out or Path("out") / claims.name, run, say)
        suite = read_suite(name)
        return carry_out(suite, out or Path("out") / suite.name, table=True)
    except KeyboardInterrupt:
        say(f"interrupted; nothing finished is lost. Go on with: {again}")
        return 130


def _command(name: str, out: Path | None, workers: int | None, root: Path | None) -> str:
    """Say what to type to go on: always without --overwrite, or finished cells would be lost."""
    options = {"--out": out, "--workers": workers, "--root": root}
    given = [str(part) for pair in options.items() if pair[1] is not None for part in pair]
    return shlex.join(["robust-nc", "run", name, *given])


def _name(cell: Cell) -> str:
    return f"{cell.model} seed {cell.config.seed}"


def _table(suite: Suite, place: Path) -> str:
    """Show the records of the suite's own cells, whatever else lies in the folder."""
    paths = sorted(record_path(place, cell.model, cell.id) for cell in suite.cells)
    return format_table(leaderboard([read_record(p) for p in paths if p.exists()]), "table")


class Screen:
    """Bars for the suite and its running cells on a terminal; one line per cell elsewhere."""

    def __init__(self, suite: Suite, console: Console) -> None:
        self._names = {cell.id: _name(cell) for cell in suite.cells}
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._progress = bars(console)
        self._ended = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def event(self, event: CellEvent) -> None:
        """Move the bar of a running cell."""
        name = self._names[event.cell]
        if event.cell not in self._tasks:
            self._tasks[event.cell] = self._progress.add_task(name, total=1.0, status="")
        self._progress.update(self._tasks[event.cell], completed=event.share, status=event.status)

    def result(self, result: CellResult) -> None:
        """Replace the bar of a finished cell by one line."""
        self._drop(result.cell)
        self._line(
            f"{self._names[result.cell]}: clean {result.clean:.1%}, robust {result.robust:.1%}, "
            f"{result.seconds:.0f} s"
        )

    def error(self, cell: str, message: str) -> None:
        """Say why a cell failed."""
        self._drop(cell)
        self._line(f"{self._names[cell]} failed: {message}")

    def _drop(self, cell: str) -> None:
        if cell in self._tasks:
            self._progress.remove_task(self._tasks.pop(cell))

    def _line(self, text: str) -> None:
        self._ended += 1
        self._progress.console.print(
            f"[{self._ended}/{len(self._names)}] {text}", markup=False, soft_wrap=True
        )

"""`robust-nc run`: a suite, or claims, with progress on stderr and its table on stdout."""

import functools
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import TaskID

from robust_nc.claims.reading import holds_claims, read_claims
from robust_nc.cli.claims import claims_command
from robust_nc.cli.progress_bars import bars
from robust_nc.cli.stopping import heeding
from robust_nc.engines.options import RunOptions, under_torchrun
from robust_nc.engines.run_suite import Hooks, SuiteReport, run_suite
from robust_nc.engines.torchrun.executor import Ranks
from robust_nc.engines.torchrun.process_group import joined
from robust_nc.exceptions import StoppedError
from robust_nc.pipeline.cell import CellEvent, CellResult
from robust_nc.pipeline.selection import cell_titles, select_cells
from robust_nc.pipeline.suite import Suite, read_suite
from robust_nc.record.folder import record_path
from robust_nc.record.schema import read_record
from robust_nc.report.board.table import format_table, leaderboard
from robust_nc.runtime import stopping


def run_command(options: RunOptions, stderr: Console) -> int:
    """Run a suite, or the suites of claims, show what came of it, and return the exit code.

    Under torchrun the first process does so, and the others help.
    """
    if not under_torchrun():
        return _drive(options, stderr, None)
    with joined() as ranks:
        if ranks.rank:
            with stopping.on_sigterm():
                return ranks.follow()
        return _drive(options, stderr, ranks)


def _drive(options: RunOptions, stderr: Console, ranks: Ranks | None) -> int:
    name, again = options.suite, options.command()
    say = functools.partial(stderr.print, markup=False, soft_wrap=True)

    def carry_out(whole: Suite, place: Path, *, table: bool) -> int:
        stopping.heed()
        suite = select_cells(whole, options.cells, options.where)
        titles = cell_titles(whole)
        among = "" if len(suite.cells) == len(whole.cells) else f" of {len(whole.cells)}"
        say(f"{suite.name}: {len(suite.cells)}{among} cells into {place}")
        with Screen(suite, titles, stderr) as screen:
            hooks = Hooks(screen.event, screen.result, screen.error, screen.retry)
            report = run_suite(suite, place, options, hooks=hooks, ranks=ranks)
        if stopping.wished() or report.stopped:
            _tell_stopped(suite, report)
        if table and (report.kept or report.made):
            print(_table(suite, place))
        say(f"{len(report.made)} cells made, {report.kept} kept, {len(report.failed)} failed")
        for cell in suite.cells:
            if cell.id in report.absent:
                say(f"missing: {titles[cell.id]} ({cell.id})")
        if report.failed:
            say(f"try the failed cells again with: {again}")
        return 1 if report.failed or report.absent else 0

    def carry_out_all() -> int:
        if holds_claims(name):
            options.refuse_selection()
            claims = read_claims(name)
            run = functools.partial(carry_out, table=False)
            return claims_command(claims, options.out or Path("out") / claims.name, run, say)
        suite = read_suite(name)
        return carry_out(suite, options.out or Path("out") / suite.name, table=True)

    seconds = None if options.minutes is None else 60 * options.minutes
    return heeding(carry_out_all, again, say, seconds=seconds)


def _tell_stopped(suite: Suite, report: SuiteReport) -> None:
    """End a run that was asked to stop, unless all was done when it was."""
    under_way = len(report.stopped)
    done = report.kept + len(report.made)
    left = len(suite.cells) - done - len(report.failed) - under_way
    if under_way or left:
        raise StoppedError(
            f"stopped as asked with {done} of {len(suite.cells)} cells done, {under_way} under "
            f"way (each goes on from its last save) and {left} not begun; go on with"
        )


def _table(suite: Suite, place: Path) -> str:
    """Show the records of the suite's own cells, whatever else lies in the folder."""
    paths = sorted(record_path(place, cell.model, cell.id) for cell in suite.cells)
    return format_table(leaderboard([read_record(p) for p in paths if p.exists()]), "table")


class Screen:
    """Bars for the suite and its running cells on a terminal; one line per cell elsewhere."""

    def __init__(self, suite: Suite, titles: dict[str, str], console: Console) -> None:
        self._names = {cell.id: titles[cell.id] for cell in suite.cells}
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

    def retry(self, cell: str, message: str) -> None:
        """Say why a cell is tried again."""
        self._drop(cell)
        self._progress.console.print(
            f"{self._names[cell]}: {message}", markup=False, soft_wrap=True
        )

    def _drop(self, cell: str) -> None:
        if cell in self._tasks:
            self._progress.remove_task(self._tasks.pop(cell))

    def _line(self, text: str) -> None:
        self._ended += 1
        self._progress.console.print(
            f"[{self._ended}/{len(self._names)}] {text}", markup=False, soft_wrap=True
        )

"""`robust-nc run`: a suite, or claims, with progress on stderr and its table on stdout."""

import functools
import shlex
from pathlib import Path
from typing import Literal, NamedTuple, Self

from rich.console import Console
from rich.progress import TaskID

from robust_nc.claims.reading import holds_claims, read_claims
from robust_nc.cli.claims import claims_command
from robust_nc.cli.progress_bars import bars
from robust_nc.cli.stopping import heeding
from robust_nc.engines.ray.settings import ClusterSettings
from robust_nc.engines.run_suite import Hooks, Overwrite, SuiteReport, run_suite
from robust_nc.engines.torchrun.executor import Ranks
from robust_nc.engines.torchrun.process_group import joined, started
from robust_nc.exceptions import ConfigError, StoppedError
from robust_nc.pipeline.cell import CellEvent, CellResult
from robust_nc.pipeline.suite import Cell, Suite, read_suite
from robust_nc.record.folder import record_path
from robust_nc.record.schema import read_record
from robust_nc.report.board.table import format_table, leaderboard
from robust_nc.runtime import stopping


class Asked(NamedTuple):
    """What `robust-nc run` was asked: the suite's name, and its options as they were given."""

    name: str
    out: Path | None = None
    overwrite: Overwrite = "only-missing"
    workers: int | None = None
    root: Path | None = None
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    gpus: float | None = None
    shards: int | None = None


def run_command(asked: Asked, stderr: Console) -> int:
    """Run a suite, or the suites of claims, show what came of it, and return the exit code.

    Under torchrun the first process does so, and the others help.
    """
    if not started():
        return _drive(asked, stderr, None)
    if asked.engine == "ray" or asked.workers is not None:
        raise ConfigError(
            "torchrun says how many processes there are; leave out --engine and --workers"
        )
    with joined() as ranks:
        if ranks.rank:
            with stopping.on_sigterm():
                return ranks.follow()
        return _drive(asked, stderr, ranks)


def _drive(asked: Asked, stderr: Console, ranks: Ranks | None) -> int:
    name, out, cluster, again = asked.name, asked.out, check(asked), _command(asked)
    say = functools.partial(stderr.print, markup=False, soft_wrap=True)

    def carry_out(suite: Suite, place: Path, *, table: bool) -> int:
        stopping.heed()
        say(f"{suite.name}: {len(suite.cells)} cells into {place}")
        with Screen(suite, stderr) as screen:
            report = run_suite(
                suite,
                place,
                hooks=Hooks(screen.event, screen.result, screen.error, screen.retry),
                overwrite=asked.overwrite,
                workers=asked.workers,
                root=asked.root,
                cluster=cluster,
                ranks=ranks,
            )
        if stopping.wished() or report.stopped:
            _tell_stopped(suite, report)
        if table and (report.kept or report.made):
            print(_table(suite, place))
        say(f"{len(report.made)} cells made, {report.kept} kept, {len(report.failed)} failed")
        for cell in suite.cells:
            if cell.id in report.absent:
                say(f"missing: {_name(cell)} ({cell.id})")
        if report.failed:
            say(f"try the failed cells again with: {again}")
        return 1 if report.failed or report.absent else 0

    def carry_out_all() -> int:
        if holds_claims(name):
            claims = read_claims(name)
            run = functools.partial(carry_out, table=False)
            return claims_command(claims, out or Path("out") / claims.name, run, say)
        suite = read_suite(name)
        return carry_out(suite, out or Path("out") / suite.name, table=True)

    return heeding(carry_out_all, again, say)


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


def check(asked: Asked) -> ClusterSettings | None:
    """Say what is asked of a cluster, if any; raises `ConfigError` for options that cannot be."""
    if asked.workers is not None and asked.workers < 1:
        raise ConfigError(f"--workers must be at least 1, found {asked.workers}")
    if asked.engine == "ray":
        return ClusterSettings(
            address=asked.address, slots=asked.workers, gpus=asked.gpus, shards=asked.shards
        )
    for option in ("address", "gpus", "shards"):
        if getattr(asked, option) is not None:
            raise ConfigError(f"--{option} is for a cluster; add --engine ray, or leave it out")
    return None


def _command(asked: Asked) -> str:
    """Say what to type to go on: always without --overwrite, or finished cells would be lost."""
    options = asked._replace(overwrite="only-missing")._asdict()
    given = [
        text
        for option, default in Asked._field_defaults.items()
        if options[option] != default
        for text in (f"--{option}", str(options[option]))
    ]
    program = "torchrun ... -m robust_nc" if started() else "robust-nc"
    return f"{program} {shlex.join(['run', asked.name, *given])}"


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

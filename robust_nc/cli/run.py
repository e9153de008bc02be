"""`robust-nc run`: a suite, or claims, with progress on stderr and its table on stdout."""

import functools
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from robust_nc.claims.answers import answer_claims, missing_cells, write_answer
from robust_nc.claims.page import answers_page, answers_table
from robust_nc.claims.reading import ANSWERS, Claims, holds_claims, read_claims
from robust_nc.cli.stopping import heeding, typed
from robust_nc.engines.driver import own_records, refuse_stopped, show_cells
from robust_nc.engines.options import RunOptions, under_torchrun
from robust_nc.engines.run_suite import run_suite
from robust_nc.engines.torchrun import ProcessGroup, join_processes
from robust_nc.io.files import write_text
from robust_nc.pipeline.changes import read_changes
from robust_nc.pipeline.selection import cell_titles, select_cells
from robust_nc.pipeline.suite import Suite, read_suite
from robust_nc.report.board.formats import format_table
from robust_nc.report.board.render import terminal_width
from robust_nc.report.board.table import leaderboard
from robust_nc.runtime import stopping
from robust_nc.runtime.screen import Screen


def run_command(options: RunOptions, stderr: Console) -> int:
    """Run a suite, or the suites of claims, show what came of it, and return the exit code.

    With --plan, only show what it would cost. Under torchrun the first process does so, and the
    others train with it.
    """
    options.check()
    if options.plan:
        from robust_nc.cli.plan import plan_command

        return plan_command(options, stderr)
    if not under_torchrun():
        return _drive(options, stderr, None)
    with join_processes() as processes:
        if processes.rank:
            with stopping.on_sigterm():
                return processes.follow()
        return _drive(options, stderr, processes)


def _drive(options: RunOptions, stderr: Console, processes: ProcessGroup | None) -> int:
    name, again = options.suite, typed(without="--overwrite")  # or finished cells would be lost
    say = functools.partial(stderr.print, markup=False, soft_wrap=True)

    def carry_out(whole: Suite, place: Path, *, table: bool) -> int:
        stopping.heed()
        suite = select_cells(whole, options.cells, options.where)
        titles = cell_titles(whole)
        among = "" if len(suite.cells) == len(whole.cells) else f" of {len(whole.cells)}"
        say(f"{suite.name}: {len(suite.cells)}{among} cells into {place}")
        with Screen(stderr, side_by_side=True) as screen:
            hooks = show_cells(screen, suite, titles)
            report = run_suite(suite, place, options, hooks=hooks, processes=processes)
        refuse_stopped(suite, report)
        if table and (report.kept or report.made):
            found = leaderboard(own_records(suite, place))
            print(format_table(found, "table", width=terminal_width()))
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
            out = options.out or Path("out") / claims.name
            codes = [carry_out(one, out / one.name, table=False) for one in claims.suites()]
            return max([_answer(claims, out, say), *codes])
        suite = read_suite(options.suite, read_changes(options.changes))
        return carry_out(suite, options.out or Path("out") / suite.name, table=True)

    seconds = None if options.minutes is None else 60 * options.minutes
    return heeding(carry_out_all, again, say, seconds=seconds)


def _answer(claims: Claims, out: Path, say: Callable[[str], None]) -> int:
    """Answer claims from the records below `out`; nothing, where one that they need is missing."""
    missing = missing_cells(claims, out)
    if missing:
        say(f"no claim is answered: {len(missing)} cells that they need have no whole record:")
        for name in missing:
            say(f"  {name}")
        return 1
    answers = answer_claims(claims, out)
    from robust_nc.claims.figure import write_figure  # seconds of matplotlib

    for answer in answers:
        path = write_answer(out / ANSWERS, answer)
        write_figure(answer, path.with_suffix(".png"))
    page = out / ANSWERS / "claims.md"
    write_text(page, answers_page(answers, description=claims.description))
    print(answers_table(answers))
    say(f"{len(answers)} claims answered in {page}")
    return 0

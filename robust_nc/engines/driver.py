"""Driving a suite: from Python by `run`, from the command line by `robust-nc run`, with progress.

>>> try:
...     run([])
... except InputError as error:
...     print(error)
run takes a suite's name, a path that ends with .toml, or a list of RunConfig, found an empty list
"""

import contextlib
import itertools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
from rich.console import Console

from robust_nc.config import RunConfig, build
from robust_nc.engines.local import is_worker
from robust_nc.engines.options import Overwrite, RunOptions, under_torchrun
from robust_nc.engines.run_suite import Hooks, SuiteReport, run_suite
from robust_nc.exceptions import (
    CellError,
    ConfigError,
    InputError,
    RobustNCError,
    StoppedError,
    unknown_name,
)
from robust_nc.pipeline.finished_model import left_out_files
from robust_nc.pipeline.selection import cell_titles, select_cells
from robust_nc.pipeline.suite import Suite, read_suite, suite_of
from robust_nc.record.folder import record_path
from robust_nc.record.schema import Stored, read_record
from robust_nc.registry import DATASETS
from robust_nc.report.board.table import leaderboard
from robust_nc.runtime import stopping
from robust_nc.runtime.screen import Screen


def run(
    suite: str | Path | RunConfig | Sequence[RunConfig],
    *,
    out: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    cells: Sequence[int] = (),
    where: Sequence[str] = (),
    overwrite: Overwrite = "only-missing",
    workers: int | None = None,
    root: str | Path | None = None,
    engine: Literal["local", "ray"] = "local",
    log: Sequence[str] = (),
) -> pd.DataFrame:
    """Train, attack, measure and record every cell of a suite, as `robust-nc run` does.

    `suite` is a suite's name, the path of a TOML file, or configurations, which then are a suite
    named as the folder `out`. What is recorded in `out` (a suite's default: `out/<suite>`) is kept,
    what is begun goes on. `changes` are settings by dotted key, as --set gives them:
    `{"train.epochs": 5, "seed": [0, 1]}`. `cells` are numbers of cells, `where` conditions such as
    "head=etf". `workers` cells run side by side (default: one per core on a CPU, one on an
    accelerator), each in a process of its own; `root` is where data sets lie; `log` are names such
    as "tensorboard", which hear of every epoch.

    Returns `robust_nc.leaderboard` of the suite's own records: one row per model, seeds
    aggregated. The records lie in `out`; `leaderboard(out)` is that of all that lies there.

    Raises `ConfigError` for what cannot be run, before anything runs; `CellError` where cells
    failed or are missing, after all others are done; `StorageError` where another run writes to
    `out`; `StoppedError` where the process got SIGTERM, with the state saved.
    """
    if is_worker():
        raise ConfigError(
            "run was called by a worker of a run, which read the script for a class of its own; "
            "put the call below `if __name__ == '__main__':`"
        )
    if overwrite not in get_args(Overwrite):
        raise unknown_name("overwrite", overwrite, get_args(Overwrite))
    whole, place = _suite(suite, out, changes)
    options = RunOptions(
        suite=whole.name,
        overwrite=overwrite,
        workers=workers,
        root=None if root is None else Path(root),
        engine=engine,
        log=tuple(log),
    )
    options.check()
    if under_torchrun():
        raise ConfigError("under torchrun, use `torchrun ... -m robust_nc run SUITE`")
    chosen = select_cells(whole, cells, where)
    titles = cell_titles(whole)
    main = threading.current_thread() is threading.main_thread()
    heeded = stopping.on_sigterm() if main else contextlib.nullcontext()
    with heeded, Screen(Console(stderr=True), side_by_side=True) as screen:
        hooks = show_cells(screen, chosen, titles)
        report = run_suite(chosen, place, options, hooks=hooks)
        refuse_stopped(chosen, report, again="call run again to go on")
    _refuse_failed(report, titles, len(chosen.cells), place)
    return leaderboard(own_records(chosen, place))


def _suite(
    suite: object, out: str | Path | None, changes: Mapping[str, Any] | None
) -> tuple[Suite, Path]:
    """Return what to run, and the folder to run it into."""
    if isinstance(suite, str | Path):
        found = read_suite(str(suite), changes)
        return found, Path(out or Path("out") / found.name)
    given = [suite] if isinstance(suite, RunConfig) else suite
    configs = list(given) if isinstance(given, Sequence) else []
    if not configs or not all(isinstance(one, RunConfig) for one in configs):
        what = "an empty list" if given == [] else f"{type(suite).__name__}"
        raise InputError(
            "run takes a suite's name, a path that ends with .toml, or a list of RunConfig, found "
            f"{what}"
        )
    if out is None:
        raise InputError("run(configurations) needs out=, the folder for their records")
    if changes:
        raise InputError("changes are for a suite; change the configurations themselves")
    place = Path(out)
    return suite_of(configs, place.resolve().name or "run"), place


def _refuse_failed(report: SuiteReport, titles: Mapping[str, str], count: int, place: Path) -> None:
    """Raise what failed, and what is missing of a run that computes nothing."""
    told = [f"{titles[cell]}: {why}" for cell, why in report.failed.items()]
    told += [f"{titles[cell]} is missing" for cell in report.absent]
    if told:
        raise CellError(
            f"{len(told)} of {count} cells have no record; those of the others lie in {place}, and "
            f"the same call makes what is missing. {'; '.join(told)}"
        )


def refuse_stopped(suite: Suite, report: SuiteReport, *, again: str = "go on with") -> None:
    """Raise `StoppedError` where a run was asked to stop, unless all was done when it was.

    Its sentence ends with what to do `again`.
    """
    if not (stopping.wished() or report.stopped):
        return
    under_way = len(report.stopped)
    done = report.kept + len(report.made)
    left = len(suite.cells) - done - len(report.failed) - under_way
    if under_way or left:
        raise StoppedError(
            f"stopped as asked with {done} of {len(suite.cells)} cells done, {under_way} under "
            f"way (each goes on from its last save) and {left} not begun; {again}"
        )


def own_records(suite: Suite, place: Path) -> list[Stored]:
    """Read the records of the suite's own cells, whatever else lies in the folder."""
    paths = sorted(record_path(place, cell.model, cell.id) for cell in suite.cells)
    return [read_record(path) for path in paths if path.exists()]


def show_cells(screen: Screen, suite: Suite, titles: Mapping[str, str]) -> Hooks:
    """Show what becomes of cells: a bar while one runs, a line when it ends.

    First the files of its folders are named that are no images.
    """
    parts = [cell.config.data.dataset for cell in suite.cells]
    folders = {str(part.options.get("path")): part for part in parts if part.name == "folder"}
    for path, part in folders.items():
        with contextlib.suppress(RobustNCError):  # which ends its cells, with a reason
            if told := left_out_files(build(DATASETS, part)):
                screen.line(f"{path}: {told}")
    ended, count = itertools.count(1), len(suite.cells)

    def end(cell: str, text: str) -> None:
        screen.drop(titles[cell])
        screen.line(f"[{next(ended)}/{count}] {titles[cell]}{text}")

    def retry(cell: str, why: str) -> None:
        screen.drop(titles[cell])
        screen.line(f"{titles[cell]}: {why}")

    return Hooks(
        on_event=lambda event: screen.event(event._replace(task=titles[event.task])),
        on_result=lambda made: end(
            made.cell, f": clean {made.clean:.1%}, robust {made.robust:.1%}, {made.seconds:.0f} s"
        ),
        on_error=lambda cell, why: end(cell, f" failed: {why}"),
        on_retry=retry,
    )

"""Run a suite: every cell is trained, attacked, measured and recorded; killed, it resumes.

A record is the last thing that a cell writes, so a cell with a whole record is done. Cells that
differ only in how they are judged share their weights, and run one after the other.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import torch

from robust_nc.config import training_id
from robust_nc.data.load import dataset_info
from robust_nc.engines.local import Finished, OnRetry, Task, ignore_retry, run_tasks
from robust_nc.engines.options import Overwrite, RunOptions
from robust_nc.engines.torchrun import ProcessGroup, run_under_torchrun
from robust_nc.exceptions import ConfigError, DataError, InputError
from robust_nc.io.files import alone, remove_file, remove_tree, remove_unfinished
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.stages import CellResult, check_cell, is_recorded
from robust_nc.pipeline.suite import Cell, Suite
from robust_nc.record.folder import checkpoint_folder, log_folder, record_path, remove_caches
from robust_nc.runtime.progress import Event
from robust_nc.training.callbacks import check_logs


class SuiteReport(NamedTuple):
    """How a run ended: cells kept from before, cells made now, errors by cell.

    Asked to stop (`robust_nc.runtime.stopping`), it leaves cells that are in none of these.
    """

    kept: int
    made: tuple[CellResult, ...]
    failed: dict[str, str]
    absent: tuple[str, ...]  # with only-cache: cells without a record
    stopped: tuple[str, ...] = ()  # cells that were under way when the run was asked to stop


class Hooks(NamedTuple):
    """What the driver is told while it runs; `on_retry` of cells whose worker was lost."""

    on_event: Callable[[Event], None]
    on_result: Callable[[CellResult], None]
    on_error: Callable[[str, str], None]
    on_retry: OnRetry = ignore_retry


def run_suite(
    suite: Suite,
    out: Path,
    options: RunOptions,
    *,
    hooks: Hooks,
    processes: ProcessGroup | None = None,
) -> SuiteReport:
    """Run the cells of a suite, all that it holds, into `out`, and say how it ended.

    Of the options it takes those that say how (`overwrite`, `workers`, `root`, `engine` and what
    belongs to it). With `processes`, those that torchrun started, cells run one after
    the other. One run at a time may write to `out`: a second one gets a `StorageError`.
    """
    overwrite, root = options.overwrite, options.root
    if overwrite == "only-cache":
        absent = tuple(cell.id for cell in suite.cells if _needed(cell, out, overwrite))
        return SuiteReport(len(suite.cells) - len(absent), (), {}, absent)
    with alone(out):
        remove_unfinished(out)
        todo = [cell for cell in suite.cells if _needed(cell, out, overwrite)]
        kept = len(suite.cells) - len(todo)
        _check(todo, root)
        check_logs(options.log)
        if overwrite == "only-missing":  # then what is kept is whole
            ahead = {cell.id for cell in todo}
            for cell in suite.cells:
                if cell.id not in ahead:
                    remove_caches(out, cell.id)  # left by a kill behind the record
        if overwrite == "always":
            for cell in todo:
                remove_tree(checkpoint_folder(out, training_id(cell.config)))
                remove_file(record_path(out, cell.model, cell.id))
                remove_caches(out, cell.id)
                training = training_id(cell.config)
                remove_tree(log_folder(out, cell.model, cell.config.seed, training))
        return _run(_groups(todo), suite, out, kept, options, hooks=hooks, processes=processes)


def _check(todo: list[Cell], root: Path | None) -> None:
    """Refuse cells that cannot be made before the first is; those of one model are one.

    Data that cannot be used end their own cells alone.
    """
    checked = {cell.model: cell for cell in reversed(todo)}
    for cell in reversed(checked.values()):
        try:
            few = dataset_info(cell.config.data, root).num_classes < 2
        except (DataError, InputError):
            continue
        if few:
            continue
        try:
            check_cell(cell.config, root)
        except (ConfigError, InputError) as error:
            raise ConfigError(f"{cell.model}: {error}") from None


def _run(
    groups: list[list[Cell]],
    suite: Suite,
    out: Path,
    kept: int,
    options: RunOptions,
    *,
    hooks: Hooks,
    processes: ProcessGroup | None,
) -> SuiteReport:
    made: list[CellResult] = []
    failed: dict[str, str] = {}
    stopped: list[str] = []
    tasks: Generator[Finished, None, None]
    if processes is not None:
        tasks = run_under_torchrun(
            processes,
            groups,
            suite.name,
            out,
            options.root,
            on_event=hooks.on_event,
            logs=options.log,
        )
    elif options.engine == "ray":
        try:
            from robust_nc.engines.ray.run import run_on_ray  # here: Ray is an extra
        except ModuleNotFoundError as missing:
            if (missing.name or "").split(".")[0] != "ray":
                raise
            raise ConfigError(
                "the engine ray needs Ray, which is not installed; pip install 'robust_nc[ray]'"
            ) from None
        tasks = run_on_ray(
            groups,
            suite.name,
            out,
            options.root,
            options.cluster(),
            logs=options.log,
            on_event=hooks.on_event,
            on_retry=hooks.on_retry,
        )
    else:
        call = functools.partial(run_cell, logs=options.log)
        chains = [
            [Task(cell.id, call, (cell, suite.name, out, options.root)) for cell in cells]
            for cells in groups
        ]
        count = options.workers or default_workers()
        # The same however few cells are left, since sums depend on it in the last bits; torch's own
        # number follows OMP_NUM_THREADS.
        threads = max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // count))
        tasks = run_tasks(
            chains, workers=count, threads=threads, on_event=hooks.on_event, on_retry=hooks.on_retry
        )
    with contextlib.closing(tasks):
        for key, result, error, was_stopped in tasks:
            if was_stopped:
                stopped.append(key)
            elif error is None:
                made.append(result)
                hooks.on_result(result)
            else:
                failed[key] = error
                hooks.on_error(key, error)
    return SuiteReport(kept, tuple(made), failed, (), tuple(stopped))


def default_workers() -> int:
    """One cell per core on a CPU, one cell at a time on an accelerator."""
    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def _groups(cells: list[Cell]) -> list[list[Cell]]:
    """Put cells that share their weights together."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(training_id(cell.config), []).append(cell)
    return list(groups.values())


def _needed(cell: Cell, out: Path, overwrite: Overwrite) -> bool:
    if overwrite == "never":
        return not record_path(out, cell.model, cell.id).exists()
    return overwrite == "always" or not is_recorded(cell, out)

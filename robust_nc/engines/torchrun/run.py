"""The cells of a suite, one after the other: all processes train, the first one does the rest.

It alone reads and writes the suite's folder; the others wait while it judges, measures and records.
"""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from robust_nc.engines.local import Finished, failed
from robust_nc.engines.torchrun.process_group import ProcessGroup
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.stages import CellResult, is_trained, train_stage
from robust_nc.pipeline.suite import Cell
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Event, Report
from robust_nc.training.objectives import ClosedForm
from robust_nc.training.run import build_objective


def run_under_torchrun(
    processes: ProcessGroup,
    groups: Sequence[Sequence[Cell]],
    suite: str,
    out: Path,
    root: Path | None,
    *,
    on_event: Callable[[Event], None],
) -> Generator[Finished, None, None]:
    """Do cells in the first process, with the others' help, and yield each as it ends.

    `root` is where data sets lie, on every machine. Raises what ends one process alone, and
    `ClusterError` where one cannot be reached any more: the run has to end then.
    """
    for cell in [cell for group in groups for cell in group]:

        def report(share: float, status: str, cell: str = cell.id) -> None:
            on_event(Event(cell, share, status))

        if stopping.wished():
            return
        try:
            ended = Finished(cell.id, _run_cell(processes, cell, suite, out, root, report), None)
        except Exception as error:
            if processes.busy:
                raise
            ended = failed(cell.id, error)
        yield ended


def _run_cell(
    processes: ProcessGroup, cell: Cell, suite: str, out: Path, root: Path | None, report: Report
) -> CellResult:
    # What is fitted in closed form the first process does alone.
    in_steps = not isinstance(build_objective(cell.config), ClosedForm)
    if in_steps and not is_trained(cell, out):
        processes.train(lambda: train_stage(cell, out, root, report=report), cell.config, root=root)
    return run_cell(cell, suite, out, root, report=report)

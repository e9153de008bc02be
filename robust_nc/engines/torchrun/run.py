"""The cells of a suite, one after the other, by all processes of a run.

They train a cell together, then each judges its share of the test images; the geometry is measured
in parts too. The first process alone reads and writes the suite's folder.

>>> from robust_nc.pipeline.suite import read_suite
>>> is_closed(read_suite("quickstart").cells[0])
False
"""

import contextlib
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from robust_nc.config import RunConfig
from robust_nc.engines.local import Finished, failed
from robust_nc.engines.ray.files import Parcel, pack, unpack
from robust_nc.engines.torchrun.executor import Ranks
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.stages import (
    CellEvent,
    CellReport,
    CellResult,
    checkpoints_of,
    is_trained,
    judge_stage,
    needs,
    train_stage,
    verdict_parts,
)
from robust_nc.pipeline.suite import Cell
from robust_nc.pipeline.verdict_parts import VerdictPart
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Report
from robust_nc.runtime.torch_state import default_device
from robust_nc.training.objectives import ClosedForm
from robust_nc.training.run import build_objective, train_cell


class _Judged(NamedTuple):
    """The log of a part, where it is not in its place yet, and what ended the part early."""

    log: Parcel
    error: Exception | None


def run_cells(
    ranks: Ranks,
    groups: Sequence[Sequence[Cell]],
    suite: str,
    out: Path,
    root: Path | None,
    *,
    on_event: CellReport,
) -> Generator[Finished, None, None]:
    """Do cells in the first process, with the others' help, and yield each as it ends.

    `root` is where data sets lie, on every machine. Raises what ends one process alone, and
    `ClusterError` where one cannot be reached any more: the run has to end then.
    """
    for cell in [cell for group in groups for cell in group]:
        if stopping.wished():
            return
        try:
            ended = Finished(cell.id, _run_cell(ranks, cell, suite, out, root, on_event), None)
        except Exception as error:
            if ranks.busy:
                raise
            ended = failed(cell.id, error)
        ranks.forget()
        yield ended


def is_closed(cell: Cell) -> bool:
    """Whether a cell is fitted in closed form, which the first process does alone."""
    return isinstance(build_objective(cell.config), ClosedForm)


def _run_cell(
    ranks: Ranks, cell: Cell, suite: str, out: Path, root: Path | None, report: CellReport
) -> CellResult:
    if not is_closed(cell) and not is_trained(cell, out):
        ranks.train(
            lambda: train_stage(cell, out, root, report=report), _train, (cell.config, root)
        )
    if is_trained(cell, out):
        _judge(ranks, cell, out, root, report)
    return run_cell(cell, suite, out, root, report=report, executor=ranks)


def _train(config: RunConfig, root: Path | None) -> None:
    """Train with the first process, which has the checkpoints."""
    train_cell(config, root=root, device=default_device())


def _judge(ranks: Ranks, cell: Cell, out: Path, root: Path | None, report: CellReport) -> None:
    """Judge parts, one in each process at a time, and put their logs where they belong."""

    def told(share: float, text: str) -> None:
        report(CellEvent(cell.id, share, text))

    parts = verdict_parts(cell, out, root, width=ranks.width)
    weights = ranks.keep(_pack(out, [checkpoints_of(cell, out)])) if parts else None
    for start in range(0, len(parts), ranks.width):
        given = []
        for rank, part in enumerate(parts[start : start + ranks.width]):
            home = None if rank else out
            given.append((cell, part, home, weights, _pack(out, _logs(cell, part, out)), root))
        judged: list[_Judged] = ranks.get(ranks.map(_judge_part, given, report=told))
        for each in judged:
            unpack(each.log, out)
        for each in judged:
            if each.error is not None:
                raise each.error


def _judge_part(
    cell: Cell,
    part: VerdictPart,
    home: Path | None,
    weights: Parcel,
    log: Parcel,
    root: Path | None,
    *,
    report: Report,
) -> _Judged:
    """Judge a part in the suite's folder, `home`, or without it in a temporary one."""

    def show(event: CellEvent) -> None:
        report(event.share, event.status)

    with contextlib.ExitStack() as stack:
        out = home
        if out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="robust_nc-")))
            unpack(weights, out)
            unpack(log, out)
        error = None
        try:
            judge_stage(cell, part, out, root, report=show)
        except Exception as found:  # what was judged before goes home all the same
            error = found
        return _Judged(_pack(out, [] if home else _logs(cell, part, out)), error)


def _logs(cell: Cell, part: VerdictPart, out: Path) -> list[Path]:
    return [path for path in needs(cell, "judge", out, part=part) if path.is_file()]


def _pack(out: Path, paths: Sequence[Path]) -> Parcel:
    return pack(out, [path.relative_to(out).as_posix() for path in paths])

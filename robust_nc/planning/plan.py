"""What a suite will cost: every cell's pieces, priced by measured speeds.

>>> wall_clock([3.0, 2.0, 1.0], 2)
3.0
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from robust_nc.config import training_id
from robust_nc.exceptions import RecordError
from robust_nc.pipeline.stages import is_trained
from robust_nc.pipeline.suite import Cell, Suite
from robust_nc.planning.cell_sizes import CellSizer, CellSizes
from robust_nc.planning.pieces import Piece, Probe, cell_pieces, expected
from robust_nc.planning.speeds import Speeds
from robust_nc.planning.survivors import Survival, read_records
from robust_nc.record.folder import record_path
from robust_nc.record.schema import Record, read_record

_RECORD = 9_000  # bytes of a record without what it says of single images
_PER_IMAGE = 5  # of each judged image in it
_EVIDENCE = 0.5  # bytes of evidence for each value of an image that is broken, at most
_LOGGED = 3 * 4 * 4 / 3  # bytes of a value in the log of a verdict: worst points, float32, base64


class PlannedCell(NamedTuple):
    """One cell, counted: with its training only where no cell before it makes the same weights.

    `left` are the pieces that are still to be done: none of a cell that has a whole record.
    """

    cell: Cell
    sizes: CellSizes
    survival: Survival
    pieces: tuple[Piece, ...]
    left: tuple[Piece, ...]
    done: bool


class CellCost(NamedTuple):
    """One cell, priced: seconds by stage for the whole cell and for what is left, and bytes.

    `results` stay beside the `weights` (best, last, momentum, raw ones of an average); `running` is
    what it needs beside them while it runs.
    """

    planned: PlannedCell
    seconds: dict[str, float]
    left: dict[str, float]
    results: float
    weights: float
    running: float


def plan_suite(
    suite: Suite, out: Path, sizer: CellSizer, records: Sequence[Record] = ()
) -> list[PlannedCell]:
    """Count all cells of a suite; those with a whole record in `out` have nothing left.

    `records` of earlier runs say who survives, beside those that are in `out`.
    """
    known = [*read_records([out]), *records]
    shared: set[str] = set()
    made: set[str] = set()
    cells = []
    for cell in suite.cells:
        sizes = sizer.sizes(cell.config)
        survival = expected(sizes, known)
        name = training_id(cell.config)
        pieces = tuple(cell_pieces(sizes, survival, trained=name in shared))
        shared.add(name)
        done = _is_done(cell, out)
        left: tuple[Piece, ...] = ()
        if not done:
            there = name in made or is_trained(cell, out)
            left = tuple(cell_pieces(sizes, survival, trained=there))
            made.add(name)
        cells.append(PlannedCell(cell, sizes, survival, pieces, left, done))
    return cells


def _is_done(cell: Cell, out: Path) -> bool:
    """Whether a cell has a whole record, as `only-missing` sees it."""
    path = record_path(out, cell.model, cell.id)
    if not path.exists():
        return False
    try:
        read_record(path).rows()
    except RecordError:
        return False
    return True


def probes_of(cells: Iterable[PlannedCell]) -> tuple[Probe, ...]:
    """Return all that has to be timed to price some cells, each once."""
    pieces = (piece for cell in cells for piece in (*cell.pieces, *cell.left))
    return tuple({piece.probe.key: piece.probe for piece in pieces}.values())


def price(cells: Iterable[PlannedCell], speeds: Speeds) -> list[CellCost]:
    """Price cells by speeds that hold all their probes."""
    return [
        CellCost(
            cell,
            _seconds(cell.pieces, speeds),
            _seconds(cell.left, speeds),
            *_bytes(cell, speeds),
        )
        for cell in cells
    ]


def _seconds(pieces: Iterable[Piece], speeds: Speeds) -> dict[str, float]:
    """Sum the seconds of some pieces by stage."""
    found: dict[str, float] = {}
    for piece in pieces:
        seconds = piece.calls * speeds.rates[piece.probe.key].seconds(piece.batch)
        found[piece.stage] = found.get(piece.stage, 0.0) + seconds
    return found


def _bytes(cell: PlannedCell, speeds: Speeds) -> tuple[float, float, float]:
    """Results, weights, and what is there while it runs: logs, and two checkpoints more."""
    sizes, survival = cell.sizes, cell.survival
    channels, height, width = sizes.image_shape
    values = float(sizes.judged * channels * height * width)
    results = float(_RECORD + _PER_IMAGE * sizes.judged)
    results += _EVIDENCE * values * max(survival.clean - survival.robust, 0.0)
    results += sum(speeds.rates[piece.probe.key].nbytes for piece in cell.pieces)
    averaged = sizes.weight_bytes if sizes.config.train.averaging is not None else 0
    weights = float(2 * sizes.weight_bytes + sizes.parameter_bytes + averaged)
    return results, weights, 2 * weights + _LOGGED * values


def chains(costs: Iterable[CellCost], *, left: bool = False) -> list[float]:
    """Sum the seconds of cells that share their weights, and run one after the other."""
    found: dict[str, float] = {}
    for cost in costs:
        name = training_id(cost.planned.cell.config)
        seconds = sum((cost.left if left else cost.seconds).values())
        found[name] = found.get(name, 0.0) + seconds
    return list(found.values())


def wall_clock(work: Iterable[float], devices: int) -> float:
    """Seconds until all chains are done, each begun in order by the first of so many devices."""
    ends = [0.0] * devices
    for seconds in work:
        ends[ends.index(min(ends))] += seconds
    return max(ends)

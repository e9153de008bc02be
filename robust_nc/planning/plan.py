"""What a suite will cost: every cell's pieces, priced by measured speeds.

>>> wall_clock([3.0, 2.0, 1.0], 2)
3.0
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from robust_nc.config import training_id
from robust_nc.pipeline.stages import is_recorded, is_trained
from robust_nc.pipeline.suite import Cell, Suite
from robust_nc.planning.cell_sizes import CellSizer, CellSizes
from robust_nc.planning.pieces import Piece, Probe, cell_pieces, expected
from robust_nc.planning.speeds import Speeds
from robust_nc.planning.survivors import Survival, read_records
from robust_nc.record.schema import Record

_RECORD = 36_000  # bytes of a record and its rows, without what it says of single images, about
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
    pieces: list[Piece]
    left: list[Piece]
    done: bool

    def seconds(self, speeds: Speeds, *, left: bool = False) -> dict[str, float]:
        """Seconds by stage of the whole cell, or of what is left of it."""
        found: dict[str, float] = {}
        for piece in self.left if left else self.pieces:
            seconds = speeds.rates[piece.probe.key].seconds(piece.calls, piece.images)
            found[piece.stage] = found.get(piece.stage, 0.0) + seconds
        return found

    @property
    def results(self) -> float:
        """Bytes of its record, rows and evidence."""
        broken = max(self.survival.clean - self.survival.robust, 0.0)
        return _RECORD + _PER_IMAGE * self.sizes.judged + _EVIDENCE * self._values * broken

    @property
    def weights(self) -> float:
        """Bytes of its checkpoints: best, last, momentum, raw ones of an average."""
        averaged = self.cell.config.train.averaging is not None
        return self.sizes.weight_bytes * (3.0 + averaged)

    @property
    def running(self) -> float:
        """Bytes that it needs beside these while it runs: logs, and two checkpoints more."""
        return 2 * self.weights + _LOGGED * self._values

    @property
    def _values(self) -> float:
        return float(self.sizes.judged * math.prod(self.sizes.info.image_shape))


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
        sizes, survival = sizer.sizes(cell.config), expected(cell.config, known)
        name, done, left = training_id(cell.config), is_recorded(cell, out), list[Piece]()
        pieces = cell_pieces(sizes, survival, trained=name in shared)
        shared.add(name)
        if not done:
            there = name in made or is_trained(cell, out)
            left = cell_pieces(sizes, survival, trained=there)
            made.add(name)
        cells.append(PlannedCell(cell, sizes, survival, pieces, left, done))
    return cells


def probes_of(cells: Iterable[PlannedCell]) -> tuple[Probe, ...]:
    """Return all that has to be timed to price some cells, each once."""
    pieces = (piece for cell in cells for piece in (*cell.pieces, *cell.left))
    return tuple({piece.probe.key: piece.probe for piece in pieces}.values())


class Totals:
    """Sums over the cells of a suite, or over those that are left."""

    def __init__(
        self, cells: Sequence[PlannedCell], speeds: Speeds, devices: int, *, left: bool
    ) -> None:
        todo = [cell for cell in cells if not (left and cell.done)]
        self.cells = len(todo)
        chains: dict[str, float] = {}  # cells that share their weights run one after the other
        for cell in todo:
            name = training_id(cell.cell.config)
            seconds = sum(cell.seconds(speeds, left=left).values())
            chains[name] = chains.get(name, 0.0) + seconds
        self.seconds = sum(chains.values())
        self.wall = wall_clock(chains.values(), devices)
        self.results = sum(cell.results for cell in todo)
        self.weights = sum({training_id(c.cell.config): c.weights for c in todo}.values())
        running = sorted((cell.running for cell in todo), reverse=True)
        self.peak = self.results + self.weights + sum(running[:devices])


def wall_clock(work: Iterable[float], devices: int) -> float:
    """Seconds until all chains are done, each begun in order by the first of so many devices."""
    ends = [0.0] * devices
    for seconds in work:
        ends[ends.index(min(ends))] += seconds
    return max(ends)

"""What a suite will cost: every cell's pieces, priced by measured speeds.

>>> one = [Chain((2.0, 1.0)), Chain((2.0,)), Chain((1.0,))]
>>> wall_clock(one, 2)
3.0
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from robust_nc.config import training_id
from robust_nc.exceptions import CheckpointError, RecordError
from robust_nc.pipeline.suite import Cell, Suite
from robust_nc.planning.cell_sizes import Anatomist, Site
from robust_nc.planning.cells import cell_pieces, expected
from robust_nc.planning.disk import Disk, disk_of
from robust_nc.planning.pieces import Passes, Piece, Probe, total
from robust_nc.planning.speeds import Rate, Speeds, distinct, lacking, seconds_of
from robust_nc.planning.survivors import Survival, read_records
from robust_nc.record.folder import checkpoint_folder, record_path
from robust_nc.record.schema import Record, read_record
from robust_nc.runtime.progress import Report
from robust_nc.training.checkpoint import read_manifest


class Sketch(NamedTuple):
    """One cell, counted: with its training only where no cell before it makes the same weights.

    `left` are the pieces that are still to be done: none of a cell that has a whole record.
    """

    cell: Cell
    site: Site
    survival: Survival
    pieces: tuple[Piece, ...]
    left: tuple[Piece, ...]
    done: bool


class Chain(NamedTuple):
    """Seconds of cells that share their weights, and run one after the other."""

    seconds: tuple[float, ...]


class Cost(NamedTuple):
    """One cell, priced: passes, seconds by stage, for the whole cell and for what is left."""

    sketch: Sketch
    passes: Passes
    seconds: dict[str, float]
    left: dict[str, float]
    disk: Disk


def sketch_suite(
    suite: Suite, out: Path, anatomist: Anatomist, records: Sequence[Record] = ()
) -> list[Sketch]:
    """Count all cells of a suite; those with a whole record in `out` have nothing left.

    `records` of earlier runs say who survives, beside those that are in `out`.
    """
    known = [*read_records([out]), *records]
    shared: set[str] = set()
    made: set[str] = set()
    sketches = []
    for cell in suite.cells:
        site = anatomist.look(cell.config)
        survival = expected(site, known)
        name = training_id(cell.config)
        pieces = tuple(cell_pieces(site, survival, trained=name in shared))
        shared.add(name)
        done = is_done(cell, out)
        left: tuple[Piece, ...] = ()
        if not done:
            there = name in made or is_trained(cell, out)
            left = tuple(cell_pieces(site, survival, trained=there))
            made.add(name)
        sketches.append(Sketch(cell, site, survival, pieces, left, done))
    return sketches


def is_done(cell: Cell, out: Path) -> bool:
    """Whether a cell has a whole record, as `only-missing` sees it."""
    path = record_path(out, cell.model, cell.id)
    if not path.exists():
        return False
    try:
        read_record(path).rows()
    except RecordError:
        return False
    return True


def is_trained(cell: Cell, out: Path) -> bool:
    """Whether the weights of a cell are there, trained to the end."""
    path = checkpoint_folder(out, training_id(cell.config)) / "last.json"
    try:
        return path.exists() and read_manifest(path).get("epoch") == cell.config.train.epochs
    except CheckpointError:
        return False


def probes_of(sketches: Iterable[Sketch]) -> tuple[Probe, ...]:
    """Return all that has to be timed to price some cells."""
    return distinct(piece for sketch in sketches for piece in (*sketch.pieces, *sketch.left))


def measure(
    probes: Sequence[Probe], speeds: Speeds, bench: Callable[[Probe], Rate], report: Report
) -> Speeds:
    """Time what a table lacks, and return it filled; `report` is told the share and the probe."""
    todo, rates = lacking(speeds, probes), dict(speeds.rates)
    for number, probe in enumerate(todo):
        report(number / len(todo), probe.key)
        rates[probe.key] = bench(probe)
    return dataclasses.replace(speeds, rates=rates)


def price(sketches: Iterable[Sketch], speeds: Speeds) -> list[Cost]:
    """Price cells by speeds that hold all their probes."""
    rates = speeds.rates
    return [
        Cost(
            sketch=sketch,
            passes=total(sketch.pieces),
            seconds=seconds_of(sketch.pieces, rates),
            left=seconds_of(sketch.left, rates),
            disk=disk_of(sketch.site, sketch.pieces, rates),
        )
        for sketch in sketches
    ]


def chains(costs: Iterable[Cost], *, left: bool = False) -> list[Chain]:
    """Put the seconds of cells that share their weights together, as a run does."""
    found: dict[str, list[float]] = {}
    for cost in costs:
        seconds = sum((cost.left if left else cost.seconds).values())
        if seconds:
            found.setdefault(training_id(cost.sketch.cell.config), []).append(seconds)
    return [Chain(tuple(seconds)) for seconds in found.values()]


def wall_clock(work: Iterable[Chain], devices: int) -> float:
    """Seconds until all chains are done, each begun in order by the first of so many devices."""
    ends = [0.0] * devices
    for chain in work:
        first = ends.index(min(ends))
        ends[first] += sum(chain.seconds)
    return max(ends)

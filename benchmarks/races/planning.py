"""The plan of a cell against the cell: seconds predicted from short timings, and seconds taken.

Rounds alternate: in each, the speeds of every case are measured anew, its cell is planned from
them, and run. Both are in seconds of this process's CPU by default, since another process that
takes half of a core would else count for one of the two only. Two predictions are told: `blind`,
with survivors that are assumed, and `known`, with those that a record of the same kind of model
has, as in the second seed of a suite.

    python -m robust_nc.benchmarks.races.planning --rounds 3
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import tyro

from robust_nc.benchmarks.races.timing import conditions, markdown
from robust_nc.config import RunConfig, read
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.suite import Cell, Suite, read_suite
from robust_nc.planning.cell_sizes import Anatomist
from robust_nc.planning.pieces import STAGES
from robust_nc.planning.plan import measure, price, probes_of, sketch_suite
from robust_nc.planning.speeds import Speeds, here
from robust_nc.planning.stopwatch import Stopwatch
from robust_nc.planning.timing import Bench
from robust_nc.record import read_record
from robust_nc.record.folder import record_path


class Found(NamedTuple):
    """Seconds by stage of one case in one round: planned blindly, planned knowing, and taken."""

    blind: Mapping[str, float]
    known: Mapping[str, float]
    taken: Mapping[str, float]


def _digits(objective: str) -> Cell:
    return _one(
        "quickstart", lambda config: config.train.objective.name == objective and config.seed == 0
    )


def _heads(objective: str) -> Cell:
    return _one(
        "heads-under-attack",
        lambda config: config.train.objective.name == objective and config.seed == 0,
    )


def _one(suite: str, chosen: Callable[[RunConfig], bool]) -> Cell:
    cells = read_suite(suite).cells
    return next(
        cell for cell in cells if cell.config.model.head.name == "linear" and chosen(cell.config)
    )


def _cell(name: str, **tables: Any) -> Cell:
    return Cell(name, name, read(RunConfig, tables))


def _shapes(shape: Sequence[int], train: int, test: int) -> dict[str, Any]:
    data = {"name": "synthetic", "image_shape": list(shape), "train_size": train, "test_size": test}
    return {"dataset": data, "validation": 0.1}


def _garments() -> Cell:
    """As the suite `fashion`, on fewer images, and on made ones: no data set is needed."""
    return _cell(
        "small_cnn-28",
        data=_shapes((1, 28, 28), 1_000, 200),
        model={"backbone": {"name": "small_cnn", "width": 32}},
        train={"objective": {"name": "pgd", "steps": 7}, "epochs": 2},
        threat={"eps": 0.1},
        evaluation={"protocol": "fast", "examples": 100},
        measure={"train_examples": 300, "test_examples": 200, "targets": ["cyclic"]},
    )


def _resnet() -> Cell:
    return _cell(
        "preact_resnet18",
        data=_shapes((3, 32, 32), 80, 40),
        model={"backbone": "preact_resnet18"},
        train={"objective": {"name": "pgd", "steps": 2}, "epochs": 1, "batch_size": 24},
        evaluation={"protocol": "pgd_ce", "examples": 20},
        measure={
            "train_examples": 40,
            "test_examples": 20,
            "steps": 3,
            "targets": ["cyclic"],
            "radii": [1.0],
            "trajectories": 0,
            "batch_size": 20,
        },
    )


CASES: dict[str, Callable[[], Cell]] = {
    "digits, standard, fast protocol": lambda: _digits("standard"),
    "digits, pgd, fast protocol": lambda: _digits("pgd"),
    "digits, trades, fast protocol": lambda: _digits("trades"),
    "digits, standard, standard protocol": lambda: _heads("standard"),
    "digits, pgd, standard protocol": lambda: _heads("pgd"),
    "small_cnn on 1x28x28, pgd": _garments,
    "preact_resnet18 on 3x32x32, pgd": _resnet,
}


def compare(cell: Cell, *, clock: Callable[[], float], seconds: float) -> Found:
    """Plan a cell from speeds measured now, run it, and return what came of both."""
    suite, anatomist = Suite("race", "", (cell,)), Anatomist(None)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        sketches = sketch_suite(suite, out, anatomist)
        bench = Bench(anatomist, Stopwatch(seconds, clock))
        empty = here(torch.get_num_threads())
        speeds = measure(probes_of(sketches), empty, bench.time, lambda share, text: None)
        # Stages are timed by the clock of `pacing`.
        with mock.patch("robust_nc.runtime.progress.time", SimpleNamespace(monotonic=clock)):
            run_cell(cell, suite.name, out, None, report=lambda event: None)
        record = read_record(record_path(out, cell.model, cell.id)).record
        return Found(price(sketches, speeds)[0].seconds, _after(suite, out, speeds), record.seconds)


def _after(suite: Suite, out: Path, speeds: Speeds) -> Mapping[str, float]:
    """Plan again, as for another seed, now that a record is there."""
    return price(sketch_suite(suite, out, Anatomist(None)), speeds)[0].seconds


def _told(found: Sequence[Found]) -> list[str]:
    """One row: seconds taken and predicted, ratio in total with its range, and ratio by stage."""
    taken = [sum(each.taken.values()) for each in found]
    known = [sum(each.known.values()) for each in found]
    blind = [sum(each.blind.values()) for each in found]
    ratios = [one / two for one, two in zip(known, taken, strict=True)]
    stages = []
    for stage in STAGES:
        mine = [each.known.get(stage, 0.0) for each in found]
        its = [each.taken.get(stage, 0.0) for each in found]
        share = statistics.median(its)
        stages.append(f"{statistics.median(mine) / share:.2f} ({share:.1f} s)" if share else "")
    return [
        f"{statistics.median(taken):.1f}",
        f"{statistics.median(known):.1f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{statistics.median(b / t for b, t in zip(blind, taken, strict=True)):.2f}",
        *stages,
    ]


def main(
    rounds: int = 3,
    cases: tuple[str, ...] = tuple(CASES),
    seconds: float = 0.3,
    wall: bool = False,
    threads: int = 1,
) -> None:
    """Plan cells and run them, and print a table of both.

    Args:
        rounds: How often each cell is planned and run.
        cases: Which cases.
        seconds: For how long each speed is measured, about.
        wall: Use seconds by the clock instead of those of the CPU.
        threads: Threads of torch.
    """
    torch.set_num_threads(threads)
    print(conditions())
    sys.stdout.flush()
    clock = time.perf_counter if wall else time.process_time
    found: dict[str, list[Found]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in cases:
            found[name].append(compare(CASES[name](), clock=clock, seconds=seconds))
            print(f"round {number + 1}, {name}: {' '.join(_told(found[name][-1:]))}")
            sys.stdout.flush()
    head = ["cell", "taken, s", "planned, s", "planned / taken (range)", "blind / taken", *STAGES]
    print(markdown([head, *([name, *_told(each)] for name, each in found.items())]))


if __name__ == "__main__":
    tyro.cli(main)

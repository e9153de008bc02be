"""Cells of a suite on a machine that is there for minutes at a time.

Every call trains, attacks and measures the chosen cells as far as the time allows, through the same
functions as `robust-nc run`, and copies what is finished to --out; the next call goes on where this
one stopped. Exit codes: 0 all chosen cells are done, 2 bad input, 3 time is up, call again.

    python -m robust_nc.benchmarks.gpu.cell --cell 0 --out results-gpu --minutes 9
"""

import dataclasses
import json
import math
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Literal

import tyro

from robust_nc.benchmarks.races.timing import conditions, markdown
from robust_nc.config import training_id
from robust_nc.engines.options import RunOptions
from robust_nc.engines.run_suite import Hooks, run_suite
from robust_nc.exceptions import ConfigError, RobustNCError
from robust_nc.io import files
from robust_nc.pipeline.cell import CellEvent, run_cell
from robust_nc.pipeline.suite import Cell, Suite, read_suite
from robust_nc.record.folder import checkpoint_folder, evidence_path, record_path, rows_path
from robust_nc.runtime import default_device
from robust_nc.training.progress import TrainEvent, describe_event, read_log
from robust_nc.training.run import train_cell

Keep = Literal["records", "best", "all"]

DONE, BAD_INPUT, TIME_UP = 0, 2, 3


class TimeUpError(Exception):
    """The time is up; nothing is lost but what came after the last checkpoint."""


class Clock:
    """Ends the work before the time is up: a training between epochs, anything else at once."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self._longest = self._began = 0.0
        self._epoch = self._told = -1.0

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.end - time.monotonic()

    def start(self) -> None:
        """Begin another training."""
        self._epoch, self._longest = -1.0, 0.0

    def trains(self, event: TrainEvent) -> None:
        """Take a report of a training that saves after every epoch.

        At the first report of an epoch the one before is saved: stop there if as long a one as the
        longest so far would not fit any more.
        """
        now = time.monotonic()
        if event.epoch != self._epoch:
            if self._epoch >= 0:
                self._longest = max(self._longest, now - self._began)
            self._epoch, self._began = event.epoch, now
            say(describe_event(event))
        self._check(self._longest if now == self._began else 0.0)

    def works(self, event: CellEvent) -> None:
        """Take a report of another stage."""
        if time.monotonic() - self._told > 10:
            self._told = time.monotonic()
            say(event.status)
        self._check(0.0)

    def _check(self, needed: float) -> None:
        if self.left < needed:
            raise TimeUpError


def say(text: str) -> None:
    """Write a line of progress."""
    print(text, file=sys.stderr, flush=True)


def choose(
    suite: Suite,
    *,
    cell: tuple[int, ...],
    objective: str | None,
    head: str | None,
    seed: int | None,
) -> list[Cell]:
    """Return the cells of these places in the suite (none: all), of this objective, head, seed."""
    for place in cell:
        if not 0 <= place < len(suite.cells):
            raise ConfigError(f"{suite.name} has cells 0..{len(suite.cells) - 1}, found {place}")
    chosen = [suite.cells[place] for place in cell or range(len(suite.cells))]
    wanted = {"objective": objective, "head": head, "seed": seed}
    found = [
        one
        for one in chosen
        if objective in (None, one.config.train.objective.name)
        and head in (None, one.config.model.head.name)
        and seed in (None, one.config.seed)
    ]
    if not found:
        raise ConfigError(
            f"no cell of {suite.name} is chosen by {wanted} and cells {cell or 'all'}"
        )
    return found


def work_through(
    cells: list[Cell], suite: Suite, work: Path, clock: Clock, *, reserve: float
) -> bool:
    """Do what is missing of the cells; return whether all is done. `reserve` in seconds.

    A cell whose training is done waits for a later call if less than `reserve` is left.
    """
    for cell in _missing(cells, suite, work):
        if clock.left <= 0:
            return False
        say(f"{cell.model} seed {cell.config.seed}, cell {cell.id}")
        clock.start()
        try:
            train_cell(
                cell.config,
                folder=checkpoint_folder(work, training_id(cell.config)),
                device=default_device(),
                report=clock.trains,
                save_seconds=0.0,
            )
            if clock.left < reserve:
                raise TimeUpError
            run_cell(cell, suite.name, work, None, report=clock.works)
        except TimeUpError:
            return False
    return True


def _missing(cells: list[Cell], suite: Suite, work: Path) -> list[Cell]:
    hooks = Hooks(lambda event: None, lambda result: None, lambda cell, message: None)
    chosen = suite._replace(cells=tuple(cells))
    absent = run_suite(
        chosen, work, RunOptions(suite.name, overwrite="only-cache"), hooks=hooks
    ).absent
    return [cell for cell in cells if cell.id in absent]


def with_evidence(suite: Suite, count: int | None) -> frozenset[str]:
    """Return the cells whose evidence is brought: `count` of the suite (None: all).

    One cell of each model, in the order of the suite, then the second of each, and so on.
    """
    if count is not None and count < 0:
        raise ConfigError(f"--evidence must be at least 0, found {count}")
    seen: Counter[str] = Counter()
    turns = []
    for place, cell in enumerate(suite.cells):
        turns.append((seen[cell.model], place, cell.id))
        seen[cell.model] += 1
    return frozenset(name for _, _, name in sorted(turns)[:count])


def bring(
    cells: list[Cell], work: Path, out: Path, *, keep: Keep, evidence: frozenset[str]
) -> None:
    """Copy records, rows and training logs, and with `keep` weights, in the layout of a run.

    Evidence of cells that are not in `evidence` stays behind: their records name its SHA-256.
    """
    for cell in cells:
        folder = checkpoint_folder(work, training_id(cell.config))
        path = record_path(work, cell.model, cell.id)
        wanted = [rows_path(work, cell.model, cell.id)]
        wanted += [evidence_path(path)] * (cell.id in evidence)
        wanted = [*wanted, path] if path.is_file() else []
        wanted.append(folder / "log.jsonl")
        if keep == "all":
            wanted += sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json"))
        elif keep == "best" and (folder / "best.json").is_file():
            about = json.loads((folder / "best.json").read_text())
            wanted += [folder / about["tensors"]["name"], folder / "best.json"]
        for path in wanted:
            if path.is_file():
                files.write_bytes(out / path.relative_to(work), path.read_bytes())


def progress(cells: list[Cell], work: Path) -> str:
    """Table of the chosen cells: epochs trained, images per second of training, accuracies."""
    rows = [["cell", "model", "seed", "epochs", "images/s (median)", "clean", "robust"]]
    for cell in cells:
        path = checkpoint_folder(work, training_id(cell.config)) / "log.jsonl"
        log = read_log(path) if path.is_file() else []
        speed = f"{statistics.median(r['images_per_second'] for r in log):,.0f}" if log else ""
        epochs = f"{len(log)}/{cell.config.train.epochs}"
        scores = _scores(record_path(work, cell.model, cell.id))
        rows.append([cell.id, cell.model, str(cell.config.seed), epochs, speed, *scores])
    return markdown(rows)


def _scores(path: Path) -> list[str]:
    if not path.is_file():
        return ["", ""]
    scores = json.loads(path.read_text())["scores"]
    return [f"{scores[name]['value']:.1%}" for name in ("clean", "robust")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to run, for how long, and where to put it."""

    suite: str = "cifar10-linf"
    """Name of a suite, or a path that ends with .toml."""
    cell: tuple[int, ...] = ()
    """Places in the suite, from 0 (default: all cells)."""
    objective: str | None = None
    """Only cells of this objective."""
    head: str | None = None
    """Only cells of this head."""
    seed: int | None = None
    """Only cells of this seed."""
    out: Path | None = None
    """Where finished records, rows and logs are copied to (default: nowhere)."""
    work: Path | None = None
    """Where cells are made, with their checkpoints (default: out/<suite>)."""
    keep: Keep = "records"
    """Also copy the best weights (best), or all checkpoints, to go on elsewhere (all)."""
    evidence: int | None = None
    """Copy the evidence of so many records of the suite only, one of each model first; the others
    name theirs by its SHA-256 (default: of all)."""
    minutes: float = math.inf
    """Stop before this many minutes have passed."""
    reserve: float = 3.0
    """Minutes that must be left to begin the attack and the measures of a trained cell."""


def run(options: Options) -> int:
    """Do as the options say, print the table, and return the exit code."""
    clock = Clock(60 * options.minutes)
    suite = read_suite(options.suite)
    cells = choose(
        suite,
        cell=options.cell,
        objective=options.objective,
        head=options.head,
        seed=options.seed,
    )
    evidence = with_evidence(suite, options.evidence)
    work = options.work or Path("out") / suite.name
    say(conditions())
    done = work_through(cells, suite, work, clock, reserve=60 * options.reserve)
    if options.out and options.out.resolve() != work.resolve():
        bring(cells, work, options.out, keep=options.keep, evidence=evidence)
    print(progress(cells, work))
    if not done:
        say("time is up; the same call goes on from the checkpoint")
    return DONE if done else TIME_UP


def main() -> int:
    """Entry point."""
    options = tyro.cli(Options)
    try:
        return run(options)
    except RobustNCError as error:
        say(f"cell: {error}")
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())

"""One cell of a suite: train, attack, measure, record. What is there already is not done again."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import nn

from robust_nc.config import RunConfig, training_id
from robust_nc.data.base import Split
from robust_nc.data.load import dataset_info, read_split, to_unit
from robust_nc.evaluation import Outcome, evaluate
from robust_nc.exceptions import RecordError
from robust_nc.grid.tapbank import chosen_taps
from robust_nc.models.build import build_model
from robust_nc.pacing import Progress
from robust_nc.plugins import find_attack
from robust_nc.profiling import profile_cell, sweep_rows
from robust_nc.record import tidy, write_record, write_rows
from robust_nc.recording import Made, make_record
from robust_nc.runtime import default_device, device_of
from robust_nc.store import checkpoint_folder, record_path, remove_file, rows_path, verdict_log
from robust_nc.suite import Cell
from robust_nc.training.checkpoint import read_manifest
from robust_nc.training.progress import TrainEvent, describe_event
from robust_nc.training.run import Trained, resolve_model, train_cell
from robust_nc.training.watch import VALIDATION_EXAMPLES


class CellEvent(NamedTuple):
    """Where a cell stands: the share done of its current stage, and a line to show."""

    cell: str
    share: float
    status: str


class CellResult(NamedTuple):
    """What the driver shows of a finished cell; accuracies in [0, 1]."""

    cell: str
    model: str
    seed: int
    clean: float
    robust: float
    seconds: float


Report = Callable[[CellEvent], None]


def run_cell(cell: Cell, suite: str, out: Path, root: Path | None, *, report: Report) -> CellResult:
    """Train (or resume, or take the finished checkpoint), attack, measure, and write the record."""
    config, clock = cell.config, _Clock()
    test = _check(config, root)
    folder = checkpoint_folder(out, training_id(config))

    def on_epoch(event: TrainEvent) -> None:
        report(CellEvent(cell.id, event.share, describe_event(event)))

    trained = train_cell(config, root=root, folder=folder, device=default_device(), report=on_epoch)
    clock.stage("train")
    best = _judge(trained.best, test, cell, verdict_log(out, cell.id, "best"), report)
    last = best
    if not _same_weights(folder):
        last = _judge(trained.last, test, cell, verdict_log(out, cell.id, "last"), report)
    clock.stage("attack")
    rows = _measure(trained, test, cell, report)
    clock.stage("measure")
    file = write_rows(rows_path(out, cell.model, cell.id), rows)
    made = Made(trained, test, best, last, rows, file, folder, clock.seconds)
    record = make_record(cell, suite, made)
    write_record(record_path(out, cell.model, cell.id), record)
    for which in ("best", "last"):
        remove_file(verdict_log(out, cell.id, which))
    clean, robust = record.scores["clean"].value, record.scores["robust"].value
    return CellResult(cell.id, cell.model, config.seed, clean, robust, sum(clock.seconds.values()))


def _check(config: RunConfig, root: Path | None) -> Split:
    """Refuse now what would else end the cell after its training; return the test split."""
    info = dataset_info(config.data.dataset, root)
    chosen_taps(build_model(resolve_model(config.model, info)), config.measure.taps)
    return read_split(config.data.dataset, "test", root=root, limit=config.data.test_limit)


def _same_weights(folder: Path) -> bool:
    """Whether the last epoch was the best: then one verdict serves both."""
    best, last = (read_manifest(folder / f"{which}.json")["tensors"] for which in ("best", "last"))
    return bool(best["sha256"] == last["sha256"])


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def stage(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._began, 3)
        self._began = now


def _judge(model: nn.Module, test: Split, cell: Cell, log: Path, report: Report) -> Outcome:
    """Make the verdict on the first examples of test; killed, it goes on from its log."""

    def show(progress: Progress) -> None:
        report(CellEvent(cell.id, progress.share, str(progress)))

    config, settings = cell.config, cell.config.evaluation
    count, own = settings.examples or len(test.labels), settings.attack
    judge = partial(
        evaluate,
        model,
        to_unit(test.images[:count]),
        test.labels[:count],
        config.threat.ball(),
        protocol=settings.protocol,
        attack=None if own is None else find_attack(own.name, own.options),
        seed=config.seed,
        batch_size=settings.batch_size,
        precision=settings.precision,
        log=log,
        report=show,
    )
    try:
        return judge()
    except RecordError:  # left by other weights of this cell: a log of ours, worth nothing now
        remove_file(log)
        return judge()


def _measure(trained: Trained, test: Split, cell: Cell, report: Report) -> pd.DataFrame:
    """Geometry of the last weights, accuracy against eps, and the curves of the training."""

    def show(share: float, status: str) -> None:
        report(CellEvent(cell.id, share, status))

    config = cell.config
    initial = None
    if config.measure.agop_examples:
        initial = build_model(trained.model, seed=config.seed).to(device_of(trained.last))
    geometry = profile_cell(trained.last, trained.train, test, config, initial=initial, report=show)
    sweep = sweep_rows(trained.best, test, config)
    sizes = {
        "train": min(config.train.collapse_examples, len(trained.train.labels)),
        "validation": min(VALIDATION_EXAMPLES, len(trained.validation.labels)),
    }
    curves = [row for entry in trained.history for row in _curve_rows(entry, sizes)]
    return pd.concat([geometry, tidy([*sweep, *curves])], ignore_index=True)


# Keys of the training log, and where their values stand in the tidy rows.
_CURVES: dict[str, dict[str, Any]] = {
    "nc1_trace": {"tap": "penultimate", "grouping": "true", "measure": "nc1_trace"},
    "nc2_angle": {"tap": "penultimate", "grouping": "true", "measure": "nc2_angle"},
    "train_accuracy": {"measure": "accuracy"},
    "validation_clean": {"measure": "accuracy", "split": "validation"},
    "validation_attacked": {
        "measure": "accuracy",
        "split": "validation",
        "condition": "attacked",
    },
}


def _curve_rows(entry: dict[str, Any], sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Turn one epoch of the training log into rows; `sizes` are examples by split."""
    common = {"tap": "output", "condition": "clean", "split": "train", "epoch": entry["epoch"]}
    rows = [
        common | place | {"value": float(entry[key])}
        for key, place in _CURVES.items()
        if entry.get(key) is not None
    ]
    return [row | {"n": sizes[row["split"]]} for row in rows]

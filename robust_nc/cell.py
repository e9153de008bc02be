"""One cell of a suite: train, attack, measure, record. What is there already is not done again."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from torch import Tensor

from robust_nc.config import RunConfig
from robust_nc.data.base import Split, first
from robust_nc.data.load import dataset_info, read_split, to_unit
from robust_nc.evaluation import Outcome, evaluate
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.geometry.dilation import MEASURES
from robust_nc.grid.conditions import BY_TREE
from robust_nc.grid.corrupted import CorruptionSource, check_corrupted, corruption_source
from robust_nc.grid.tapbank import chosen_taps
from robust_nc.hierarchy.tree import Hierarchy, tree_of
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier
from robust_nc.naming import training_id
from robust_nc.pacing import Clock, Progress
from robust_nc.plugins import find_attack
from robust_nc.profiling import profile_cell, sweep_rows
from robust_nc.record import tidy, write_record, write_rows
from robust_nc.recording import Made, keep_evidence, make_record
from robust_nc.runtime import default_device, device_of
from robust_nc.store import (
    checkpoint_folder,
    evidence_path,
    record_path,
    remove_file,
    rows_path,
    verdict_log,
)
from robust_nc.suite import Cell
from robust_nc.training.checkpoint import read_manifest
from robust_nc.training.memorization import TEST_EXAMPLES, TRAIN_EXAMPLES
from robust_nc.training.progress import TrainEvent, describe_event
from robust_nc.training.run import Trained, check_training, train_cell
from robust_nc.training.watch import VALIDATION_EXAMPLES, spread
from robust_nc.verdicts import Verdicts, curve_rows, verdict_rows


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
    config, clock = cell.config, Clock()
    given = _gather(config, root)
    test = given.test
    folder = checkpoint_folder(out, training_id(config))

    def on_epoch(event: TrainEvent) -> None:
        report(CellEvent(cell.id, event.share, describe_event(event)))

    trained = train_cell(config, root=root, folder=folder, device=default_device(), report=on_epoch)
    clock.stage("train")
    verdicts = _judge_all(trained, test, cell, out, folder, report)
    clock.stage("attack")
    path = record_path(out, cell.model, cell.id)
    judged = first(test, len(verdicts.best.robust))
    settings = config.evaluation
    report(CellEvent(cell.id, 1.0, "evidence"))
    kept = keep_evidence(
        evidence_path(path),
        trained.best,
        judged,
        verdicts.best,
        config.threat.ball(),
        protocol=settings.protocol,
        seed=config.seed,
        batch_size=settings.batch_size,
    )
    clock.stage("evidence")
    rows = _measure(trained, given, cell, report)
    rows = pd.concat([rows, tidy(verdict_rows(verdicts, settings))], ignore_index=True)
    clock.stage("measure")
    file = write_rows(rows_path(out, cell.model, cell.id), rows)
    made = Made(trained, judged, verdicts, kept, rows, file, folder, clock.seconds)
    record = make_record(cell, suite, made)
    write_record(path, record)
    for which in Verdicts._fields:
        remove_file(verdict_log(out, cell.id, which))
    clean, robust = record.scores["clean"].value, record.scores["robust"].value
    return CellResult(cell.id, cell.model, config.seed, clean, robust, sum(clock.seconds.values()))


class _Given(NamedTuple):
    """The test split, distances between its classes `(K, K)` or None, corrupted images or None."""

    test: Split
    distances: Tensor | None
    corrupted: CorruptionSource | None


def check_cell(config: RunConfig, root: Path | None) -> Hierarchy | None:
    """Refuse a configuration that could not be trained or measured; return the classes' tree.

    Builds all parts and reads no images. Raises `ConfigError`, `InputError` or `DataError`.
    """
    info = dataset_info(config.data.dataset, root)
    chosen_taps(check_training(config, info), config.measure.taps)
    tree = tree_of(config.data.hierarchy, info.name)
    if tree is not None:
        tree.check_classes(info.class_names)
    elif set(config.measure.targets) & set(BY_TREE):
        raise ConfigError(
            f"measure.targets: {' and '.join(BY_TREE)} need a tree of the classes, and {info.name} "
            "has none of its own; set data.hierarchy to a TOML or JSON file"
        )
    return tree


def _gather(config: RunConfig, root: Path | None) -> _Given:
    """Gather what the cell needs, and refuse now what would else end it after its training."""
    tree = check_cell(config, root)
    test = read_split(config.data.dataset, "test", root=root, limit=config.data.test_limit)
    corrupted = None
    if config.measure.corruptions:
        corrupted = corruption_source(dataset_info(config.data.dataset, root).name, root)
        check_corrupted(corrupted, config.measure, test)
    return _Given(test, None if tree is None else tree.distances(), corrupted)


def _judge_all(
    trained: Trained, test: Split, cell: Cell, out: Path, folder: Path, report: Report
) -> Verdicts:
    """Judge the best and the last weights, and the best ones by the weaker protocol beside."""
    settings = cell.config.evaluation

    def judge(model: Classifier, which: str, protocol: str) -> Outcome:
        return _judge(model, test, cell, protocol, verdict_log(out, cell.id, which), report)

    best = last = judge(trained.best, "best", settings.protocol)
    if not _same_weights(folder):
        last = judge(trained.last, "last", settings.protocol)
    beside = None
    if settings.beside is not None:
        beside = judge(trained.best, "beside", settings.beside)
    return Verdicts(best, last, beside)


def _same_weights(folder: Path) -> bool:
    """Whether the last epoch was the best: then one verdict serves both."""
    best, last = (read_manifest(folder / f"{which}.json")["tensors"] for which in ("best", "last"))
    return bool(best["sha256"] == last["sha256"])


def _judge(
    model: Classifier, test: Split, cell: Cell, protocol: str, log: Path, report: Report
) -> Outcome:
    """Make the verdict on the first examples of test; killed, it goes on from its log."""

    def show(progress: Progress) -> None:
        report(CellEvent(cell.id, progress.share, str(progress)))

    config, settings = cell.config, cell.config.evaluation
    count, beside = settings.examples or len(test.labels), protocol == settings.beside
    own = None if beside else settings.attack  # which would make a weaker protocol stronger
    judge = partial(
        evaluate,
        model,
        to_unit(test.images[:count]),
        test.labels[:count],
        config.threat.ball(),
        protocol=protocol,
        attack=None if own is None else find_attack(own.name, own.options),
        seed=config.seed,
        batch_size=settings.batch_size,
        precision=settings.precision,
        log=log,
        checks=not beside,
        report=show,
    )
    try:
        return judge()
    except RecordError:  # left by other weights of this cell: a log of ours, worth nothing now
        remove_file(log)
        return judge()


def _measure(trained: Trained, given: _Given, cell: Cell, report: Report) -> pd.DataFrame:
    """Geometry of the last weights, accuracy against eps, and the curves of the training."""

    def show(share: float, status: str) -> None:
        report(CellEvent(cell.id, share, status))

    config = cell.config
    initial = None
    if config.measure.agop_examples:
        initial = build_model(trained.model, seed=config.seed).to(device_of(trained.last))
    learnt = trained.train._replace(labels=trained.altered.original)
    geometry = profile_cell(
        trained.last,
        learnt,
        given.test,
        config,
        given=None if config.data.noise is None else trained.train.labels,
        distances=given.distances,
        corrupted=given.corrupted,
        initial=initial,
        report=show,
    )
    sweep = sweep_rows(trained.best, given.test, config)
    sizes = _sizes(trained, config)
    curves = [row for entry in trained.history for row in curve_rows(entry, sizes)]
    return pd.concat([geometry, tidy([*sweep, *curves])], ignore_index=True)


def _sizes(trained: Trained, config: RunConfig) -> dict[str, int]:
    """Examples behind each value that was taken between epochs, by split or measure."""
    watched = spread(trained.train, TRAIN_EXAMPLES).ids
    corrupted = int(trained.altered.wrong_among(watched).sum())
    return {
        "train": min(config.train.collapse_examples, len(trained.train.labels)),
        "validation": min(VALIDATION_EXAMPLES, len(trained.validation.labels)),
        "dilation": min(TEST_EXAMPLES, trained.info.sizes["test"]),
        **dict.fromkeys((*MEASURES, "memorised"), corrupted),
    }

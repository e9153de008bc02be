"""One cell of a suite: train, attack, measure, record. What is there already is not done again."""

from pathlib import Path

import pandas as pd

from robust_nc.config import RunConfig
from robust_nc.data.base import Split, first
from robust_nc.evaluation.evaluate_model import Outcome
from robust_nc.evaluation.log import end_of_log
from robust_nc.geometry.dilation import MEASURES
from robust_nc.pipeline.caches import Geometry, noted_seconds
from robust_nc.pipeline.cell_inputs import Given, check_cell, gather, judged_count
from robust_nc.pipeline.make_record import Kept, Made, keep_evidence, make_record
from robust_nc.pipeline.stages import (
    CellEvent,
    CellResult,
    Report,
    checkpoints_of,
    geometry_of,
    judge_part,
    measure,
    train,
    verdict_parts,
    verdicts_of,
)
from robust_nc.pipeline.suite import Cell
from robust_nc.pipeline.verdict_parts import Part, join_parts, judge, remove_others
from robust_nc.pipeline.verdict_rows import Verdicts, curve_rows, verdict_rows
from robust_nc.profiling.profile_model import sweep_rows
from robust_nc.record import folder as store
from robust_nc.record.schema import tidy, write_record, write_rows
from robust_nc.runtime.executor import IN_PROCESS, Executor
from robust_nc.runtime.progress import Clock, Progress
from robust_nc.training.memorization import TEST_EXAMPLES, TRAIN_EXAMPLES
from robust_nc.training.run import Trained
from robust_nc.training.validation import VALIDATION_EXAMPLES, spread

__all__ = ["CellEvent", "CellResult", "Report", "check_cell", "run_cell"]


def run_cell(
    cell: Cell,
    suite: str,
    out: Path,
    root: Path | None,
    *,
    report: Report,
    executor: Executor = IN_PROCESS,
) -> CellResult:
    """Do what is missing of a cell's stages, write its record, and remove what they left for it.

    Nothing in the record depends on where a stage was done; its `seconds` are the sums of theirs.
    """
    config, clock = cell.config, Clock()
    given = gather(config, root)
    trained = train(cell, out, root, report)
    clock.stage("train")
    in_parts = _judge_parts(cell, out, root, trained, given.test, report)
    clock.stage("parts")
    verdicts = _judge_all(cell, out, trained, given.test, report)
    clock.stage("attack")
    path, judged = store.record_path(out, cell.model, cell.id), _judged(given.test, verdicts)
    report(CellEvent(cell.id, 1.0, "evidence"))
    kept = _keep_evidence(path, trained, judged, verdicts, config)
    clock.stage("evidence")
    geometry = _geometry(cell, out, trained, given, executor, report)
    clock.stage("geometry")
    rows = _rows(geometry, trained, given.test, verdicts, config)
    clock.stage("measure")
    file = write_rows(store.rows_path(out, cell.model, cell.id), rows)
    spent = clock.seconds
    seconds = {
        "train": noted_seconds(store.seconds_path(out, cell.id)) or spent["train"],
        "attack": round(in_parts + spent["attack"], 3),
        "evidence": spent["evidence"],
        "measure": round(geometry.seconds + spent["measure"], 3),
    }
    folder = checkpoints_of(cell, out)
    made = Made(trained, judged, verdicts, kept, rows, file, folder, seconds)
    record = make_record(cell, suite, made)
    write_record(path, record)
    store.remove_caches(out, cell.id)
    clean, robust = record.scores["clean"].value, record.scores["robust"].value
    return CellResult(cell.id, cell.model, config.seed, clean, robust, sum(seconds.values()))


def _judge_parts(
    cell: Cell, out: Path, root: Path | None, trained: Trained, test: Split, report: Report
) -> float:
    """Judge the blocks that are missing; return the seconds that parts took, wherever that was."""
    for which in verdicts_of(cell, out):
        remove_others(cell.config, _logs(cell, which, out), trained, test)
    if cell.config.evaluation.block is not None:
        for part in verdict_parts(cell, out, root):
            judge_part(cell, part, out, trained, test, report)
    logs = [path for which in verdicts_of(cell, out) for path in _logs(cell, which, out).values()]
    return sum(float(end["seconds"]) for end in map(end_of_log, logs) if end is not None)


def _judge_all(cell: Cell, out: Path, trained: Trained, test: Split, report: Report) -> Verdicts:
    """Judge the best and the last weights, and the best ones by the weaker protocol beside."""
    found = {
        which: _judge(cell, which, out, trained, test, report) for which in verdicts_of(cell, out)
    }
    return Verdicts(found["best"], found.get("last", found["best"]), found.get("beside"))


def _judge(
    cell: Cell, which: str, out: Path, trained: Trained, test: Split, report: Report
) -> Outcome:
    """Make a whole verdict, from those on its parts if there are any."""

    def show(progress: Progress) -> None:
        report(CellEvent(cell.id, progress.share, str(progress)))

    config, log = cell.config, store.verdict_log(out, cell.id, which)
    whole = Part(which, 0, judged_count(config, len(test.labels)))
    logs = _logs(cell, which, out)
    if logs:
        join_parts(config, whole, logs, trained, test, log=log)
    checks = which != "beside"
    return judge(config, whole, trained, test, log=log, checks=checks, report=show)


def _logs(cell: Cell, which: str, out: Path) -> dict[Part, Path]:
    found = store.part_logs(out, cell.id, which)
    return {Part(which, *place): path for place, path in found.items()}


def _judged(test: Split, verdicts: Verdicts) -> Split:
    return first(test, len(verdicts.best.robust))


def _keep_evidence(
    record: Path, trained: Trained, judged: Split, verdicts: Verdicts, config: RunConfig
) -> Kept:
    settings = config.evaluation
    return keep_evidence(
        store.evidence_path(record),
        trained.best,
        judged,
        verdicts.best,
        config.threat.ball(),
        protocol=settings.protocol,
        seed=config.seed,
        batch_size=settings.batch_size,
    )


def _geometry(
    cell: Cell, out: Path, trained: Trained, given: Given, executor: Executor, report: Report
) -> Geometry:
    """Return the geometry of the last weights, measured now if it is not there."""
    found = geometry_of(cell, out)
    if found is None:
        measure(cell, out, trained, given, executor, report)
        found = geometry_of(cell, out)
    assert found is not None, "it was written just now"
    return found


def _rows(
    geometry: Geometry, trained: Trained, test: Split, verdicts: Verdicts, config: RunConfig
) -> pd.DataFrame:
    """Join the geometry, accuracy against eps, the curves of the training, and the verdicts."""
    sweep = sweep_rows(trained.best, test, config)
    sizes = _sizes(trained, config)
    curves = [row for entry in trained.history for row in curve_rows(entry, sizes)]
    found = [
        pd.concat([geometry.rows, tidy([*sweep, *curves])], ignore_index=True),
        tidy(verdict_rows(verdicts, config.evaluation)),
    ]
    return pd.concat(found, ignore_index=True)


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

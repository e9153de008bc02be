"""One cell of a suite: train, attack, measure, record. What is there already is not done again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from robust_nc.config import RunConfig, allow_code, identifying
from robust_nc.data.base import Split, first_examples
from robust_nc.evaluation.evaluate_model import Outcome
from robust_nc.evaluation.log import end_of_log
from robust_nc.geometry.dilation import MEASURES
from robust_nc.pipeline.make_record import (
    KeptEvidence,
    keep_evidence,
    make_record,
    score,
    shot_scores,
    told_names,
    verdict_rows,
    which_examples,
)
from robust_nc.pipeline.stages import (
    CellResult,
    Geometry,
    checkpoints_of,
    gather_inputs,
    geometry_of,
    judge_part,
    judged_count,
    measure_cell,
    noted_seconds,
    train_or_read,
    verdict_parts,
    verdicts_of,
)
from robust_nc.pipeline.suite import Cell
from robust_nc.pipeline.verdict_parts import VerdictPart, evaluate_part, join_parts, remove_others
from robust_nc.profiling.profile_model import sweep_rows
from robust_nc.record import folder as store
from robust_nc.record.schema import Facts, File, Score, Weights, tidy, write_record, write_rows
from robust_nc.runtime.executor import IN_PROCESS
from robust_nc.runtime.progress import Clock, Report, progress_report
from robust_nc.runtime.torch_state import default_device
from robust_nc.training.checkpoint import read_manifest
from robust_nc.training.run import Trained
from robust_nc.training.stream import STREAMED
from robust_nc.training.validation import (
    TEST_EXAMPLES,
    TRAIN_EXAMPLES,
    VALIDATION_EXAMPLES,
    evenly_chosen,
)


class Verdicts(NamedTuple):
    """On the best and the last weights, and on the best by a weaker protocol, or None."""

    best: Outcome
    last: Outcome
    beside: Outcome | None


def run_cell(
    cell: Cell,
    suite: str,
    out: Path,
    root: Path | None,
    *,
    report: Report,
    logs: Sequence[str] = (),
) -> CellResult:
    """Do what is missing of a cell's stages, write its record, and remove what they left for it.

    `logs` are names of callbacks that hear of the training.
    Nothing in the record depends on where a stage was done; its `seconds` are the sums of theirs.
    """
    config, clock = cell.config, Clock()
    allow_code(config)
    given = gather_inputs(config, root)
    trained = train_or_read(cell, out, root, report, logs)
    clock.stage("train")
    in_parts = _judge_parts(cell, out, root, trained, given.test, report)
    clock.stage("parts")
    found = {
        which: _judge(cell, which, out, trained, given.test, report)
        for which in verdicts_of(cell, out)
    }
    verdicts = Verdicts(found["best"], found.get("last", found["best"]), found.get("beside"))
    clock.stage("attack")
    path = store.record_path(out, cell.model, cell.id)
    judged = first_examples(given.test, len(verdicts.best.robust))
    report(1.0, "evidence")
    kept = keep_evidence(
        store.evidence_path(path),
        trained.best,
        judged,
        verdicts.best,
        config.threat.ball(),
        protocol=config.evaluation.protocol,
        seed=config.seed,
        batch_size=config.evaluation.batch_size,
    )
    clock.stage("evidence")
    geometry = geometry_of(cell, out)
    if geometry is None:
        measure_cell(cell, out, trained, given, IN_PROCESS, report)
        geometry = geometry_of(cell, out)
        assert geometry is not None, "it was written just now"
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
    record = make_record(
        verdicts.best,
        rows,
        cell=cell.id,
        suite=suite,
        model=cell.model,
        objective=config.train.objective.name,
        head=config.model.head.name,
        config=identifying(config),
        seed=config.seed,
        protocol=config.evaluation.protocol,
        data=_facts(config, trained, judged, kept),
        weights=Weights(
            parameters=sum(parameter.numel() for parameter in trained.best.parameters()),
            best=_weights_file(folder, "best"),
            last=_weights_file(folder, "last"),
            state=kept.state,
        ),
        evidence=kept.file,
        file=file,
        seconds=seconds,
        device=default_device(),
        warnings=verdicts.last.warnings,
        scores=_scores(config, trained, judged, verdicts),
    )
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


def _judge(
    cell: Cell, which: str, out: Path, trained: Trained, test: Split, report: Report
) -> Outcome:
    """Make a whole verdict, from those on its parts if there are any."""
    config, log = cell.config, store.verdict_log(out, cell.id, which)
    whole = VerdictPart(which, 0, judged_count(config, len(test.labels)))
    logs = _logs(cell, which, out)
    if logs:
        join_parts(config, whole, logs, trained, test, log=log)
    checks = which != "beside"
    return evaluate_part(
        config, whole, trained, test, log=log, checks=checks, report=progress_report(report)
    )


def _logs(cell: Cell, which: str, out: Path) -> dict[VerdictPart, Path]:
    found = store.part_logs(out, cell.id, which)
    return {VerdictPart(which, *place): path for place, path in found.items()}


def _rows(
    geometry: Geometry, trained: Trained, test: Split, verdicts: Verdicts, config: RunConfig
) -> pd.DataFrame:
    """Join the geometry, accuracy against eps, the curves of the training, and the verdicts."""
    sweep = sweep_rows(trained.best, test, config)
    sizes = _sizes(trained, config)
    curves = [row for entry in trained.history for row in curve_rows(entry, sizes)]
    found = pd.concat([geometry.rows, tidy([*sweep, *curves])], ignore_index=True)
    settings, accuracies = config.evaluation, []
    for which, outcome in verdicts._asdict().items():
        if outcome is not None:
            protocol = settings.beside if which == "beside" else settings.protocol
            accuracies += verdict_rows(outcome, str(protocol), which)
    return pd.concat([found, tidy(accuracies)], ignore_index=True)


def _sizes(trained: Trained, config: RunConfig) -> dict[str, int]:
    """Examples behind each value that was taken between epochs, by split or measure."""
    watched = evenly_chosen(trained.train, TRAIN_EXAMPLES).ids
    corrupted = int(trained.altered.wrong_among(watched).sum())
    return {
        "train": min(config.train.collapse_examples, len(trained.train.labels)),
        "validation": min(VALIDATION_EXAMPLES, len(trained.validation.labels)),
        "dilation": min(TEST_EXAMPLES, trained.info.sizes["test"]),
        **dict.fromkeys(("unusable_gradients", "stream"), len(trained.train.labels)),
        **dict.fromkeys((*MEASURES, "memorised"), corrupted),
    }


def _facts(config: RunConfig, trained: Trained, judged: Split, kept: KeptEvidence) -> Facts:
    count, altered = len(judged.labels), trained.altered
    return Facts(
        dataset=config.data.dataset.name,
        split="test",
        examples=count,
        which=which_examples(count, config.data.classes),
        fingerprint=kept.fingerprint,
        num_classes=trained.best.num_classes,
        class_names=told_names(trained.info.class_names),
        train_examples=len(altered.original),
        wrong_labels=None if altered.effective_rate is None else int(altered.wrong.sum()),
        noise=altered.effective_rate,
    )


def _weights_file(folder: Path, which: str) -> File:
    """Name the tensors of a checkpoint by their path below the suite's folder."""
    file = read_manifest(folder / f"{which}.json")["tensors"]
    return File(path=f"{folder.parent.name}/{folder.name}/{file['name']}", sha256=file["sha256"])


def _scores(
    config: RunConfig, trained: Trained, judged: Split, verdicts: Verdicts
) -> dict[str, Score]:
    """Return the accuracies beside those of the verdict on the best weights."""
    best, last, beside = verdicts
    scores = {"clean_last": score(last.clean_correct), "robust_last": score(last.robust)}
    if beside is not None:
        scores["robust_beside"] = score(beside.robust)
    if config.data.imbalance is not None:
        counts = trained.altered.original.bincount(minlength=trained.info.num_classes)
        for name, flags in (("clean", best.clean_correct), ("robust", best.robust)):
            found = shot_scores(counts, judged.labels, flags)
            scores |= {f"{name}_{shot}": value for shot, value in found.items()}
    return scores


# Keys of the training log, and where their values stand in the tidy rows.
_CURVES: dict[str, dict[str, Any]] = {
    "nc1_trace": {"tap": "penultimate", "grouping": "true", "measure": "nc1_trace"},
    "nc2_angle": {"tap": "penultimate", "grouping": "true", "measure": "nc2_angle"},
    "train_accuracy": {"measure": "accuracy"},
    "memorization": {"tap": "penultimate", "measure": "memorization"},
    "corruption_bias": {"tap": "penultimate", "measure": "corruption_bias"},
    "memorization_relative": {"tap": "penultimate", "measure": "memorization_relative"},
    "memorised": {"measure": "memorised"},
    "memorised_off_edge": {"tap": "penultimate", "measure": "memorised_off_edge"},
    "memorised_way": {"tap": "penultimate", "measure": "memorised_way"},
    "unusable_gradients": {"condition": "attacked", "measure": "unusable_gradients"},
    "dilation": {"tap": "penultimate", "split": "test", "measure": "dilation"},
    "validation_clean": {"measure": "accuracy", "split": "validation"},
    "validation_attacked": {"measure": "accuracy", "split": "validation", "condition": "attacked"},
} | {
    f"stream_{name}": {
        "tap": "penultimate",
        "feature": "gap",
        "grouping": "true",
        "vertices": "same",
        "condition": "stream",
        "measure": name,
    }
    for name in STREAMED
}


def curve_rows(entry: dict[str, Any], sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Turn one epoch of the training log into rows.

    `sizes` are the examples behind a value: by condition, else by measure, or else by split.
    """
    common = {"tap": "output", "condition": "clean", "split": "train", "epoch": entry["epoch"]}
    rows = [
        common | place | {"value": float(entry[key])}
        for key, place in _CURVES.items()
        if entry.get(key) is not None
    ]
    for row in rows:
        keys = (row["condition"], row["measure"], row["split"])
        row["n"] = next(sizes[key] for key in keys if key in sizes)
    return rows

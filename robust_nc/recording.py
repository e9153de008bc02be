"""From what a cell made to its `Record`."""

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from robust_nc.config import RunConfig
from robust_nc.data.base import Split
from robust_nc.data.load import fingerprint
from robust_nc.environment import hardware, versions
from robust_nc.evaluation import CLEAN, Outcome
from robust_nc.naming import identifying
from robust_nc.record import (
    AttackUse,
    Caution,
    Facts,
    File,
    Passes,
    Record,
    Score,
    Verdict,
    Weights,
    pack_flags,
)
from robust_nc.report.shots import shot_scores
from robust_nc.report.statistics import wilson
from robust_nc.runtime import default_device
from robust_nc.suite import Cell
from robust_nc.training.checkpoint import read_manifest
from robust_nc.training.run import Trained
from robust_nc.verdicts import Verdicts

# Headline measures of the penultimate tap, and the row that each is taken from.
_TRUE = {"split": "train", "grouping": "true", "vertices": "same"}
_CLEAN_TRAIN = {"split": "train", "condition": "clean"}
_LEAP = {"split": "train", "condition": "attacked", "grouping": "none"}
_SUMMARY: dict[str, dict[str, str]] = {
    "nc1_clean": _TRUE | {"condition": "clean", "measure": "nc1"},
    "nc1_attacked": _TRUE | {"condition": "attacked", "measure": "nc1"},
    "nc1_gaussian": _TRUE | {"condition": "gaussian", "measure": "nc1"},
    "nc2_angle_clean": _TRUE | {"condition": "clean", "measure": "nc2_angle"},
    "nc2_angle_attacked": _TRUE | {"condition": "attacked", "measure": "nc2_angle"},
    "nc3_clean": _TRUE | {"condition": "clean", "measure": "nc3"},
    "nc1_landed": _TRUE | {"condition": "attacked", "grouping": "landed", "measure": "nc1"},
    "nc1_leap_null": _LEAP | {"grouping": "true", "measure": "nc1_leap_null"},
    "nc1_landed_null": _LEAP | {"grouping": "landed", "measure": "nc1_landed_null"},
    "leap_rate": _LEAP | {"measure": "leap_rate"},
    "leap_rate_test": _LEAP | {"split": "test", "measure": "leap_rate"},
    "leap_rate_gaussian": _LEAP | {"condition": "gaussian", "measure": "leap_rate"},
    "landed": _LEAP | {"measure": "landed"},
    "landing_fraction": _LEAP | {"measure": "landing_fraction"},
}


class Made(NamedTuple):
    """What a cell made: weights, test data, verdicts, rows, and the time taken."""

    trained: Trained
    test: Split
    verdicts: Verdicts
    rows: pd.DataFrame
    file: File
    folder: Path
    seconds: dict[str, float]


def make_record(cell: Cell, suite: str, made: Made) -> Record:
    """Put together the record of a cell."""
    config, model = cell.config, made.trained.best
    return Record(
        cell=cell.id,
        suite=suite,
        model=cell.model,
        objective=config.train.objective.name,
        head=config.model.head.name,
        config=identifying(config),
        seed=config.seed,
        data=_facts(config, made, model.num_classes),
        weights=Weights(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            best=_weights(made.folder, "best"),
            last=_weights(made.folder, "last"),
        ),
        protocol=config.evaluation.protocol,
        attacks=_attacks(made.verdicts.best),
        accelerated=made.verdicts.best.accelerated,
        passes=Passes(
            forward=int(made.verdicts.best.forward_passes.sum()),
            backward=int(made.verdicts.best.backward_passes.sum()),
        ),
        verdict=_verdict(made.verdicts.best),
        scores=_scores(config, made),
        summary=summary(made.rows),
        rows=made.file,
        warnings=_cautions(made),
        seconds=made.seconds,
        versions=versions(),
        hardware=hardware(default_device()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _facts(config: RunConfig, made: Made, num_classes: int) -> Facts:
    count, altered = len(made.verdicts.best.robust), made.trained.altered
    return Facts(
        dataset=config.data.dataset.name,
        split="test",
        examples=count,
        which=f"the first {count} of test in the official order",
        fingerprint=fingerprint(Split(*(part[:count] for part in made.test))),
        num_classes=num_classes,
        train_examples=len(altered.original),
        wrong_labels=None if altered.effective_rate is None else int(altered.wrong.sum()),
        noise=altered.effective_rate,
    )


def _weights(folder: Path, which: str) -> File:
    """Name the tensors of a checkpoint by their path below the suite's folder."""
    file = read_manifest(folder / f"{which}.json")["tensors"]
    return File(path=f"{folder.parent.name}/{folder.name}/{file['name']}", sha256=file["sha256"])


def _attacks(outcome: Outcome) -> tuple[AttackUse, ...]:
    uses = []
    for name, attack in outcome.attacks:
        parameters: dict[str, Any] = {"attack": type(attack).__name__}
        if dataclasses.is_dataclass(attack) and not isinstance(attack, type):
            parameters |= json.loads(json.dumps(dataclasses.asdict(attack), default=repr))
        broke = outcome.broken_by.count(name)
        uses.append(AttackUse(name=name, parameters=parameters, broke=broke))
    return tuple(uses)


def _verdict(outcome: Outcome) -> Verdict:
    names = [name for name, _ in outcome.attacks]
    codes = {"": -1, CLEAN: -2} | {name: index for index, name in enumerate(names)}
    return Verdict(
        clean_correct=pack_flags(outcome.clean_correct.numpy()),
        robust=pack_flags(outcome.robust.numpy()),
        broken_by=tuple(codes[name] for name in outcome.broken_by),
    )


def _cautions(made: Made) -> tuple[Caution, ...]:
    warnings = (*made.verdicts.last.warnings, *made.verdicts.best.warnings)
    found = {warned.name: warned.message for warned in warnings}
    return tuple(Caution(name=name, message=message) for name, message in found.items())


def _scores(config: RunConfig, made: Made) -> dict[str, Score]:
    scores = {
        "clean": _score(made.verdicts.best.clean_correct),
        "robust": _score(made.verdicts.best.robust),
        "clean_last": _score(made.verdicts.last.clean_correct),
        "robust_last": _score(made.verdicts.last.robust),
    }
    if made.verdicts.beside is not None:
        scores["robust_beside"] = _score(made.verdicts.beside.robust)
    if config.data.imbalance is not None:
        scores |= _shot_scores(made)
    row = _one(made.rows, {"tap": "output", "measure": "accuracy", **_CLEAN_TRAIN})
    if row is not None:
        count = int(row["n"])
        scores["clean_train"] = _interval(round(float(row["value"]) * count), count)
    return scores


def _shot_scores(made: Made) -> dict[str, Score]:
    """Accuracies on classes with many, a medium number of and few training examples."""
    best, count = made.verdicts.best, len(made.verdicts.best.robust)
    counts = made.trained.altered.original.bincount(minlength=made.trained.info.num_classes)
    labels = made.test.labels[:count]
    return {
        f"{name}_{shot}": score
        for name, flags in (("clean", best.clean_correct), ("robust", best.robust))
        for shot, score in shot_scores(counts, labels, flags).items()
    }


def _score(flags: Tensor) -> Score:
    return _interval(int(flags.sum()), len(flags))


def _interval(successes: int, count: int) -> Score:
    found = wilson(successes, count)
    return Score(value=found.value, low=found.low, high=found.high, n=count)


def summary(rows: pd.DataFrame) -> dict[str, float | None]:
    """Return the headline measures of the penultimate tap; None for what was not measured."""
    found = {key: _one(rows, {"tap": "penultimate"} | at) for key, at in _SUMMARY.items()}
    return {
        key: None if row is None or pd.isna(row["value"]) else float(row["value"])
        for key, row in found.items()
    }


def _one(rows: pd.DataFrame, where: dict[str, str]) -> "pd.Series[Any] | None":
    """Return the one row of the finished weights that matches, or None.

    Where layers were read in two ways, that of the pooled features.
    """
    chosen = rows["epoch"] == -1
    if (rows["feature"] == "gap").any():
        chosen &= rows["feature"] != "flatten"
    for column, value in where.items():
        chosen &= rows[column] == value
    found = rows[chosen]
    assert len(found) <= 1, f"{len(found)} rows for {where}"
    return found.iloc[0] if len(found) else None

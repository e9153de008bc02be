"""From verdicts and rows to a `Record`: of a suite's cell, or of any other model that was judged.

>>> import torch
>>> score(torch.tensor([True, True, False, True])).value
0.75
"""

import dataclasses
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor, nn

from robust_nc.config import RunConfig, identifying, plain
from robust_nc.data.base import Split
from robust_nc.data.load import fingerprint, to_unit
from robust_nc.evaluation.evaluate_model import CLEAN, Outcome
from robust_nc.evidence.collecting import collect
from robust_nc.evidence.file import write_evidence
from robust_nc.io.digests import state_digest
from robust_nc.pipeline.settings import SUITE, Appraisal, Given, appraisal_id
from robust_nc.pipeline.shot_scores import shot_scores
from robust_nc.pipeline.suite import Cell
from robust_nc.pipeline.verdict_rows import Verdicts, verdict_rows
from robust_nc.plugins import find_protocol
from robust_nc.record.schema import (
    AttackUse,
    Card,
    Caution,
    EvidenceFile,
    Facts,
    File,
    Passes,
    Record,
    Score,
    Verdict,
    Weights,
    pack_flags,
    tidy,
)
from robust_nc.record.seals import sealed
from robust_nc.runtime.environment import hardware, versions
from robust_nc.runtime.torch_state import default_device, device_of
from robust_nc.statistics.intervals import wilson
from robust_nc.threat import Ball
from robust_nc.training.checkpoint import read_manifest
from robust_nc.training.run import Trained
from robust_nc.types import Warned

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
    "collapse_radius": _LEAP
    | {"split": "test", "condition": "sweep", "measure": "collapse_radius"},
}
_EVIDENCE_BATCH = 256  # where the configuration leaves it open


class Kept(NamedTuple):
    """The evidence file that was left, digests of the model's tensors and of the examples."""

    file: EvidenceFile
    state: str
    fingerprint: str


def keep_evidence(
    path: Path,
    model: nn.Module,
    judged: Split,
    outcome: Outcome,
    ball: Ball,
    *,
    protocol: str,
    seed: int,
    batch_size: int | None,
) -> Kept:
    """Write the evidence for a verdict on `judged`, made by `protocol` with `seed`, to `path`."""
    images, found = to_unit(judged.images), fingerprint(judged)
    evidence = collect(
        model,
        images,
        judged.labels,
        judged.ids,
        outcome,
        ball,
        fingerprint=found,
        seed=seed,
        draws=find_protocol(protocol).draws,
        batch_size=batch_size or _EVIDENCE_BATCH,
    )
    return Kept(write_evidence(path, evidence, images), state_digest(evidence.weights), found)


class Made(NamedTuple):
    """What a cell made: weights, verdicts on `judged`, rows, evidence, and the time taken."""

    trained: Trained
    judged: Split
    verdicts: Verdicts
    kept: Kept
    rows: pd.DataFrame
    file: File
    folder: Path
    seconds: dict[str, float]


def make_record(cell: Cell, suite: str, made: Made) -> Record:
    """Put together the record of a cell."""
    config, model, best = cell.config, made.trained.best, made.verdicts.best
    record = Record(
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
            state=made.kept.state,
        ),
        protocol=config.evaluation.protocol,
        attacks=attack_uses(best),
        accelerated=best.accelerated,
        passes=passes_spent(best),
        verdict=verdict_flags(best),
        scores=_scores(config, made),
        summary=summary(made.rows),
        rows=made.file,
        warnings=cautions((*made.verdicts.last.warnings, *best.warnings)),
        seconds=made.seconds,
        versions=versions(),
        hardware=hardware(default_device()),
        created=now(),
        evidence=made.kept.file,
    )
    return sealed(record)


def now() -> str:
    """Return the time in UTC, as records state it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _facts(config: RunConfig, made: Made, num_classes: int) -> Facts:
    count, altered = len(made.judged.labels), made.trained.altered
    return Facts(
        dataset=config.data.dataset.name,
        split="test",
        examples=count,
        which=which_examples(count),
        fingerprint=made.kept.fingerprint,
        num_classes=num_classes,
        train_examples=len(altered.original),
        wrong_labels=None if altered.effective_rate is None else int(altered.wrong.sum()),
        noise=altered.effective_rate,
    )


def which_examples(count: int) -> str:
    """Say which examples of the test split were judged."""
    return f"the first {count} of test in the official order"


def _weights(folder: Path, which: str) -> File:
    """Name the tensors of a checkpoint by their path below the suite's folder."""
    file = read_manifest(folder / f"{which}.json")["tensors"]
    return File(path=f"{folder.parent.name}/{folder.name}/{file['name']}", sha256=file["sha256"])


def attack_uses(outcome: Outcome) -> tuple[AttackUse, ...]:
    """Say which attacks made a verdict, with all parameters, and what each was first to break."""
    uses = []
    for name, attack in outcome.attacks:
        parameters: dict[str, Any] = {"attack": type(attack).__name__}
        if dataclasses.is_dataclass(attack) and not isinstance(attack, type):
            parameters |= json.loads(json.dumps(dataclasses.asdict(attack), default=repr))
        broke = outcome.broken_by.count(name)
        uses.append(AttackUse(name=name, parameters=parameters, broke=broke))
    return tuple(uses)


def passes_spent(outcome: Outcome) -> Passes:
    """Sum up what a verdict cost."""
    forward, backward = outcome.forward_passes.sum(), outcome.backward_passes.sum()
    return Passes(forward=int(forward), backward=int(backward))


def verdict_flags(outcome: Outcome) -> Verdict:
    """Pack a verdict per example."""
    names = [name for name, _ in outcome.attacks]
    codes = {"": -1, CLEAN: -2} | {name: index for index, name in enumerate(names)}
    return Verdict(
        clean_correct=pack_flags(outcome.clean_correct.numpy()),
        robust=pack_flags(outcome.robust.numpy()),
        broken_by=tuple(codes[name] for name in outcome.broken_by),
    )


def cautions(warnings: Iterable[Warned]) -> tuple[Caution, ...]:
    """Return warnings as a record has them: of one name, the last."""
    found = {warned.name: warned.message for warned in warnings}
    return tuple(Caution(name=name, message=message) for name, message in found.items())


def _scores(config: RunConfig, made: Made) -> dict[str, Score]:
    last, beside = made.verdicts.last, made.verdicts.beside
    scores = accuracies(made.verdicts.best) | clean_train(made.rows)
    scores |= {"clean_last": score(last.clean_correct), "robust_last": score(last.robust)}
    if beside is not None:
        scores["robust_beside"] = score(beside.robust)
    if config.data.imbalance is not None:
        scores |= _shot_scores(made)
    return scores


def accuracies(outcome: Outcome) -> dict[str, Score]:
    """Return the two scores of a verdict, `clean` and `robust`."""
    return {"clean": score(outcome.clean_correct), "robust": score(outcome.robust)}


def clean_train(rows: pd.DataFrame) -> dict[str, Score]:
    """Return the accuracy `clean_train` on the training images of the geometry, if it is there."""
    row = _one(rows, {"tap": "output", "measure": "accuracy", **_CLEAN_TRAIN})
    if row is None:
        return {}
    count = int(row["n"])
    return {"clean_train": _interval(round(float(row["value"]) * count), count)}


def _shot_scores(made: Made) -> dict[str, Score]:
    """Accuracies on classes with many, a medium number of and few training examples."""
    best = made.verdicts.best
    counts = made.trained.altered.original.bincount(minlength=made.trained.info.num_classes)
    return {
        f"{name}_{shot}": score
        for name, flags in (("clean", best.clean_correct), ("robust", best.robust))
        for shot, score in shot_scores(counts, made.judged.labels, flags).items()
    }


def score(flags: Tensor) -> Score:
    """Return the share of flags `(N,)` that are set, with its 95 % interval."""
    return _interval(int(flags.sum()), len(flags))


def _interval(successes: int, count: int) -> Score:
    found = wilson(successes, count)
    return Score(value=found.value, low=found.low, high=found.high, n=count)


def summary(rows: pd.DataFrame) -> dict[str, float | None]:
    """Return the headline measures of the penultimate tap; None for what was not measured.

    `collapse_radius_beyond` is the largest radius where no radius reached the level;
    `leap_layer` the depth of the tap where most leaps begin, None where nothing leaped.
    """
    found = {key: _one(rows, {"tap": "penultimate"} | at) for key, at in _SUMMARY.items()}
    values = {
        key: None if row is None or pd.isna(row["value"]) else float(row["value"])
        for key, row in found.items()
    }
    radius = found["collapse_radius"]
    if radius is None or values["collapse_radius"] is not None:
        values["collapse_radius_beyond"] = None
    else:
        values["collapse_radius_beyond"] = float(radius["eps"])
    return values | {"leap_layer": _leap_layer(rows)}


def _leap_layer(rows: pd.DataFrame) -> float | None:
    at = (rows["measure"] == "leap_layer") & (rows["tap"] != "none")
    for column, value in _LEAP.items():
        at &= rows[column] == value
    found = rows[at & _finished(rows)].sort_values("depth")
    if not (found["value"] > 0).any():
        return None
    return float(found["depth"].iloc[int(found["value"].argmax())])


def _one(rows: pd.DataFrame, where: dict[str, str]) -> "pd.Series[Any] | None":
    """Return the one row of the finished weights that matches, or None."""
    chosen = _finished(rows)
    for column, value in where.items():
        chosen &= rows[column] == value
    found = rows[chosen]
    assert len(found) <= 1, f"{len(found)} rows for {where}"
    return found.iloc[0] if len(found) else None


def _finished(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Mark rows of the finished weights; where layers were read in two ways, of the pooled ones."""
    chosen = rows["epoch"] == -1
    if (rows["feature"] == "gap").any():
        chosen &= rows["feature"] != "flatten"
    return chosen


class Appraised(NamedTuple):
    """All that an appraisal made: `head` and `objective` are known of our own checkpoints alone."""

    settings: Appraisal
    name: str
    head: str
    objective: str
    card: Card | None
    given: Given
    model: nn.Module
    outcome: Outcome
    doubts: tuple[Warned, ...]
    kept: Kept
    rows: pd.DataFrame
    file: File
    seconds: dict[str, float]


def make_appraisal(found: Appraised) -> Record:
    """Put together the record of an appraisal, sealed."""
    outcome, settings = found.outcome, found.settings
    record = Record(
        cell=appraisal_id(settings),
        suite=SUITE,
        model=found.name,
        objective=found.objective,
        head=found.head,
        config=plain(settings),
        seed=settings.seed,
        data=_appraised_facts(found),
        weights=Weights(
            parameters=sum(parameter.numel() for parameter in found.model.parameters()),
            state=found.kept.state,
        ),
        protocol=settings.evaluation.protocol,
        attacks=attack_uses(outcome),
        accelerated=outcome.accelerated,
        passes=passes_spent(outcome),
        verdict=verdict_flags(outcome),
        scores=accuracies(outcome) | clean_train(found.rows),
        summary=summary(found.rows),
        rows=found.file,
        warnings=cautions((*found.doubts, *outcome.warnings)),
        seconds=found.seconds,
        versions=versions(),
        hardware=hardware(device_of(found.model)),
        created=now(),
        card=found.card,
        evidence=found.kept.file,
    )
    return sealed(record)


def outcome_rows(outcome: Outcome, settings: Appraisal) -> pd.DataFrame:
    """Return the accuracies of the verdict as tidy rows."""
    rows = verdict_rows(Verdicts(outcome, outcome, None), settings.evaluation)
    return tidy([row for row in rows if row["note"] != "last"])


def _appraised_facts(found: Appraised) -> Facts:
    count, given = len(found.given.test.labels), found.given
    return Facts(
        dataset=given.part.name,
        split="test",
        examples=count,
        which=which_examples(count),
        fingerprint=found.kept.fingerprint,
        num_classes=given.shape.num_classes,
    )

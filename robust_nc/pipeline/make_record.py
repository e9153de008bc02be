"""From verdicts and rows to a `Record`: of a suite's cell, or of any other model that was judged.

>>> import torch
>>> score(torch.tensor([True, True, False, True])).value
0.75
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from robust_nc.data.base import Split
from robust_nc.data.load import fingerprint, to_unit
from robust_nc.evaluation.evaluate_model import Outcome
from robust_nc.evaluation.sanity.meanings import named_warning
from robust_nc.evidence.collecting import collect
from robust_nc.evidence.file import write_evidence
from robust_nc.io.digests import state_digest
from robust_nc.plugins import find_protocol
from robust_nc.record.protocol import parameters_of
from robust_nc.record.schema import (
    AttackUse,
    Card,
    Caution,
    EvidenceFile,
    Facts,
    File,
    GeometryUse,
    Passes,
    Record,
    Score,
    Verdict,
    Weights,
    pack_flags,
    sealed,
)
from robust_nc.runtime.environment import hardware, versions
from robust_nc.statistics.intervals import wilson
from robust_nc.threat import Ball
from robust_nc.types import Warned

# Headline measures of the penultimate tap, and the row that each is taken from.
_TRUE = {"split": "train", "grouping": "true", "vertices": "same"}
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
_MANY, _FEW = 100, 20  # training examples of a class
_EVIDENCE_BATCH = 256  # where the configuration leaves it open


class KeptEvidence(NamedTuple):
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
) -> KeptEvidence:
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
    return KeptEvidence(
        write_evidence(path, evidence, images), state_digest(evidence.weights), found
    )


def make_record(
    outcome: Outcome,
    rows: pd.DataFrame,
    *,
    cell: str,
    suite: str,
    model: str,
    objective: str,
    head: str,
    config: dict[str, Any],
    seed: int,
    protocol: str,
    data: Facts,
    weights: Weights,
    evidence: EvidenceFile,
    file: File,
    seconds: dict[str, float],
    device: torch.device,
    warnings: tuple[Warned, ...] = (),
    scores: Mapping[str, Score] = MappingProxyType({}),
    card: Card | None = None,
    geometry: GeometryUse | None = None,
) -> Record:
    """Put together a record, sealed, of a verdict and the rows that `file` holds.

    `warnings` came before those of the verdict, and `scores` beside its accuracies.
    """
    warned = (*_of_gradients(rows), *warnings, *outcome.warnings)
    messages = {one.name: one.message for one in warned}  # of one name, the last
    record = Record(
        cell=cell,
        suite=suite,
        model=model,
        objective=objective,
        head=head,
        config=config,
        seed=seed,
        data=data,
        weights=weights,
        protocol=protocol,
        attacks=_attack_uses(outcome),
        accelerated=outcome.accelerated,
        passes=Passes(
            forward=int(outcome.forward_passes.sum()), backward=int(outcome.backward_passes.sum())
        ),
        verdict=Verdict(
            clean_correct=pack_flags(outcome.clean_correct.numpy()),
            robust=pack_flags(outcome.robust.numpy()),
            broken_by=tuple(outcome.codes.tolist()),
        ),
        scores={
            "clean": score(outcome.clean_correct),
            "robust": score(outcome.robust),
            **_clean_train(rows),
            **scores,
        },
        summary=summary(rows),
        rows=file,
        warnings=tuple(Caution(name=name, message=text) for name, text in messages.items()),
        seconds=seconds,
        versions=versions(),
        hardware=hardware(device),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        card=card,
        evidence=evidence,
        geometry=geometry,
    )
    return sealed(record)


def with_geometry(
    record: Record, rows: pd.DataFrame, file: File, *, geometry: GeometryUse, seconds: float
) -> Record:
    """Return the record of a verdict with the measures of its `rows`, which `file` holds."""
    found = {one.name: Caution(name=one.name, message=one.message) for one in _of_gradients(rows)}
    found |= {one.name: one for one in record.warnings if one.name not in found}
    scores = {name: one for name, one in record.scores.items() if name != "clean_train"}
    return sealed(
        dataclasses.replace(
            record,
            scores={**scores, **_clean_train(rows)},
            summary=summary(rows),
            rows=file,
            warnings=tuple(found.values()),
            seconds=record.seconds | {"measure": seconds},
            geometry=geometry,
        )
    )


def which_examples(count: int, classes: Sequence[int] | None = None) -> str:
    """Say which examples of the test split were judged, of some classes or all."""
    of = "" if classes is None else f", of the classes {', '.join(map(str, classes))}"
    return f"the first {count} of test in the official order{of}"


def told_names(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return names of classes as a record has them: None where they are but their numbers."""
    return None if list(names) == [str(label) for label in range(len(names))] else tuple(names)


def _attack_uses(outcome: Outcome) -> tuple[AttackUse, ...]:
    """Say which attacks made a verdict, with all parameters, and what each was first to break."""
    uses = []
    for place, (name, attack) in enumerate(outcome.attacks):
        broke = int((outcome.codes == place).sum())
        uses.append(AttackUse(name=name, parameters=parameters_of(attack), broke=broke))
    return tuple(uses)


def _of_gradients(rows: pd.DataFrame) -> Iterator[Warned]:
    """Warn where gradients were no numbers in the attacks of training or geometry."""
    found = rows[rows["measure"] == "unusable_gradients"]
    if len(found):
        where = " and ".join(
            name
            for name, of_training in (("training", True), ("geometry", False))
            if ((found["epoch"].ge(0) & found["feature"].eq("")) == of_training).any()
        )
        share = f"up to {found['value'].max():.1%} of the gradients by the image in {where}"
        yield named_warning("unusable-gradients", f"{share} had entries that are NaN or infinite")


def _clean_train(rows: pd.DataFrame) -> dict[str, Score]:
    """Return the accuracy `clean_train` on the training images of the geometry, if it is there."""
    where = {"tap": "output", "measure": "accuracy", "split": "train", "condition": "clean"}
    row = _one(rows, {"clean_train": where}).get("clean_train")
    if row is None:
        return {}
    count = int(row["n"])
    return {"clean_train": _interval(round(float(row["value"]) * count), count)}


def score(flags: Tensor) -> Score:
    """Return the share of flags `(N,)` that are set, with its 95 % interval."""
    return _interval(int(flags.sum()), len(flags))


def _interval(successes: int, count: int) -> Score:
    found = wilson(successes, count)
    return Score(value=found.value, low=found.low, high=found.high, n=count)


def shot_scores(counts: Tensor, labels: Tensor, flags: Tensor) -> dict[str, Score]:
    """Return the share of true `flags` on classes with many, a medium number of, and few examples.

    `counts` (K,) int64 are the training examples of each class; `labels` (N,) int64 and `flags`
    (N,) bool of the test examples. The groups are those of Liu et al. (CVPR 2019), which the
    long-tailed CIFAR are reported by: many above 100 training examples, few below 20 (none too),
    medium between. All test examples of a group count alike; one without any is left out.

    >>> counts, labels = torch.tensor([500, 60, 5]), torch.arange(300) % 3
    >>> scores = shot_scores(counts, labels, labels < 2)
    >>> {name: (score.value, score.n) for name, score in scores.items()}
    {'many': (1.0, 100), 'medium': (1.0, 100), 'few': (0.0, 100)}
    """
    mine, flags = counts.cpu()[labels.cpu()], flags.cpu()
    groups = {"many": mine > _MANY, "medium": (mine <= _MANY) & (mine >= _FEW), "few": mine < _FEW}
    return {name: score(flags[chosen]) for name, chosen in groups.items() if bool(chosen.any())}


def summary(rows: pd.DataFrame) -> dict[str, float | None]:
    """Return the headline measures of the penultimate tap; None for what was not measured.

    `collapse_radius_beyond` is the largest radius where no radius reached the level;
    `leap_layer` the depth of the tap where most leaps begin, None where nothing leaped.
    """
    places = {key: {"tap": "penultimate"} | at for key, at in _SUMMARY.items()}
    found = _one(rows, places)
    values = {key: float(found[key]["value"]) if key in found else math.nan for key in _SUMMARY}
    told = {key: None if math.isnan(value) else value for key, value in values.items()}
    beyond = None
    if "collapse_radius" in found and told["collapse_radius"] is None:
        beyond = float(found["collapse_radius"]["eps"])
    return told | {"collapse_radius_beyond": beyond, "leap_layer": _leap_layer(rows)}


def _leap_layer(rows: pd.DataFrame) -> float | None:
    at = (rows["measure"] == "leap_layer") & (rows["tap"] != "none")
    for column, value in _LEAP.items():
        at &= rows[column] == value
    found = rows[at & _finished(rows)].sort_values("depth")
    if not (found["value"] > 0).any():
        return None
    return float(found["depth"].iloc[int(found["value"].argmax())])


def _one(rows: pd.DataFrame, places: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """Return by key the one row of the finished weights at each place, where there is one."""
    chosen = _finished(rows)
    for column in ("tap", "measure"):
        chosen &= rows[column].isin({at[column] for at in places.values()})
    told: list[Any] = rows[chosen].to_dict(
        "records"
    )  # the frame would be filtered once for each place
    found: dict[str, dict[str, Any]] = {}
    for key, at in places.items():
        matching = [row for row in told if at.items() <= row.items()]
        assert len(matching) <= 1, f"{len(matching)} rows for {at}"
        if matching:
            found[key] = matching[0]
    return found


def _finished(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Mark rows of the finished weights; where layers were read in two ways, of the pooled ones."""
    chosen = rows["epoch"] == -1
    if (rows["feature"] == "gap").any():
        chosen &= rows["feature"] != "flatten"
    return chosen


def verdict_rows(outcome: Outcome, protocol: str, which: str = "best") -> list[dict[str, Any]]:
    """Accuracies of a verdict, `best`, `last` or `beside`, as tidy rows.

    `attack` is the protocol, `note` says which weights. The clean accuracy beside is that of best.
    """
    note = "last" if which == "last" else "best"
    common = {"tap": "output", "measure": "verdict", "split": "test", "n": len(outcome.robust)}
    clean = {"condition": "clean", "value": outcome.clean_accuracy, "note": note}
    robust = {"condition": "attacked", "value": outcome.robust_accuracy, "attack": protocol}
    rows = [] if which == "beside" else [common | clean]
    return [*rows, common | robust | {"note": note}]

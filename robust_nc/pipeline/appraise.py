"""Judge a finished model: attack it, keep the evidence, measure its layers, leave one record.

>>> from robust_nc.threat import Ball
>>> Request(model="net.py:make", dataset="digits", ball=Ball("Linf", 0.1)).protocol
'standard'
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn

from robust_nc.config import Component, EvaluationConfig, ThreatConfig
from robust_nc.data.load import to_unit
from robust_nc.evaluation.evaluate_model import Outcome, evaluate
from robust_nc.evaluation.scoring import Guarded, checked_logits
from robust_nc.exceptions import ConfigError, InputError, RecordError
from robust_nc.io.digests import state_digest
from robust_nc.io.files import alone, remove_file, remove_unfinished, sha256_of
from robust_nc.pipeline.card import model_name
from robust_nc.pipeline.finished_model import check_layers, measure_layers, measure_settings
from robust_nc.pipeline.make_record import Appraised, keep_evidence, make_appraisal, outcome_rows
from robust_nc.pipeline.settings import Appraisal, Given, Judged, JudgedData, appraisal_id, gather
from robust_nc.plugins import find_attack, find_protocol
from robust_nc.profiling.feature_cache import chosen_taps
from robust_nc.record.folder import evidence_path, verdict_log
from robust_nc.record.schema import Card, Stored, read_record, write_record, write_rows
from robust_nc.record.seals import sealed
from robust_nc.runtime.progress import Clock, Progress
from robust_nc.runtime.torch_state import default_device, device_of, full_precision, untouched
from robust_nc.threat import Ball
from robust_nc.types import Warned
from robust_nc.zoo.reference import Opened, open_model


def check_folder(out: Path, cell: str) -> None:
    """Refuse a folder with another record in it."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose a folder with --out")
    for path in sorted(out.glob("*.json")):
        if path.stem != cell and not path.name.startswith("."):
            raise ConfigError(
                f"{out} holds {_told(path)} already, and a folder holds one record; choose "
                f"another, such as --out {out}-{cell[:6]}"
            )


def finished(out: Path, cell: str) -> Stored | None:
    """Return the whole record of this appraisal, or None where it is missing or damaged."""
    path = out / f"{cell}.json"
    if not path.is_file():
        return None
    try:
        stored = read_record(path)
        stored.rows()
    except RecordError:
        return None
    evidence, beside = stored.record.evidence, evidence_path(path)
    if evidence is None or not beside.is_file() or sha256_of(beside) != evidence.sha256:
        return None
    return stored


def with_card(stored: Stored, card: Card | None, name: str) -> Stored:
    """Give a finished record another card, where one was handed in, and return it."""
    if card is None or card == stored.record.card:
        return stored
    record = sealed(dataclasses.replace(stored.record, card=card, model=name))
    write_record(stored.path, record)
    return Stored(record, stored.path)


def _told(path: Path) -> str:
    try:
        record = read_record(path).record
    except RecordError:
        return path.name
    threat = record.config.get("threat")
    eps = f", eps {threat.get('eps')}" if isinstance(threat, dict) else ""
    return f"{path.name} ({record.model} on {record.data.dataset}{eps}, {record.protocol})"


PLACE = Path("out") / "evaluate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to judge, and how: `n` test images (None: all), `taps` to measure (None: all found).

    `out` None: a folder below `out/evaluate` that is named after the model.
    """

    model: str
    dataset: str
    ball: Ball
    protocol: str = "standard"
    n: int | None = None
    out: Path | None = None
    taps: tuple[str, ...] | None = None
    geometry: bool = True
    attack: str | None = None
    card: Card | None = None
    seed: int = 0
    batch_size: int | None = None
    root: Path | None = None


class Event(NamedTuple):
    """Where an appraisal stands: the share done of its current stage, and a line to show."""

    stage: str
    share: float
    status: str


class Appraisement(NamedTuple):
    """The record and where it lies; `made` says whether it was made now, or was there."""

    stored: Stored
    made: bool


Tell = Callable[[str], None]
Report = Callable[[Event], None]


def _unheard(_: object) -> None:
    """Take what nobody listens to."""


def appraise(request: Request, *, tell: Tell = _unheard, report: Report = _unheard) -> Appraisement:
    """Judge a model and leave its record, rows and evidence in one folder.

    Killed, it goes on from its log. An appraisal that is finished is not done again; another one
    in the folder is left alone, and this one refused. `tell` is called with what the user should
    know, `report` with the progress.

    Raises `ConfigError`, `InputError`, `DataError`, `CheckpointError` or `StorageError`, each with
    one sentence that says what was found and what to do.
    """
    _check(request)
    subject = _prepare(request, tell)
    cell = appraisal_id(subject.settings)
    out = request.out or PLACE / subject.name
    check_folder(out, cell)
    with alone(out):
        remove_unfinished(out)
        stored = finished(out, cell)
        if stored is not None:
            return Appraisement(with_card(stored, request.card, subject.name), made=False)
        return Appraisement(_make(subject, request, out / f"{cell}.json", report), made=True)


class _Subject(NamedTuple):
    """A model that answers the images, on its device, and all that its appraisal depends on."""

    settings: Appraisal
    name: str
    opened: Opened
    model: nn.Module
    given: Given
    num_classes: int
    doubts: tuple[Warned, ...]


def _check(request: Request) -> None:
    """Refuse what can be refused before anything is read."""
    find_protocol(request.protocol)
    if request.batch_size is not None and request.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, found {request.batch_size}")
    if request.seed < 0:
        raise ConfigError(f"--seed must be at least 0, found {request.seed}")
    if request.taps is not None and not request.geometry:
        raise ConfigError("--taps chooses what the geometry measures; leave out --no-geometry")


def _prepare(request: Request, tell: Tell) -> _Subject:
    """Read the data, open the model, and see that they fit together."""
    if request.attack is not None:
        find_attack(request.attack)
    given = gather(request.dataset, n=request.n, root=request.root, train=request.geometry)
    opened = open_model(
        request.model,
        num_classes=given.shape.num_classes,
        image_shape=given.shape.image_shape,
        tell=tell,
    )
    model = opened.model.to(default_device()).eval()
    classes = _num_classes(model, given)
    measure = None
    if request.geometry and given.train is None:
        tell(
            f"geometry is left out: {given.label} has no training images, whose class means are "
            "the vertices"
        )
    elif request.geometry:
        taps = None if request.taps is None else chosen_taps(model, request.taps)
        check_layers(model, given, taps)
        measure = measure_settings(given, taps, request.batch_size)
    attack = None if request.attack is None else Component(name=request.attack)
    settings = Appraisal(
        model=Judged(reference=opened.reference, state=state_digest(opened.digests)),
        data=JudgedData(dataset=given.part, examples=given.examples),
        threat=ThreatConfig(norm=request.ball.norm, eps=float(request.ball.eps)),
        evaluation=EvaluationConfig(
            protocol=request.protocol,
            attack=attack,
            examples=given.examples,
            batch_size=request.batch_size,
        ),
        measure=measure,
        seed=request.seed,
    )
    name = (model_name(request.card) if request.card else "") or opened.name
    return _Subject(settings, name, opened, model, given, classes, _spare(classes, given))


def _num_classes(model: nn.Module, given: Given) -> int:
    """Ask the model for the logits of two images, and refuse one that does not fit the data."""
    device = device_of(model)
    images, labels = to_unit(given.test.images[:2]).to(device), given.test.labels
    guarded = Guarded(model, given.label)
    none = torch.zeros(0, dtype=torch.int64)
    with torch.inference_mode(False), torch.no_grad(), untouched(model), full_precision():
        classes = checked_logits(guarded, images, none).shape[1]
    parts = [labels] if given.train is None else [labels, given.train.labels]
    highest = max(int(part.max()) for part in parts)
    if highest >= classes:
        raise InputError(
            f"the model answers {classes} classes, and {given.label} has labels up to {highest}; "
            "give the data that it was trained for, or a model with an output for each class"
        )
    return classes


def _spare(classes: int, given: Given) -> tuple[Warned, ...]:
    known = given.shape.num_classes
    if classes <= known:
        return ()
    message = (
        f"the model answers {classes} classes, and {given.label} has {known}: what is taken for "
        "one of the others counts as misclassified"
    )
    return (Warned("spare-classes", message),)


def _make(subject: _Subject, request: Request, path: Path, report: Report) -> Stored:
    """Attack, keep the evidence, measure, and write the record as the last thing."""
    clock, settings = Clock(), subject.settings
    log = verdict_log(path.parent, path.stem, "best")
    outcome = _judge(subject, request, log, report)
    clock.stage("attack")
    report(Event("evidence", 0.0, "strengthen and round the adversarial images"))
    kept = keep_evidence(
        evidence_path(path),
        subject.model,
        subject.given.test,
        outcome,
        request.ball,
        protocol=request.protocol,
        seed=request.seed,
        batch_size=request.batch_size,
    )
    clock.stage("evidence")
    rows = outcome_rows(outcome, settings)
    if settings.measure is not None:

        def show(share: float, status: str) -> None:
            report(Event("geometry", share, status.removeprefix("geometry, ")))

        layers = measure_layers(
            subject.model, subject.given, settings, num_classes=subject.num_classes, report=show
        )
        rows = pd.concat([layers, rows], ignore_index=True)
    clock.stage("measure")
    facts = subject.opened.facts
    made = Appraised(
        settings=settings,
        name=subject.name,
        head=facts.get("head", ""),
        objective=facts.get("objective", ""),
        card=request.card,
        given=subject.given,
        model=subject.model,
        outcome=outcome,
        doubts=subject.doubts,
        kept=kept,
        rows=rows,
        file=write_rows(path.with_suffix(".parquet"), rows),
        seconds=clock.seconds,
    )
    write_record(path, make_appraisal(made))
    remove_file(log)
    return read_record(path)


def _judge(subject: _Subject, request: Request, log: Path, report: Report) -> Outcome:
    """Make the verdict; killed, it goes on from its log."""

    def show(progress: Progress) -> None:
        report(Event("attack", progress.share, str(progress)))

    def judge() -> Outcome:
        test = subject.given.test
        return evaluate(
            subject.model,
            to_unit(test.images),
            test.labels,
            request.ball,
            protocol=request.protocol,
            attack=request.attack,
            seed=request.seed,
            ids=test.ids,
            batch_size=request.batch_size,
            log=log,
            report=show,
        )

    try:
        return judge()
    except RecordError:  # left by another version of the model's code or of an attack
        remove_file(log)
        return judge()

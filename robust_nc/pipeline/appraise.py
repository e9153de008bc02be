"""Judge a finished model: attack it, keep the evidence, measure its layers, leave one record."""

import dataclasses
import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from robust_nc.config import Component, EvaluationConfig, ThreatConfig
from robust_nc.data.load import to_unit
from robust_nc.evaluation.evaluate_model import evaluate
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.digests import count_parameters, state_digest
from robust_nc.io.files import alone, remove_file, remove_unfinished, sha256_of
from robust_nc.pipeline.card import model_name, read_card
from robust_nc.pipeline.finished_model import (
    SUITE,
    AppraisalConfig,
    EvaluatedData,
    ModelData,
    ModelReference,
    affordable,
    appraisal_id,
    check_layers,
    geometry_cost,
    identifying_appraisal,
    measure_layers,
    measure_settings,
    read_model_data,
)
from robust_nc.pipeline.make_record import (
    keep_evidence,
    make_record,
    told_names,
    verdict_rows,
    which_examples,
    with_geometry,
)
from robust_nc.pipeline.request import Request
from robust_nc.pipeline.verdict_parts import evaluate_on
from robust_nc.plugins import find_attack, find_protocol
from robust_nc.profiling.feature_cache import chosen_taps
from robust_nc.record.folder import evidence_path, verdict_log
from robust_nc.record.schema import (
    Card,
    Facts,
    GeometryUse,
    Stored,
    Weights,
    data_name,
    read_record,
    sealed,
    tidy,
    write_record,
    write_rows,
)
from robust_nc.runtime.progress import Clock, Event
from robust_nc.runtime.torch_state import PassMeter, default_device, device_of
from robust_nc.types import Warned
from robust_nc.zoo.code import Tell
from robust_nc.zoo.isolation import isolated_model
from robust_nc.zoo.reference import OpenedModel, open_model

_VERDICT = ".verdict.parquet"  # rows of a verdict whose geometry is not measured yet
_ALL = ("everything",)
_UNMEASURED = GeometryUse(
    passes=0, allowed=0, train_examples=0, test_examples=0, left_out=("everything, until now",)
)
_MOST = 2**53
PLACE = Path("out") / "evaluate"  # where a folder named after the model goes, if none is given


class Appraised(NamedTuple):
    """The record and where it lies; `made` says whether it was made now, or was there."""

    stored: Stored
    made: bool


def _unheard(_: object) -> None:
    """Take what nobody listens to."""


def appraise(
    request: Request, *, tell: Tell = _unheard, report: Callable[[Event], None] = _unheard
) -> Appraised:
    """Judge a model and leave its record, rows and evidence in one folder.

    Killed, it goes on from its log. An appraisal that is finished is not done again; another one
    in the folder is left alone, and this one refused. `tell` is called with what the user should
    know, `report` with the progress.

    Raises `ConfigError`, `InputError`, `DataError`, `CheckpointError` or `StorageError`, each with
    one sentence that says what was found and what to do.
    """
    _check(request)
    card = read_card(request.card) if isinstance(request.card, Path) else request.card
    with ExitStack() as stack:
        subject = _prepare(request, card, tell, stack)
        return _appraised(subject, request, stack, tell, report)


def _check_folder(out: Path, cell: str) -> None:
    """Refuse a folder with another record in it."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose a folder with --out")
    for path in sorted(out.glob("*.json")):
        if path.stem != cell and not path.name.startswith("."):
            raise ConfigError(
                f"{out} holds {_told(path)} already, and a folder holds one record; choose "
                f"another, such as --out {out}-{cell[:6]}"
            )


def _finished(out: Path, cell: str) -> Stored | None:
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


def _told(path: Path) -> str:
    try:
        record = read_record(path).record
    except RecordError:
        return path.name
    threat = record.config.get("threat")
    eps = f", eps {threat.get('eps')}" if isinstance(threat, dict) else ""
    return f"{path.name} ({record.model} on {data_name(record)}{eps}, {record.protocol})"


class _Subject(NamedTuple):
    """A model that answers the images, on its device, and all that its appraisal depends on."""

    settings: AppraisalConfig
    name: str
    card: Card | None
    opened: OpenedModel
    data: ModelData
    warnings: tuple[Warned, ...]


def _check(request: Request) -> None:
    """Refuse what can be refused before anything is read."""
    find_protocol(request.protocol)
    if request.batch_size is not None and request.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, found {request.batch_size}")
    if request.seed < 0:
        raise ConfigError(f"--seed must be at least 0, found {request.seed}")
    if not request.geometry_budget > 0:
        raise ConfigError(
            f"--geometry-budget must be above 0, found {request.geometry_budget}; --no-geometry "
            "leaves the geometry out"
        )
    if request.taps is not None and not request.geometry:
        raise ConfigError("--taps chooses what the geometry measures; leave out --no-geometry")
    if request.taps is not None and request.isolated:
        raise ConfigError("--taps chooses layers, which --isolated leaves out of reach")


def _prepare(request: Request, card: Card | None, tell: Tell, stack: ExitStack) -> _Subject:
    """Read the data, open the model on the stack, and see that they fit together."""
    if request.attack is not None:
        find_attack(request.attack)
    geometry = request.geometry and not request.isolated
    data = read_model_data(
        request.dataset, n=request.n, root=request.root, train=geometry, shuffle=request.shuffle
    )
    for told in (data.left_out, *(warned.message for warned in data.warnings)):
        if told:
            tell(f"{data.label}: {told}")
    asked: dict[str, Any] = {
        "num_classes": data.shape.num_classes,
        "image_shape": data.shape.image_shape,
        "tell": tell,
    }
    if request.isolated:
        opened = stack.enter_context(isolated_model(request.model, **asked))
    else:
        opened = open_model(request.model, **asked)
    model = opened.model.to(default_device()).eval()
    measure = None
    if request.geometry and request.isolated:
        tell("geometry is left out: the layers of an isolated model are not within reach")
    elif request.geometry and data.train is None:
        tell(
            f"geometry is left out: {data.label} has no training images, whose class means are "
            "the vertices"
        )
    elif request.geometry:
        taps = None if request.taps is None else chosen_taps(model, request.taps)
        check_layers(model, data, taps)
        measure = measure_settings(data, taps, request.batch_size)
    attack = None if request.attack is None else Component(name=request.attack)
    settings = AppraisalConfig(
        model=ModelReference(reference=opened.reference, state=state_digest(opened.digests)),
        data=EvaluatedData(dataset=data.part, examples=data.examples),
        threat=ThreatConfig(norm=request.ball.norm, eps=float(request.ball.eps)),
        evaluation=EvaluationConfig(
            protocol=request.protocol,
            attack=attack,
            examples=data.examples,
            batch_size=request.batch_size,
        ),
        measure=measure,
        seed=request.seed,
    )
    name = (model_name(card) if card else "") or opened.name
    classes, known, warnings = opened.num_classes, data.shape.num_classes, [*data.warnings]
    if classes > known:
        message = (
            f"the model answers {classes} classes, and {data.label} has {known}: what is taken for "
            "one of the others counts as misclassified"
        )
        warnings.append(Warned("spare-classes", message))
    return _Subject(settings, name, card, opened, data, tuple(warnings))


def _appraised(
    subject: _Subject,
    request: Request,
    model: ExitStack,
    tell: Tell,
    report: Callable[[Event], None],
) -> Appraised:
    """Judge unless it was done, then measure what is missing and the budget pays for.

    The record of the verdict is written once the `model` is closed, if it is isolated.
    """
    card = subject.card
    cell = appraisal_id(subject.settings)
    out = request.out or PLACE / subject.name
    _check_folder(out, cell)
    with alone(out):
        remove_unfinished(out)
        stored = _finished(out, cell)
        if stored is not None:
            if card is not None and card != stored.record.card:
                record = dataclasses.replace(stored.record, card=card, model=subject.name)
                stored = Stored(sealed(record), stored.path)
                write_record(stored.path, stored.record)
            return _measured(subject, stored, request.geometry_budget, tell, report, made=False)
        stored = _judge(subject, request, out / f"{cell}.json", model, report)
        record = stored.record
        clean, robust = record.scores["clean"], record.scores["robust"]
        tell(
            f"verdict: {clean.value:.1%} clean, {robust.value:.1%} robust, of "
            f"{record.data.examples:,} images; written to {stored.path}"
        )
        return _measured(subject, stored, request.geometry_budget, tell, report, made=True)


def _judge(
    subject: _Subject,
    request: Request,
    path: Path,
    stack: ExitStack,
    report: Callable[[Event], None],
) -> Stored:
    """Attack, keep the evidence, and write the record of the verdict as the last thing."""
    clock, settings, model = Clock(), subject.settings, subject.opened.model
    data, test, log = subject.data, subject.data.test, verdict_log(path.parent, path.stem, "best")
    attack = partial(
        evaluate,
        model,
        to_unit(test.images),
        test.labels,
        request.ball,
        protocol=request.protocol,
        attack=request.attack,
        seed=request.seed,
        ids=test.ids,
        batch_size=request.batch_size,
        log=log,
        report=lambda progress: report(Event("attack", progress.share, str(progress))),
    )
    outcome = evaluate_on(log, attack)
    clock.stage("attack")
    report(Event("evidence", 0.0, "strengthen and round the adversarial images"))
    kept = keep_evidence(
        evidence_path(path),
        model,
        test,
        outcome,
        request.ball,
        protocol=request.protocol,
        seed=request.seed,
        batch_size=request.batch_size,
    )
    clock.stage("evidence")
    rows = tidy(verdict_rows(outcome, settings.evaluation.protocol))
    device, parameters = device_of(model), count_parameters(model)
    stack.close()  # raises what an isolated model did
    count, facts = len(test.labels), subject.opened.facts
    record = make_record(
        outcome,
        rows,
        cell=path.stem,
        suite=SUITE,
        model=subject.name,
        objective=facts.get("objective", ""),
        head=facts.get("head", ""),
        config=identifying_appraisal(settings),
        seed=settings.seed,
        protocol=settings.evaluation.protocol,
        data=Facts(
            dataset=data.part.name,
            split="test",
            examples=count,
            which=which_examples(count),
            fingerprint=kept.fingerprint,
            num_classes=data.shape.num_classes,
            class_names=told_names(data.shape.class_names),
        ),
        weights=Weights(parameters=parameters, state=kept.state),
        evidence=kept.file,
        file=write_rows(
            path.with_suffix(".parquet" if settings.measure is None else _VERDICT), rows
        ),
        seconds=clock.seconds,
        device=device,
        warnings=subject.warnings,
        card=subject.card,
        geometry=None if settings.measure is None else _UNMEASURED,
    )
    write_record(path, record)
    remove_file(log)
    return read_record(path)


def _measured(
    subject: _Subject,
    stored: Stored,
    budget: float,
    tell: Tell,
    report: Callable[[Event], None],
    *,
    made: bool,
) -> Appraised:
    """Measure the geometry, if some is missing that the budget pays for; rewrite the record.

    Without attacks there is nothing to compare with, and all is measured.
    """
    settings, record = subject.settings, stored.record
    measure, before = settings.measure, record.geometry
    if record.rows.path != stored.path.with_suffix(_VERDICT).name:
        remove_file(stored.path.with_suffix(_VERDICT))  # of a run that was killed
    if measure is None or before is None:
        return Appraised(stored, made)
    attacked = record.passes.forward + record.passes.backward
    allowed = budget * attacked if record.attacks else math.inf
    whole = min(allowed, _MOST)  # what a record can hold
    if not before.left_out or whole <= before.allowed:
        return Appraised(stored, made)
    classes = subject.opened.num_classes
    clock, share = Clock(), affordable(measure, classes, allowed)
    rows = stored.rows()
    rows = rows[rows["measure"] == "verdict"]
    use = GeometryUse(
        passes=0, allowed=int(whole), train_examples=0, test_examples=0, left_out=_ALL
    )
    if share is not None:
        model = subject.opened.model

        def show(share: float, status: str) -> None:
            report(Event("geometry", share, status.removeprefix("geometry, ")))

        with PassMeter(model) as meter:
            layers = measure_layers(
                model, subject.data, settings, share, num_classes=classes, report=show
            )
        rows = pd.concat([layers, rows], ignore_index=True)
        use = dataclasses.replace(
            use,
            passes=meter.forwards + meter.backwards,
            train_examples=share.train,
            test_examples=share.test,
            left_out=share.left_out,
        )
    clock.stage("measure")
    found = _rewritten(stored, rows, use, clock.seconds["measure"])
    if use.left_out:
        cost = geometry_cost(measure, classes)
        whole = cost.images + cost.radii + len(measure.targets) * cost.kind
        least, most = (math.ceil(passes / max(attacked, 1)) for passes in (cost.least, whole))
        more = f"--geometry-budget {most} measures all of it, without attacking again"
        more = f"--geometry-budget {least} measures the least, {more}" if share is None else more
        tell(
            f"of the geometry, left out to cost no more than {budget:g} times the attacks' passes: "
            f"{', '.join(use.left_out)}; {more}"
        )
    return Appraised(found, made=True)


def _rewritten(stored: Stored, rows: pd.DataFrame, use: GeometryUse, seconds: float) -> Stored:
    """Write a record anew with the rows of its geometry.

    Whenever that ends, the record and its rows fit together: those of the verdict alone have a name
    of their own, which the record names as long as the others are not there, and go last.
    """
    path, bare = stored.path, stored.path.with_suffix(_VERDICT)
    if stored.record.rows.path != bare.name:
        told = rows[rows["measure"] == "verdict"]
        file = write_rows(bare, told)
        write_record(
            path, with_geometry(stored.record, told, file, geometry=_UNMEASURED, seconds=0.0)
        )
    file = write_rows(path.with_suffix(".parquet"), rows)
    record = with_geometry(stored.record, rows, file, geometry=use, seconds=seconds)
    write_record(path, record)
    remove_file(bare)
    return read_record(path)

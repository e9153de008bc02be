"""From the records of a run to the answers of its claims, each a file: all to check it again.

>>> import tempfile
>>> read_answers(Path(tempfile.mkdtemp())), answer_claims(Claims("none", "", ()), Path("out"))
((), ())
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pydantic import Field

from robust_nc.claims.deciding import Decision, Test, Word, combine, decide, value_range
from robust_nc.claims.quantities import UndefinedError, meaning, notes, quantity_value
from robust_nc.claims.reading import Claim, ClaimPlan, Claims
from robust_nc.config import Component, configuration, plain, read
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.files import canonical_json, sha256_of, write_text
from robust_nc.pipeline.suite import Cell
from robust_nc.record.folder import record_path
from robust_nc.record.schema import Stored, read_record
from robust_nc.report.board.formats import count_text
from robust_nc.report.board.gather import identity, part_label
from robust_nc.statistics.intervals import MIN_SEEDS_FOR_T, Interval, mean_interval
from robust_nc.statistics.significance import ALPHA

SCHEMA = 1
MIN_SEEDS_ON_CPU = 5


@configuration
class SeedValue:
    """A quantity of one seed; `value` is `of`, or `of` less `against` where there is one."""

    seed: int
    of: float
    against: float | None
    value: float


@configuration
class Missing:
    """A cell that has no value, and the reason."""

    side: str  # of | against
    seed: int
    reason: str


@configuration
class Note:
    """What the rows of a cell say about its value: names of warnings of adaptive verdicts."""

    side: str
    seed: int
    note: str


@configuration
class Summary:
    """Values by seed, their mean, and its interval: Student t at `level`, or (None) the range."""

    values: tuple[SeedValue, ...]
    missing: tuple[Missing, ...]
    mean: float | None
    low: float | None
    high: float | None
    level: float | None


@configuration
class Tested:
    """One test: the claim's quantity under the options of one variant, and what came of it.

    `enough`: seeds that would decide an open one, at this mean and spread.
    """

    quantity: str
    summary: Summary
    p: float | None
    p_holm: float | None
    verdict: Word
    reason: str
    notes: tuple[Note, ...] = ()
    enough: int | None = None


@configuration
class Beside:
    """A quantity that was told and decided nothing, with 95 % intervals; `side` as `Missing`."""

    quantity: str
    side: str
    meaning: str
    summary: Summary


@configuration
class Premise:
    """Whether a quantity of one cell keeps the bounds of the claim's premise; None has no value."""

    quantity: str
    side: str
    seed: int
    value: float | None
    holds: bool


@configuration
class Scale:
    """What a claim was measured on; `of` and `against` are models of the suite.

    `train_limit` and `test_limit` None: the whole split. `validation` is the share of train that is
    held out; `train_measured` and `test_measured` count the examples of the geometry.
    """

    dataset: str
    train_limit: int | None
    validation: float
    test_limit: int | None
    train_measured: int
    test_measured: int
    judged: int
    ball: str
    backbone: str
    epochs: int
    protocol: str
    of: str
    against: str | None
    seeds: tuple[int, ...]


@configuration
class Used:
    """A record that the answer rests on: its SHA-256, and those of its rows and last weights."""

    side: str
    seed: int
    cell: str
    model: str
    record: str
    rows: str
    weights: str


@configuration
class Answer:
    """A claim as it was asked, its verdict, and what the verdict rests on.

    `claim_digest` is the SHA-256 of the claim's entry as canonical JSON. `tests` are one per
    variant; `family` counts the tests of all claims of the file, which Holm's method adjusts for at
    `alpha`. `versions` and `hardware` are those of the records, each once.
    """

    schema_version: int = SCHEMA
    claim: Claim
    claim_digest: str
    verdict: Word
    reason: str
    meaning: str
    tests: tuple[Tested, ...]
    family: int
    alpha: float = ALPHA
    premise: tuple[Premise, ...] = ()
    beside: tuple[Beside, ...] = ()
    scale: Scale
    records: tuple[Used, ...]
    versions: tuple[dict[str, str], ...]
    hardware: tuple[dict[str, Any], ...] = Field(default_factory=tuple)


def write_answer(folder: Path, answer: Answer) -> Path:
    """Write `<folder>/<id>.json`, atomically."""
    path = folder / f"{answer.claim.id}.json"
    write_text(path, json.dumps(plain(answer), indent=1, allow_nan=False) + "\n")
    return path


def read_answers(folder: Path) -> tuple[Answer, ...]:
    """Read all answers of a folder, sorted by file name, or raise `RecordError`."""
    answers = []
    for path in sorted(folder.glob("*.json")):
        try:
            answers.append(read(Answer, json.loads(path.read_text()), source=str(path)))
        except (OSError, ValueError) as error:
            why = error if isinstance(error, ConfigError) else f"{path}: {error}"
            raise RecordError(f"not an answer to a claim: {why}") from None
    return tuple(answers)


class _Measured(NamedTuple):
    """A cell's record and rows."""

    stored: Stored
    rows: pd.DataFrame


class _Asked(NamedTuple):
    """A claim and its measured cells, by side (`of`, and `against` where there is one) and seed."""

    plan: ClaimPlan
    sides: dict[str, dict[int, _Measured]]

    def every(self) -> Iterator[tuple[str, int, _Measured]]:
        for side, cells in self.sides.items():
            for seed, cell in cells.items():
                yield side, seed, cell


class _Found(NamedTuple):
    """A quantity of every seed, which cells have no value of it, and what their rows note."""

    part: Component
    values: tuple[SeedValue, ...]
    missing: tuple[Missing, ...]
    notes: tuple[Note, ...] = ()


def missing_cells(claims: Claims, out: Path) -> tuple[str, ...]:
    """Name the cells that a claim needs and that have no whole record below `out`."""
    return tuple(_load(claims, out)[1])


def answer_claims(claims: Claims, out: Path) -> tuple[Answer, ...]:
    """Answer every claim from the records in `<out>/<suite>/`; nothing is computed again.

    The tests of all claims are decided together. Raises `RecordError` that names the cells without
    a whole record, since each answer depends on all of them, and for a quantity that decides and
    was not measured.
    """
    cells, missing = _load(claims, out)
    if missing:
        raise RecordError(f"no claim is answered: these cells have no record: {'; '.join(missing)}")
    asked = [_asked(plan, cells, out) for plan in claims.plans]
    premises = [_premises(one) for one in asked]
    found = [[_found(one, part) for part in one.plan.quantities] for one in asked]
    tests = [
        _test(one, premise, values)
        for one, premise, group in zip(asked, premises, found, strict=True)
        for values in group
    ]
    decisions = iter(decide(tests))
    return tuple(
        _answer(one, premise, [(values, next(decisions)) for values in group], len(tests))
        for one, premise, group in zip(asked, premises, found, strict=True)
    )


def _load(claims: Claims, out: Path) -> tuple[dict[Path, _Measured], list[str]]:
    """Read what the claims need: cells by the path of their record, and the names of the others."""
    found: dict[Path, _Measured] = {}
    missing: dict[Path, str] = {}
    for plan in claims.plans:
        for cell in (*plan.of.values(), *(plan.against or {}).values()):
            path = _path(plan, cell, out)
            if path in found or path in missing:
                continue
            try:
                stored = read_record(path)
                found[path] = _Measured(stored, stored.rows())
            except RecordError:
                name = f"{cell.model} seed {cell.config.seed} ({cell.id})"
                missing[path] = f"{plan.suite.name}: {name}"
    return found, list(missing.values())


def _path(plan: ClaimPlan, cell: Cell, out: Path) -> Path:
    return record_path(out / plan.suite.name, cell.model, cell.id)


def _asked(plan: ClaimPlan, cells: Mapping[Path, _Measured], out: Path) -> _Asked:
    """Put the cells of a claim by side and seed; of two sides, the seeds that both have."""
    chosen = {"of": plan.of} | ({} if plan.against is None else {"against": plan.against})
    seeds = sorted(set.intersection(*(set(side) for side in chosen.values())))
    sides = {
        name: {seed: cells[_path(plan, side[seed], out)] for seed in seeds}
        for name, side in chosen.items()
    }
    return _Asked(plan, sides)


def _premises(asked: _Asked) -> tuple[Premise, ...]:
    found = []
    for name, bounds in asked.plan.claim.premise.items():
        for side, seed, cell in asked.every():
            if bounds.side in {"both", side}:
                value, _ = _value(Component(name=name), cell.rows)
                holds = bounds.hold(value)
                found.append(Premise(quantity=name, side=side, seed=seed, value=value, holds=holds))
    return tuple(found)


def _value(part: Component, rows: pd.DataFrame) -> tuple[float | None, str]:
    try:
        return quantity_value(part, rows), ""
    except UndefinedError as error:
        return None, str(error)


def _found(asked: _Asked, part: Component) -> _Found:
    of, against = asked.sides["of"], asked.sides.get("against", {})
    values, missing, noted = [], [], []
    for seed in of:
        found: dict[str, float | None] = {}
        for side, cells in asked.sides.items():
            found[side], reason = _value(part, cells[seed].rows)
            if found[side] is None:
                missing.append(Missing(side=side, seed=seed, reason=reason))
                continue
            texts = notes(part, cells[seed].rows)
            noted += [Note(side=side, seed=seed, note=text) for text in texts]
        first, second = found["of"], found.get("against")
        if first is not None and (not against or second is not None):
            value = first - (second or 0.0)
            values.append(SeedValue(seed=seed, of=first, against=second, value=value))
    return _Found(part, tuple(values), tuple(missing), tuple(noted))


def _test(asked: _Asked, premises: tuple[Premise, ...], found: _Found) -> Test:
    claim = asked.plan.claim
    values = tuple(one.value for one in found.values)
    failed = [one for one in premises if not one.holds]
    needed, place = _needed(asked)
    bar = ""
    if failed:
        names = ", ".join(sorted({one.quantity for one in failed}))
        bar = f"the premise on {names} fails in {len(failed)} of {len(premises)} cells"
    elif len(values) < needed:
        seeds = count_text(len(values), len(values), "seed")
        bar = f"{seeds} with a value, and {place} a decision needs {needed}"
    return Test(claim.expect, claim.reference, claim.effect, values, bar)


def _needed(asked: _Asked) -> tuple[int, str]:
    devices = {cell.stored.record.hardware.get("device") for _, _, cell in asked.every()}
    if "cpu" in devices:
        return MIN_SEEDS_ON_CPU, "on a CPU"
    return MIN_SEEDS_FOR_T, "on an accelerator"


def _answer(
    asked: _Asked,
    premises: tuple[Premise, ...],
    decided: list[tuple[_Found, Decision]],
    family: int,
) -> Answer:
    plan = asked.plan
    verdict, reason = combine([decision for _, decision in decided])
    records = [cell.stored.record for _, _, cell in asked.every()]
    return Answer(
        claim=plan.claim,
        claim_digest=plan.digest,
        verdict=verdict,
        reason=reason,
        meaning=meaning(plan.claim.quantity),
        tests=tuple(
            Tested(
                quantity=part_label(plain(found.part)),
                summary=_summary(found, decision.interval, decision.level),
                p=decision.p,
                p_holm=decision.p_holm,
                verdict=decision.verdict,
                reason=decision.reason,
                notes=found.notes,
                enough=decision.enough,
            )
            for found, decision in decided
        ),
        family=family,
        premise=premises,
        beside=_beside(asked),
        scale=_scale(asked),
        records=tuple(_used(side, seed, cell) for side, seed, cell in asked.every()),
        versions=_distinct([record.versions for record in records]),
        hardware=_distinct([record.hardware for record in records]),
    )


def _summary(found: _Found, interval: Interval | None, level: float | None) -> Summary:
    mean, low, high = (None, None, None) if interval is None else interval[:3]
    return Summary(
        values=found.values, missing=found.missing, mean=mean, low=low, high=high, level=level
    )


def _beside(asked: _Asked) -> tuple[Beside, ...]:
    """Summarise what stands beside, on each side; what was not measured says so."""
    told = []
    for part in asked.plan.claim.beside:
        for side, cells in asked.sides.items():
            values, missing = [], []
            for seed, cell in cells.items():
                try:
                    value = quantity_value(part, cell.rows)
                    values.append(SeedValue(seed=seed, of=value, against=None, value=value))
                except RecordError as error:
                    missing.append(Missing(side=side, seed=seed, reason=str(error)))
            numbers = [one.value for one in values]
            whole = len(numbers) >= MIN_SEEDS_FOR_T
            interval = mean_interval(numbers) if whole else value_range(numbers)
            found = _Found(part, tuple(values), tuple(missing))
            told.append(
                Beside(
                    quantity=part_label(plain(part)),
                    side=side,
                    meaning=meaning(part),
                    summary=_summary(found, interval, 0.95 if whole else None),
                )
            )
    return tuple(told)


def _scale(asked: _Asked) -> Scale:
    cells = [cell for _, _, cell in asked.every()]
    record, config = cells[0].stored.record, next(iter(asked.plan.of.values())).config
    against = asked.sides.get("against", {})
    return Scale(
        dataset=record.data.dataset,
        train_limit=config.data.train_limit,
        validation=config.data.validation,
        test_limit=config.data.test_limit,
        train_measured=_measured(cells[0].rows, "train"),
        test_measured=_measured(cells[0].rows, "test"),
        judged=record.data.examples,
        ball=str(config.threat.ball()),
        backbone=identity(record).backbone,
        epochs=config.train.epochs,
        protocol=record.protocol,
        of=record.model,
        against=next((cell.stored.record.model for cell in against.values()), None),
        seeds=tuple(asked.sides["of"]),
    )


def _measured(rows: pd.DataFrame, split: str) -> int:
    features = (rows["split"] == split) & (rows["epoch"] == -1) & (rows["tap"] != "output")
    counts = rows[features]["n"]
    return int(counts.max()) if len(counts) else 0


def _used(side: str, seed: int, cell: _Measured) -> Used:
    record = cell.stored.record
    return Used(
        side=side,
        seed=seed,
        cell=record.cell,
        model=record.model,
        record=sha256_of(cell.stored.path),
        rows=record.rows.sha256,
        weights="" if record.weights.last is None else record.weights.last.sha256,
    )


def _distinct(facts: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    return tuple({canonical_json(one): one for one in facts}.values())

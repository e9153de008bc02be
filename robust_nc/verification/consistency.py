"""A record against itself: seals, name, configuration, flags, scores, attacks and rows.

Everything that a record says twice must agree. What does not is named:

>>> import dataclasses
>>> from robust_nc.record.schema import Verdict
>>> verdict = Verdict(clean_correct="2:c0", robust="2:40", broken_by=(0, 0))
>>> [finding.place for finding in flag_findings(verdict, examples=2, attacks=1)]
['verdict.broken_by']
"""

import math
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pandas as pd

from robust_nc.config import Component, RunConfig, read
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.files import digest
from robust_nc.io.untrusted import file_name
from robust_nc.pipeline.finished_model import SUITE, AppraisalConfig
from robust_nc.pipeline.make_record import summary, which_examples
from robust_nc.record.schema import (
    COLUMNS,
    Record,
    Score,
    Stored,
    Verdict,
    unpack_flags,
)
from robust_nc.statistics.intervals import wilson
from robust_nc.verification.evidence import Finding, attack_codes, name_rows

_ROUNDING = 1e-5  # rows are kept to seven digits; sums of other machines differ by less
_MOST_ROWS = 64 * 2**20  # bytes of a rows file


def inconsistencies(stored: Stored) -> list[Finding]:
    """Name everything in which a record contradicts itself or its rows; empty if nothing does."""
    record = stored.record
    found = [
        Finding(field, "is not what it was when the record was sealed") for field in stored.changed
    ]
    if not record.seals and (record.evidence or record.weights.state):
        found.append(Finding("seals", "are missing: a record that has evidence is sealed"))
    if digest(record.config)[:16] != record.cell:
        found.append(Finding("cell", "is not the digest of config: one of the two was changed"))
    found += _config_findings(record)
    found += flag_findings(
        record.verdict, examples=record.data.examples, attacks=len(record.attacks)
    )
    found += [] if found_in_flags(found) else [*_score_findings(record), *_attack_findings(record)]
    found += _row_findings(stored)
    try:
        datetime.fromisoformat(record.created)
    except ValueError:
        found.append(Finding("created", f"is no date: {record.created[:40]!r}"))
    return found


def found_in_flags(found: list[Finding]) -> bool:
    """Whether the flags themselves cannot be relied on."""
    return any(finding.place.startswith("verdict") for finding in found)


def settings_of(record: Record) -> RunConfig | AppraisalConfig:
    """Return a record's configuration, of a suite's cell or an appraisal; `RecordError` if none."""
    try:
        if record.suite == SUITE:
            return read(AppraisalConfig, record.config, source="config")
        return read(RunConfig, record.config, source="config")
    except ConfigError as error:
        raise RecordError(str(error)) from None


def flag_findings(verdict: Verdict, *, examples: int, attacks: int) -> list[Finding]:
    """Check flags against each other: a robust example is correct, a broken one has its attack."""
    try:
        flags = {
            "clean_correct": unpack_flags(verdict.clean_correct),
            "robust": unpack_flags(verdict.robust),
        }
    except RecordError as error:
        return [Finding("verdict", str(error))]
    codes = attack_codes(verdict)
    sizes = {name: len(part) for name, part in (flags | {"broken_by": codes}).items()}
    short = [
        Finding(f"verdict.{name}", f"is of {size} examples, data.examples of {examples}")
        for name, size in sizes.items()
        if size != examples
    ]
    if short:
        return short
    clean, robust = flags["clean_correct"], flags["robust"]
    wrong = {
        "robust": ("claims what is misclassified clean to be robust", robust & ~clean),
        "broken_by": (
            "does not fit the flags",
            ((codes == -1) != robust) | ((codes == -2) != ~clean) | (codes < -2),
        ),
        "attacks": ("are fewer than broken_by names", codes >= attacks),
    }
    return [
        Finding(f"verdict.{name}", f"{text}: {name_rows(np.flatnonzero(rows).tolist())}")
        for name, (text, rows) in wrong.items()
        if rows.any()
    ]


def _config_findings(record: Record) -> Iterator[Finding]:
    """Compare what the record says of its configuration with the configuration."""
    try:
        settings = settings_of(record)
    except RecordError as error:
        yield Finding("config", str(error))
        return
    pairs: dict[str, tuple[object, object]] = {
        "seed": (record.seed, settings.seed),
        "protocol": (record.protocol, settings.evaluation.protocol),
        "data.dataset": (record.data.dataset, settings.data.dataset.name),
    }
    names = record.data.class_names
    if names is not None:
        pairs["data.class_names"] = (len(names), record.data.num_classes)
    if isinstance(settings, AppraisalConfig):
        pairs |= {
            "data.split": (record.data.split, settings.data.split),
            "weights.state": (record.weights.state, settings.model.state),
            "data.which": (record.data.which, which_examples(record.data.examples)),
        }
        if settings.evaluation.examples is not None:  # else one appraisal could have many cells
            pairs["config.evaluation.examples"] = (
                settings.evaluation.examples,
                record.data.examples,
            )
        count = settings.data.examples
    else:
        pairs |= {
            "data.split": (record.data.split, "test"),
            "objective": (record.objective, settings.train.objective.name),
            "head": (record.head, settings.model.head.name),
        }
        count = settings.evaluation.examples
    if count is not None:
        pairs["data.examples"] = (record.data.examples, count)
    own = settings.evaluation.attack
    if isinstance(own, Component) and not record.attacks:
        pairs["attacks"] = ("none", own.name)
    for place, (told, meant) in pairs.items():
        if told != meant:
            yield Finding(place, f"is {told!r}, but the record's settings say {meant!r}")


def _score_findings(record: Record) -> Iterator[Finding]:
    """Compare clean and robust accuracy with the flags, and every interval with its share."""
    flags = {"clean": record.verdict.clean_correct, "robust": record.verdict.robust}
    for name in flags.keys() - record.scores.keys():
        yield Finding(f"scores.{name}", "is missing")
    for name, score in sorted(record.scores.items()):
        place = f"scores.{name}"
        if name in flags:
            bits = unpack_flags(flags[name])
            count, right = len(bits), int(bits.sum())
            if score.n != count:
                yield Finding(f"{place}.n", f"is {score.n}, but there are {count} flags")
                continue
            if not math.isclose(score.value, right / max(count, 1), abs_tol=1e-12):
                yield Finding(
                    f"{place}.value",
                    f"is {score.value:.6g}, but {right} of {count} flags are set: "
                    f"{right / max(count, 1):.6g}",
                )
                continue
        yield from _interval_findings(place, score)


def _interval_findings(place: str, score: Score) -> Iterator[Finding]:
    if score.n < 1 or not 0 <= score.value <= 1:
        yield Finding(place, f"is no share of examples: {score.value:.6g} of {score.n}")
        return
    right = round(score.value * score.n)
    if abs(right - score.value * score.n) > 1e-6 * score.n:
        yield Finding(f"{place}.value", f"is {score.value:.9g}, no share of {score.n} examples")
        return
    wanted = wilson(right, score.n)
    for end in ("low", "high"):
        told, meant = getattr(score, end), getattr(wanted, end)
        if not math.isclose(told, meant, abs_tol=1e-9):
            yield Finding(f"{place}.{end}", f"is {told:.6g}, the Wilson interval has {meant:.6g}")


def _attack_findings(record: Record) -> Iterator[Finding]:
    codes = attack_codes(record.verdict)
    for index, attack in enumerate(record.attacks):
        broke = int((codes == index).sum())
        if attack.broke != broke:
            text = f"is {attack.broke} for {attack.name!r}, but broken_by has {broke} of it"
            yield Finding(f"attacks.{index}.broke", text)


def _row_findings(stored: Stored) -> Iterator[Finding]:
    """Check the rows' digest, and the headline measures and accuracies against them."""
    try:
        name = file_name(stored.record.rows.path, what="rows.path")
        size = (stored.path.parent / name).stat().st_size
        if size > _MOST_ROWS:
            yield Finding("rows", f"is of {size:,} bytes; at most {_MOST_ROWS:,} are read")
            return
        frame = stored.rows()
        if list(frame.columns) != list(COLUMNS):
            yield Finding("rows", f"has the columns {', '.join(map(str, frame.columns))[:200]}")
            return
        measured = summary(frame)
    except RecordError as error:
        yield Finding("rows", str(error))
        return
    except FileNotFoundError:
        yield Finding("rows", f"{stored.record.rows.path[:80]} is missing beside the record")
        return
    except (AssertionError, OSError, ValueError, TypeError) as error:  # what a stranger's may do
        yield Finding("rows", f"cannot be read as rows of measures: {str(error)[:200]}")
        return
    for name, told in sorted(stored.record.summary.items()):
        if name in measured and not _same(told, measured[name]):
            text = f"is {_shown(told)}, but the rows say {_shown(measured[name])}"
            yield Finding(f"summary.{name}", text)
    yield from _verdict_row_findings(stored.record, frame)


def _verdict_row_findings(record: Record, frame: pd.DataFrame) -> Iterator[Finding]:
    verdicts = frame[(frame["measure"] == "verdict") & (frame["note"] == "best")]
    verdicts = verdicts[verdicts["attack"].isin(["", record.protocol])]
    for name, condition in (("clean", "clean"), ("robust", "attacked")):
        for value in verdicts[verdicts["condition"] == condition]["value"]:
            score = record.scores.get(name)
            if score is not None and not _same(float(value), score.value):
                text = f"is {score.value:.6g}, but the rows say {value:.6g}"
                yield Finding(f"scores.{name}.value", text)


def _same(told: float | None, measured: float | None) -> bool:
    if told is None or measured is None:
        return told is measured
    return math.isclose(told, measured, rel_tol=_ROUNDING, abs_tol=1e-9)


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.6g}"

"""What one model's page says: scores and seeds, its card, how to get and to check it again.

>>> size(1_234_567)
'1.2 MB'
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robust_nc.io.text import safe_link
from robust_nc.record.schema import Card, Record, Stored
from robust_nc.record.standing import best_badge, standing
from robust_nc.report.board.formats import count, percent
from robust_nc.report.board.gather import identity
from robust_nc.report.site.columns import COLUMNS, Column, cell
from robust_nc.report.site.commands import check, reproduce
from robust_nc.report.site.files import Figure
from robust_nc.report.site.layers import Layers, Leaps
from robust_nc.report.site.text import LONG, SHORT, cut

_MOST_SEEDS = 100
_MOST_ITEMS = 30
_LABELS = {"extra_data": "extra data"}


class Seed(NamedTuple):
    """One record of the model: its seed, cell, accuracies, evidence and badge."""

    seed: str
    cell: str
    clean: str
    robust: str
    evidence: str
    digest: str
    badge: str


class Page(NamedTuple):
    """One model's page. `card` are (label, text, link or "")."""

    path: str
    name: str
    badge: str
    board: str
    numbers: list[tuple[str, str, str]]
    card: list[tuple[str, str, str]]
    warnings: list[tuple[str, str]]
    seeds: list[Seed]
    seeds_left: int
    facts: list[tuple[str, str]]
    again: str
    checks: list[str]
    layers: Layers
    leaps: Leaps | None
    figures: list[Figure]
    drawn: bool


class Drawn(NamedTuple):
    """What was made of a model's rows; `figures` None where the site has enough of them."""

    layers: Layers
    leaps: Leaps | None
    figures: list[Figure] | None


def model_page(
    row: Mapping[Any, Any], members: Sequence[Stored], drawn: Drawn, *, path: str, root: Path
) -> Page:
    """Gather what the page of one row of the leaderboard says; `members` are its records."""
    records = [stored.record for stored in members]
    card = next((one.card for one in records if one.card is not None), None)
    cautions = {(cut(one.name), cut(one.message, LONG)) for r in records for one in r.warnings}
    told = [(one, cell(row, one)) for one in COLUMNS if one.number or one.key == "badge"]
    return Page(
        path=path,
        name=cut(str(row["shown"]), LONG),
        badge=str(row.get("badge") or ""),
        board=cut(f"{row['dataset']}, {row['ball'] or 'no ball'}, protocol {row['protocol']}"),
        numbers=[(one.header, found.text, _meaning(row, one)) for one, found in told],
        card=[] if card is None else _card(card),
        warnings=sorted(cautions)[:_MOST_ITEMS],
        seeds=[_seed(stored) for stored in members[:_MOST_SEEDS]],
        seeds_left=max(0, len(members) - _MOST_SEEDS),
        facts=facts(records),
        again=reproduce(records[0]),
        checks=[found for stored in members[:_MOST_SEEDS] if (found := check(stored, root))],
        layers=drawn.layers,
        leaps=drawn.leaps,
        figures=drawn.figures or [],
        drawn=drawn.figures is not None,
    )


def facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Say what was measured, on what, with what."""
    first = records[0]
    found: dict[str, Iterable[str]] = {
        "data": (f"{one.data.dataset}, {one.data.num_classes} classes" for one in records),
        "judged on": (_judged(one) for one in records),
        "ball": (identity(one).ball for one in records),
        "protocol": (one.protocol for one in records),
        "attacks": (f"{one.name} ({_pairs(one.parameters)})" for one in first.attacks),
        "suite": (one.suite for one in records),
        "model": map(_parts, records),
        "parameters": (f"{one.weights.parameters:,}" for one in records),
        "weights, SHA-256": (_weights(one) for one in records),
        "seeds": (str(one.seed) for one in records),
        "seconds": (_seconds(records),),
        "hardware": (_pairs(one.hardware) for one in records),
        "versions": (_pairs(one.versions) for one in records),
        "made": sorted({one.created[:10] for one in records}),
    }
    return [(name, text) for name, values in found.items() if (text := distinct(values))]


def distinct(values: Iterable[str]) -> str:
    """Say each text once, of many the first."""
    texts = [text for text in dict.fromkeys(values) if text]
    more = f"; and {len(texts) - _MOST_ITEMS:,} more" if len(texts) > _MOST_ITEMS else ""
    return cut("; ".join(texts[:_MOST_ITEMS]), LONG) + more


def size(amount: int) -> str:
    """Write a number of bytes."""
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next((f"{amount / n:.1f} {unit}" for unit, n in units if amount >= n), f"{amount} B")


def _card(card: Card) -> list[tuple[str, str, str]]:
    lines = []
    for field in dataclasses.fields(card):
        value = getattr(card, field.name)
        text = (
            {True: "yes", False: "no", None: ""}.get(value) if not isinstance(value, str) else value
        )
        if text:
            label = _LABELS.get(field.name, field.name)
            lines.append((label, cut(text, LONG), safe_link(text) if label == "link" else ""))
    return lines


def _seed(stored: Stored) -> Seed:
    record, evidence = stored.record, stored.record.evidence
    found = standing(stored)
    badge = best_badge(found.badges)
    lost = f"challenged: {count(found.challenged, found.challenged, 'example')} lost"
    return Seed(
        seed=str(record.seed),
        cell=cut(record.cell, 40),
        clean=_score(record, "clean"),
        robust=_score(record, "robust"),
        evidence="none"
        if evidence is None
        else f"{evidence.broken:,} examples, {size(evidence.bytes)}",
        digest="" if evidence is None else cut(evidence.sha256, 64),
        badge="; ".join(part for part in (badge, lost if found.challenged else "") if part) or "-",
    )


def _score(record: Record, name: str) -> str:
    score = record.scores.get(name)
    return "-" if score is None else f"{percent(score.value, score.low, score.high)} of {score.n:,}"


def _meaning(row: Mapping[Any, Any], column: Column) -> str:
    why = cut(str(row.get("unranked") or "")) if column.key == "rank" else ""
    return f"{column.meaning}; not ranked: {why}" if why else column.meaning


def _parts(one: Record) -> str:
    # A model that came finished has none of the three.
    head = f"head {one.head}" if one.head else ""
    return ", ".join(part for part in (one.objective, head, identity(one).backbone) if part)


def _judged(one: Record) -> str:
    examples = count(one.data.examples, one.data.examples, "example")
    return f"{examples} of {one.data.split}: {one.data.which}"


def _weights(one: Record) -> str:
    file = one.weights.best
    return (one.weights.state or "")[:16] if file is None else file.sha256[:16]


def _pairs(values: Mapping[str, object]) -> str:
    return cut(", ".join(f"{key} {value}" for key, value in sorted(values.items())), 4 * SHORT)


def _seconds(records: Sequence[Record]) -> str:
    stages = dict.fromkeys(stage for record in records for stage in record.seconds)
    means = {
        stage: sum(record.seconds.get(stage, 0.0) for record in records) / len(records)
        for stage in stages
    }
    return ", ".join(f"{stage} {seconds:,.1f}" for stage, seconds in means.items())

"""The leaderboard as a static page: one `index.html` with its figures, and nothing from elsewhere.

Everything that a record says is escaped by the template; the page can be read without JavaScript.

>>> environment().from_string("{{ name }}").render(name="<script>")
'&lt;script&gt;'
"""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from robust_nc.exceptions import InputError
from robust_nc.files import write_text
from robust_nc.record import Record, Stored
from robust_nc.report.drawing import Wanted, select, taps_in_order
from robust_nc.report.figures import save_each
from robust_nc.report.formats import (
    GAP,
    NULLS,
    count,
    display_names,
    has_gap,
    percent,
    points,
    sections,
    short,
)
from robust_nc.report.gather import Identity, gather_rows, identity, read_results
from robust_nc.report.table import BOARD, leaderboard, paired

BASELINE = "linear"
# The figure `story` shows these two already.
_IN_STORY = ("collapse_per_layer", "leap_rate_per_layer")
_TRUE, _ATTACKED = ("clean",), ("attacked",)

# Columns of a board: header, column of the leaderboard, and how it is written.
_BOARD = (
    ("rank", "rank", "count"),
    ("model", "model", "model"),
    ("robust %", "robust", "interval"),
    ("clean %", "clean", "interval"),
    (GAP, "gap", "points"),
    ("seeds", "seeds", "count"),
    ("leap %", "leap_rate", "percent"),
    ("landed %", "landed", "percent"),
    ("NC1 clean", "nc1_clean", "short"),
    ("NC1 attacked", "nc1_attacked", "short"),
    ("its null", "nc1_leap_null", "short"),
    ("NC1 landed", "nc1_landed", "short"),
    ("its null", "nc1_landed_null", "short"),
    ("NC2 angle", "nc2_angle_clean", "short"),
    ("robust %, last", "robust_last", "percent"),
    ("objective", "objective", "name"),
    ("head", "head", "name"),
    ("backbone", "backbone", "name"),
    ("parameters", "parameters", "count"),
    ("passes", "passes_per_example", "count"),
    ("warnings", "warnings", "name"),
)
_SORTED_BY = 2
# Columns of a model's table of layers.
_LAYERS = (
    ("NC1 clean", Wanted("nc1", _TRUE, "true", "train"), "short"),
    ("NC1 attacked", Wanted("nc1", _ATTACKED, "true", "train"), "short"),
    ("its null", Wanted("nc1_leap_null", _ATTACKED, None, "train"), "short"),
    ("NC1 landed", Wanted("nc1", _ATTACKED, "landed", "train"), "short"),
    ("its null", Wanted("nc1_landed_null", _ATTACKED, None, "train"), "short"),
    ("NC2 angle clean", Wanted("nc2_angle", _TRUE, "true", "train"), "short"),
    ("leap %", Wanted("leap_rate", _ATTACKED, None, "train"), "percent"),
    ("leap % noise", Wanted("leap_rate", ("gaussian",), None, "train"), "percent"),
    ("landed %", Wanted("landed", _ATTACKED, None, "train"), "percent"),
    ("landing fraction", Wanted("landing_fraction", _ATTACKED, None, "train"), "short"),
)


class Cell(NamedTuple):
    """One cell of a table: what is shown, the number that it sorts by, and whether it is one."""

    text: str
    value: float = math.nan
    number: bool = False
    link: str = ""


class Grid(NamedTuple):
    """One table of the page; `sorted_by` is the column that it comes sorted by, -1 for none."""

    title: str
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    sorted_by: int = -1


class Model(NamedTuple):
    """One model's part of the page."""

    anchor: str
    name: str
    facts: list[tuple[str, str]]
    layers: Grid
    warnings: list[tuple[str, str]]


def write_site(records: Sequence[Stored], out: Path) -> Path:
    """Write `index.html` and `figures/*.png` into `out`, and return the path of the page.

    Raises `RecordError` if there are no records, or the rows of one are missing or damaged.
    """
    records = read_results(records)
    board = leaderboard(records)
    names = display_names(board)
    groups = [
        [stored for stored in records if _key(identity(stored.record)) == _key(row)]
        for _, row in board.iterrows()
    ]
    saved = [
        one
        for one in save_each(gather_rows(records), out / "figures")
        if not one.name.endswith(_IN_STORY)
    ]
    suites = sorted({stored.record.suite for stored in records} - {""})
    page = (
        environment()
        .get_template("index.html")
        .render(
            title=f"robust_nc: {', '.join(suites) or 'results'}",
            facts=_facts([stored.record for stored in records]),
            boards=_boards(board, names),
            differences=_differences(records),
            figures=[one for one in saved if one.path],
            left_out=[one for one in saved if not one.path],
            models=[_model(i, name, groups[i]) for i, name in enumerate(names)],
            commands=[f"robust-nc run {shlex.quote(suite)}" for suite in suites],
            baseline=BASELINE,
            nulls=NULLS,
            gaps=has_gap(board),
        )
    )
    write_text(out / "index.html", page + "\n")
    return out / "index.html"


def environment() -> Environment:
    """Return the templates' environment: all output escaped, no undefined names."""
    return Environment(
        loader=PackageLoader("robust_nc.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _key(what: Any) -> tuple[Any, ...]:
    # An eps that is missing is NaN, which equals nothing; its ball says as much.
    values = what._asdict() if isinstance(what, Identity) else what
    return tuple(values[name] for name in Identity._fields if name != "eps")


def _facts(records: list[Record]) -> list[tuple[str, str]]:
    """Say what was measured, on what, with what."""
    facts: dict[str, list[str]] = {
        "data": [f"{one.data.dataset}, {one.data.num_classes} classes" for one in records],
        "judged on": [
            f"{count(one.data.examples, one.data.examples, 'example')} of {one.data.split}: "
            f"{one.data.which}"
            for one in records
        ],
        "ball": [identity(one).ball for one in records],
        "protocol": [one.protocol for one in records],
        "seeds": [", ".join(map(str, sorted({one.seed for one in records})))],
        "hardware": [_pairs(one.hardware) for one in records],
        "versions": [_pairs(one.versions) for one in records],
        "made": sorted({one.created[:10] for one in records}),
    }
    return [(name, text) for name, values in facts.items() if (text := _distinct(values))]


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(text for text in dict.fromkeys(values) if text)


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(values.items()))


def _boards(board: pd.DataFrame, names: list[str]) -> list[Grid]:
    shown = board.assign(shown=names, link=[f"#model-{i}" for i in range(len(board))])
    grids = []
    for section, (_, part) in zip(
        sections(board), shown.groupby(list(BOARD), sort=False), strict=True
    ):
        columns = [column for column in _BOARD if column[0] != GAP or has_gap(part)]
        grids.append(
            Grid(
                title=section.title,
                caption=section.caption.removesuffix(f"; {NULLS}"),
                headers=[header for header, _, _ in columns],
                rows=[
                    [_cell(row, key, kind) for _, key, kind in columns]
                    for row in part.to_dict("records")
                ],
                sorted_by=_SORTED_BY,
            )
        )
    return grids


def _cell(row: Mapping[Any, Any], key: str, kind: str) -> Cell:
    if kind == "model":
        return Cell(row["shown"], link=row["link"])
    if kind == "name":
        return Cell(str(row[key]) or "none")
    if kind == "interval":
        ends = (row[f"{key}_low"], row[f"{key}_high"])
        return Cell(percent(row[key], *ends), float(row[key]), number=True)
    return _number(float(row[key]), kind)


def _number(value: float, kind: str) -> Cell:
    if kind == "count":
        return Cell(f"{value:,.0f}" if math.isfinite(value) else "-", value, number=True)
    write = {"percent": percent, "points": points}.get(kind, short)
    return Cell(write(value), value, number=True)


def _differences(records: Sequence[Stored]) -> list[Grid]:
    """Compare each head with the baseline head, where there is one."""
    if BASELINE not in {stored.record.head for stored in records}:
        return []
    frame = paired(records, against=BASELINE)
    if frame.empty:
        return []
    return [
        Grid(
            title=section.title,
            caption=section.caption,
            headers=section.headers,
            rows=[
                [Cell(text, number=i >= section.names) for i, text in enumerate(row)]
                for row in section.rows
            ],
        )
        for section in sections(frame)
    ]


def _model(index: int, name: str, members: Sequence[Stored]) -> Model:
    record, rows = members[0].record, gather_rows(members)
    seeds = sorted(stored.record.seed for stored in members)
    sums = _distinct(stored.record.weights.best.sha256[:16] for stored in members)
    facts = {
        "data": f"{record.data.dataset}, {identity(record).ball}, protocol {record.protocol}",
        "trained as": f"{record.objective}, head {record.head}, {identity(record).backbone}",
        "seeds": ", ".join(map(str, seeds)),
        "attacks": _distinct(f"{one.name} ({_pairs(one.parameters)})" for one in record.attacks),
        "cells": _distinct(stored.record.cell for stored in members),
        "weights": f"{record.weights.parameters:,} parameters; SHA-256 {sums}",
        "seconds": _seconds([stored.record for stored in members]),
    }
    warnings = {(one.name, one.message) for stored in members for one in stored.record.warnings}
    return Model(
        anchor=f"model-{index}",
        name=name,
        facts=[(key, text) for key, text in facts.items() if text],
        layers=_layers(rows, len(members)),
        warnings=sorted(warnings),
    )


def _seconds(records: list[Record]) -> str:
    stages = dict.fromkeys(stage for record in records for stage in record.seconds)
    means = {
        stage: sum(record.seconds.get(stage, 0.0) for record in records) / len(records)
        for stage in stages
    }
    return ", ".join(f"{stage} {seconds:,.1f}" for stage, seconds in means.items())


def _layers(rows: pd.DataFrame, seeds: int) -> Grid:
    """Tabulate the headline measures per layer, means over seeds."""
    columns: list[dict[Any, float]] = []
    places: list[pd.DataFrame] = []
    for _, wanted, _ in _LAYERS:
        try:
            found = select(rows, wanted)
        except InputError:
            columns.append({})
            continue
        places.append(found)
        columns.append(found.groupby("tap")["value"].mean().to_dict())
    taps = taps_in_order(pd.concat(places)) if places else []
    table = [
        [
            Cell(tap),
            *(
                _number(float(column.get(tap, math.nan)), kind)
                for column, (_, _, kind) in zip(columns, _LAYERS, strict=True)
            ),
        ]
        for tap in taps
    ]
    return Grid(
        title="",
        caption=f"last weights, training data, mean of {count(seeds, seeds, 'seed')}; "
        "layers from input to output",
        headers=["layer", *(header for header, _, _ in _LAYERS)],
        rows=table,
    )

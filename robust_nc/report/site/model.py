"""What one model's page says: its numbers, layers and leaps, its records, and how it was made.

With what a reader runs to get a row again, or to check it; made from a stranger's configuration.

>>> _argument("a b"), _argument("--out=/etc"), _argument("a\\nb")
("'a b'", '', '')
>>> _distinct(["digits", "digits", "", "cifar10"])
'digits; cifar10'
"""

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pandas as pd

from robust_nc.record.schema import Record, Stored, data_name
from robust_nc.record.standing import standing
from robust_nc.report.board.formats import count_text, percent
from robust_nc.report.board.gather import identity, value_in
from robust_nc.report.figures.selection import (
    RowFilter,
    class_namer,
    deepest,
    optional,
    taps_in_order,
)
from robust_nc.report.site.tables import COLUMNS, LONG, SHORT, Column, cut, number_text

APPRAISED = "evaluated"  # `Record.suite` of a model that came finished
AUDITED = 300
_MOST = 300  # characters of an argument
_MOST_SEEDS = 100
_MOST_ITEMS = 30
_MOST_LAYERS = 200
_MOST_CLASSES = 20  # a larger matrix is a figure only
_CLEAN, _ATTACKED = ("clean",), ("attacked",)
_NOISE = Column("noise", "leap % noise", "percent", "leap % under Gaussian noise as large")
_WAY = Column(
    "way", "landing fraction", "short", "how far they travel to the other mean: 0 stayed, 1 arrived"
)
_MEANT = {one.key: one for one in (*COLUMNS, _NOISE, _WAY)}
_LAYERS = {
    "nc1_clean": RowFilter("nc1", _CLEAN, "true", "train"),
    "nc1_attacked": RowFilter("nc1", _ATTACKED, "true", "train"),
    "nc1_leap_null": RowFilter("nc1_leap_null", _ATTACKED, None, "train"),
    "nc1_landed": RowFilter("nc1", _ATTACKED, "landed", "train"),
    "nc1_landed_null": RowFilter("nc1_landed_null", _ATTACKED, None, "train"),
    "nc2_angle_clean": RowFilter("nc2_angle", _CLEAN, "true", "train"),
    "leap_rate": RowFilter("leap_rate", _ATTACKED, None, "train"),
    "noise": RowFilter("leap_rate", ("gaussian",), None, "train"),
    "landed": RowFilter("landed", _ATTACKED, None, "train"),
    "way": RowFilter("landing_fraction", _ATTACKED, None, "train"),
}


def _argument(text: str) -> str:
    """Quote an argument for a shell; "" for one that no reader should paste."""
    fine = 0 < len(text) <= _MOST and text.isprintable() and text.isascii()
    return shlex.quote(text) if fine and not text.startswith("-") else ""


def how_to_reproduce(record: Record) -> str:
    """Return the command that makes the row again, or "" where it cannot be told safely."""
    if record.suite != APPRAISED:
        suite = _argument(record.suite)
        return f"robust-nc run {suite}" if suite else ""
    told = identity(record)
    asked = {
        "--dataset": _dataset(record),
        "--norm": told.norm,
        "--eps": told.ball.removeprefix(f"{told.norm} "),
        "--protocol": record.protocol,
        "--n": str(record.data.examples),
        "--seed": str(record.seed),
    }
    attack = value_in(record.config, "evaluation", "attack", "name")
    asked |= {} if attack is None else {"--attack": str(attack)}
    words = [_argument(_reference(record)), *map(_argument, asked.values())]
    if not all(words):
        return ""
    options = [f"{name} {word}" for name, word in zip(asked, words[1:], strict=True)]
    if not record.config.get("measure"):
        return " ".join(["robust-nc evaluate", words[0], *options, "--no-geometry"])
    named = value_in(record.config, "measure", "taps")
    taps = [_argument(str(tap)) for tap in named] if isinstance(named, list) else []
    if not all(taps):
        return ""
    options += ["--taps", *taps] if taps else []
    options += [f"--geometry-budget {budget}"] if (budget := _budget(record)) else []
    return " ".join(["robust-nc evaluate", words[0], *options])


def _budget(record: Record) -> str:
    """Return what the geometry was allowed, in passes of the attacks; "" for just as many."""
    use, passes = record.geometry, record.passes.forward + record.passes.backward
    if not record.attacks or not passes:
        return ""
    if use is None:
        return "inf"
    if not use.left_out:
        return "inf" if use.passes > passes else ""
    return "" if use.allowed == passes else f"{math.ceil(1e4 * use.allowed / passes) / 1e4:g}"


def _dataset(record: Record) -> str:
    """Return the data set with its options, as `--dataset` takes them: `npz?path=mine.npz`."""
    options = value_in(record.config, "data", "dataset", "options")
    told = options if isinstance(options, Mapping) else {}
    words = {key: one if isinstance(one, str) else json.dumps(one) for key, one in told.items()}
    query = urlencode(words, safe="/")
    return f"{record.data.dataset}?{query}" if query else record.data.dataset


def how_to_verify(stored: Stored, root: Path) -> str:
    """Return the command that checks the record, in the folder `root`; "" as `how_to_reproduce`."""
    path = _argument(os.path.relpath(stored.path, root))
    if not path:
        return ""
    model = _argument(_reference(stored.record))
    checked = f" --model {model} --audit {AUDITED}" if model and stored.record.evidence else ""
    return f"robust-nc verify {path}{checked}"


def _reference(record: Record) -> str:
    """Return what a finished model was asked for as; "" for one of a suite."""
    found = value_in(record.config, "model", "reference")
    return found if isinstance(found, str) else ""


def common_root(records: Sequence[Stored]) -> Path:
    """Return the folder that all records lie in."""
    return Path(os.path.commonpath([stored.path.parent.resolve() for stored in records]))


class Layers(NamedTuple):
    """Measures per layer, means over seeds: columns of the numbers, and these from input on."""

    columns: list[Column]
    rows: list[tuple[str, list[str]]]
    left: int


def page_values(
    row: Mapping[Any, Any], members: Sequence[Stored], rows: pd.DataFrame, root: Path
) -> dict[str, Any]:
    """Gather what the page of one row of the leaderboard says.

    `members` are its records, `rows` theirs, `root` the folder that all records lie in.
    """
    records = [stored.record for stored in members]
    shown = members[:_MOST_SEEDS]
    card = next((one.card for one in records if one.card is not None), None)
    warnings = {(one.name, one.message) for record in records for one in record.warnings}
    return {
        "row": row,
        "columns": [one for one in COLUMNS if one.number or one.key == "state"],
        "card": {} if card is None else dataclasses.asdict(card),
        "warnings": sorted(warnings)[:_MOST_ITEMS],
        "records": [(stored.record, _checked(stored)) for stored in shown],
        "more_records": len(members) - len(shown),
        "facts": facts(records),
        "again": how_to_reproduce(records[0]),
        "checks": [found for stored in shown if (found := how_to_verify(stored, root))],
        "data_name": data_name(records[0]),
        "verdict": verdict(row, records[0].data.split),
        "layers": layers(rows),
        "leaps": leaps(rows),
        "seeds": len(members),
    }


def layers(rows: pd.DataFrame) -> Layers:
    """Tabulate the headline measures per layer; no rows where none were made."""
    places = [optional(rows, wanted) for wanted in _LAYERS.values()]
    columns = [_MEANT[key] for key in _LAYERS]
    means = [part.groupby("tap")["value"].mean() for part in places]
    taps = taps_in_order(pd.concat(places))
    texts = [
        (
            tap,
            [
                number_text(mean.get(tap, math.nan), one.kind)
                for one, mean in zip(columns, means, strict=True)
            ],
        )
        for tap in taps[:_MOST_LAYERS]
    ]
    return Layers(columns, texts, max(0, len(taps) - _MOST_LAYERS))


def leaps(rows: pd.DataFrame) -> tuple[str, pd.DataFrame] | None:
    """Return the deepest layer and its leap matrix as shares of rows, all seeds together.

    None where there is none, and for more than `_MOST_CLASSES` classes.
    """
    found = deepest(optional(rows, RowFilter("leap_matrix", _ATTACKED, None, "train")))
    matrix = found.pivot_table(index="i", columns="j", values="value", aggfunc="sum", fill_value=0)
    if not 0 < max(matrix.shape) <= _MOST_CLASSES:
        return None
    sums = matrix.sum(axis=1)
    shares = matrix.div(sums.where(sums > 0), axis=0).fillna(0.0)
    name = class_namer(found)
    return str(found["tap"].iloc[0]), shares.rename(index=name, columns=name)


def leap_layer_name(rows: pd.DataFrame) -> str:
    """Return the layer where most leaps begin, of all seeds together; "" where nothing leaped."""
    found = optional(rows, RowFilter("leap_layer", _ATTACKED, None, "train"))
    counts = found[found["tap"] != "none"].groupby("tap", sort=False)["value"].sum()
    return str(counts.idxmax()) if counts.sum() > 0 else ""


def verdict(row: Mapping[Any, Any], split: str) -> str:
    """Say in a sentence or two what a model withstands, and what the attack does to its features.

    >>> row = {"robust": 0.5, "robust_low": 0.4, "robust_high": 0.6, "clean": 0.9, "seeds": 1}
    >>> row |= {"examples": 99, "protocol": "pgd", "ball": "L2 1", "leap_rate": math.nan}
    >>> verdict(row, "test")
    'It classifies 50.0 % [40.0, 60.0] of 99 test images right under every attack of protocol pgd \
within L2 1; 90.0 % are right without an attack.'
    """
    if not math.isfinite(row["robust"]):
        return "It was not attacked."
    value, _, ends = percent(row["robust"], row["robust_low"], row["robust_high"]).partition(" ")
    seeds = f", mean of {row['seeds']} seeds," if row["seeds"] > 1 else ""
    told = (
        f"It classifies {value} % {ends} of {row['examples']:,} {split} images{seeds} "
        f"right under every attack of protocol {cut(row['protocol'])} within "
        f"{cut(row['ball']) or 'a ball that is not told'}; {percent(row['clean'])} % are right "
        "without an attack."
    )
    if not math.isfinite(row["leap_rate"]):
        return told
    layer, landed = row.get("leap_layer_name"), row["landed"]
    return (
        f"{told} Attacked, {percent(row['leap_rate'])} % of training images leap to the mean of "
        f"another class{f', most of them at layer {cut(layer)}' if layer else ''}"
        f"{f'; {percent(landed)} % of these land on it' if math.isfinite(landed) else ''}."
    )


def facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Say what was measured, on what, with what."""
    stages = dict.fromkeys(stage for record in records for stage in record.seconds)
    means = {
        stage: sum(record.seconds.get(stage, 0.0) for record in records) / len(records)
        for stage in stages
    }
    found: dict[str, Iterable[str]] = {
        "data": (f"{data_name(one)}, {one.data.num_classes} classes" for one in records),
        "judged on": (_judged(one) for one in records),
        "ball": (identity(one).ball for one in records),
        "protocol": (one.protocol for one in records),
        "attacks": (f"{one.name} ({_pairs(one.parameters)})" for one in records[0].attacks),
        "geometry left out": (_left_out(one) for one in records),
        "suite": (one.suite for one in records),
        "model": map(_parts, records),
        "parameters": (f"{one.weights.parameters:,}" for one in records),
        "weights, SHA-256": (_weights(one) for one in records),
        "seeds": (str(one.seed) for one in records),
        "seconds": (", ".join(f"{stage} {seconds:,.1f}" for stage, seconds in means.items()),),
        "hardware": (_pairs(one.hardware) for one in records),
        "versions": (_pairs(one.versions) for one in records),
        "made": sorted({one.created[:10] for one in records}),
    }
    return [(name, text) for name, values in found.items() if (text := _distinct(values))]


def _left_out(record: Record) -> str:
    use = record.geometry
    if use is None or not use.left_out:
        return ""
    return f"{', '.join(use.left_out)}: beyond {use.allowed:,} passes"


def _distinct(values: Iterable[str]) -> str:
    """Say each text once, of many the first."""
    texts = [text for text in dict.fromkeys(values) if text]
    more = f"; and {len(texts) - _MOST_ITEMS:,} more" if len(texts) > _MOST_ITEMS else ""
    return cut("; ".join(texts[:_MOST_ITEMS]), LONG) + more


def _checked(stored: Stored) -> str:
    found = standing(stored)
    lost = f"challenged: {count_text(found.challenged, found.challenged, 'example')} lost"
    told = [found.state, lost if found.challenged else ""]
    return "; ".join(part for part in told if part) or "-"


def _parts(one: Record) -> str:
    # A model that came finished has none of the three.
    head = f"head {one.head}" if one.head else ""
    return ", ".join(part for part in (one.objective, head, identity(one).backbone) if part)


def _judged(one: Record) -> str:
    examples = count_text(one.data.examples, one.data.examples, "example")
    return f"{examples} of {one.data.split}: {one.data.which}"


def _weights(one: Record) -> str:
    file = one.weights.best
    return (one.weights.state or "")[:16] if file is None else file.sha256[:16]


def _pairs(values: Mapping[str, object]) -> str:
    return cut(", ".join(f"{key} {value}" for key, value in sorted(values.items())), 4 * SHORT)

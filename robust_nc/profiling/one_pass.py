"""What one sweep can measure, for conditions of which there are many: radii, corruptions."""

from collections.abc import Iterator
from typing import NamedTuple

from robust_nc.geometry.collapse import collapse
from robust_nc.profiling.accumulators import OnePassMeter, TapMeter, part_bytes, rounds
from robust_nc.profiling.measurement import VertexMoments
from robust_nc.profiling.rows import Row
from robust_nc.profiling.shards import SplitCondition, SplitShards


class OnePass(NamedTuple):
    """Rows of all taps under one condition, and the network's accuracy."""

    rows: list[Row]
    accuracy: float


def measure_once(
    split: SplitShards,
    feature: str,
    vertices: VertexMoments,
    condition: SplitCondition,
    measures: tuple[str, ...],
) -> OnePass:
    """Measure one condition, as many taps at a time as memory allows.

    Collapse (trace form) by true label and by the vertex where examples landed; `measures` are
    names of `Leaps`.
    """
    meters = [
        TapMeter(tap, OnePassMeter, part_bytes(moments.num_groups, moments.dim))
        for tap, moments in vertices.items()
    ]
    chosen = list(rounds(meters))
    rows: list[Row] = []
    right = 0
    labels = split.examples.labels
    for done, some in enumerate(chosen, 1):
        swept = split.sweep(condition, feature, some, vertices, last=done == len(chosen))
        right = int((swept.logits.argmax(1) == labels).sum())
        rows += _rows(
            {each.tap: meter for each, meter in zip(some, swept.meters, strict=True)}, measures
        )
    return OnePass(rows, right / len(labels))


def _rows(meters: dict[str, OnePassMeter], measures: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of all taps: collapse of each, then measures of leaps of each."""
    for tap, meter in meters.items():
        for name, moments in (("true", meter.true), ("landed", meter.landed)):
            found = collapse(moments)
            place = {"tap": tap, "grouping": name, "vertices": "same", "measure": "nc1_trace"}
            note = found.notes.get("nc1_trace", "")
            yield place | {"value": found.nc1_trace, "n": found.num_examples, "note": note}
    for tap, meter in meters.items():
        leaps = meter.leaps.compute()
        common: Row = {"tap": tap, "grouping": "none", "vertices": "clean-train"}
        for name in measures:
            value = {"measure": name, "value": getattr(leaps, name)}
            count = leaps.counts.get(name, leaps.num_examples)
            yield common | value | {"n": count, "note": leaps.notes.get(name, "")}

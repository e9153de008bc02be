"""What one sweep can measure, for conditions of which there are many: radii, corruptions."""

from collections.abc import Iterator

from robust_nc.geometry.collapse import collapse
from robust_nc.profiling.accumulators import OnePassMeter, TapMeter, part_bytes, rounds
from robust_nc.profiling.measurement import VertexMoments
from robust_nc.profiling.rows import Row, measured_rows
from robust_nc.profiling.shards import SplitCondition, SplitShards


def measure_once(
    split: SplitShards,
    feature: str,
    vertices: VertexMoments,
    condition: SplitCondition,
    measures: tuple[str, ...],
) -> list[Row]:
    """Measure one condition, as many taps at a time as memory allows.

    Collapse (trace form) by true label and by the vertex where examples landed; `measures` are
    names of `Leaps`. The last row is the network's accuracy.
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
        made = {each.tap: meter for each, meter in zip(some, swept.meters, strict=True)}
        rows += _rows(made, measures)
    share = {"measure": "accuracy", "value": right / len(labels), "n": len(labels)}
    rows.append({"tap": "output"} | share)
    depths = {**split.measurement.depths, "output": -1}
    return [{"feature": feature, "depth": depths[row["tap"]]} | row for row in rows]


def _rows(meters: dict[str, OnePassMeter], measures: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of all taps: collapse of each, then measures of leaps of each."""
    for tap, meter in meters.items():
        for name, moments in (("true", meter.true), ("landed", meter.landed)):
            found = collapse(moments)
            common: Row = {"tap": tap, "grouping": name, "vertices": "same"}
            values = {"nc1_trace": found.nc1_trace}
            yield from measured_rows(common | {"n": found.num_examples}, values, found.notes)
    for tap, meter in meters.items():
        leaps = meter.leaps.compute()
        common = {"tap": tap, "grouping": "none", "vertices": "clean-train"}
        values = {name: getattr(leaps, name) for name in measures}
        common["n"] = leaps.num_examples
        yield from measured_rows(common, values, leaps.notes, leaps.counts)

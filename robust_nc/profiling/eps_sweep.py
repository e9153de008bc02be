"""Leaps and collapse against the radius of the attack, and the radius at which leaps set in."""

from collections.abc import Mapping

from torch import nn

from robust_nc.geometry.radius import collapse_radius
from robust_nc.profiling.conditions import attack_examples
from robust_nc.profiling.measurement import SWEEP, ConditionImages, Measurement, VertexMoments
from robust_nc.profiling.one_pass import measure_once
from robust_nc.profiling.rows import Row
from robust_nc.profiling.shards import Shard, SplitShards
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Report
from robust_nc.statistics.intervals import wilson

LEVEL = 0.1  # the leap rate that the collapse radius is read at


def radius_rows(
    split: SplitShards, references: Mapping[str, VertexMoments], report: Report
) -> list[Row]:
    """Attack at every radius (multiples of eps), and read off the collapse radius of every tap.

    `references` by feature. Radius 0 is the clean images: nothing leaps there.
    """
    measurement = split.measurement
    if not measurement.ball.eps:
        return []
    factors = sorted({0.0, *measurement.settings.radii})
    rows: list[Row] = []
    for done, factor in enumerate(factors):
        stopping.heed()
        report(done / len(factors), f"attack at {factor:g} eps")
        eps = factor * measurement.ball.eps
        condition = split.make(SWEEP, attack_at, eps) if factor else split.clean()
        for feature, vertices in references.items():
            found = measure_once(split, feature, vertices, condition, ("leap_rate",))
            rows += [{"eps": eps} | row for row in found]
    for feature in references:
        mine = [row for row in rows if row["feature"] == feature]
        for tap, depth in measurement.depths.items():
            rows += [{"feature": feature, "depth": depth} | row for row in _radius(tap, mine)]
    common: Row = {"condition": SWEEP, "split": split.examples.split}
    common["attack"] = str(measurement.attacking)
    return [common | row for row in rows]


def attack_at(
    model: nn.Module, measurement: Measurement, shard: Shard, eps: float, *, report: Report
) -> ConditionImages:
    """Attack a shard, untargeted, in a ball of another radius."""
    found = attack_examples(
        model, measurement, shard.examples, report=lambda share: report(share, ""), eps=eps
    )
    return ConditionImages(SWEEP, found)


def _radius(tap: str, rows: list[Row]) -> list[Row]:
    """Read the collapse radius of one tap off its leap rates, between their 95 % bounds."""
    found = [row for row in rows if row["tap"] == tap and row["measure"] == "leap_rate"]
    found.sort(key=lambda row: row["eps"])
    count = found[0]["n"]
    bounds = [wilson(round(row["value"] * count), count) for row in found]
    # At radius 0 nothing is sampled: nothing can leap.
    low = [0.0 if row["eps"] == 0 else b.low for row, b in zip(found, bounds, strict=True)]
    high = [0.0 if row["eps"] == 0 else b.high for row, b in zip(found, bounds, strict=True)]
    radius = collapse_radius(
        [row["eps"] for row in found],
        [row["value"] for row in found],
        lower=low,
        upper=high,
        level=LEVEL,
    )
    beyond = radius.note or f"> {radius.eps_max:g}"
    common: Row = {"tap": tap, "grouping": "none", "vertices": "clean-train", "n": count}
    common["eps"] = radius.eps_max
    values = {"collapse_radius": radius.value, "collapse_radius_low": radius.low}
    values["collapse_radius_high"] = radius.high
    return [
        common
        | {"measure": name, "value": value, "note": beyond if value is None else ""}
        | ({"note": radius.note} if name == "collapse_radius" else {})
        for name, value in values.items()
    ]

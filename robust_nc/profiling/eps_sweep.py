"""Leaps and collapse against the radius of the attack, and the radius at which leaps set in."""

from collections.abc import Mapping

from robust_nc.geometry.radius import collapse_radius
from robust_nc.profiling.make_conditions import sweep_shard
from robust_nc.profiling.measurement import Condition, Examples, Reference, Subject
from robust_nc.profiling.one_pass import cheap_measures
from robust_nc.profiling.rows import CLEAN, SWEEP, Row
from robust_nc.profiling.shards import Crew
from robust_nc.profiling.split_rows import Made
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Report
from robust_nc.statistics.intervals import wilson

LEVEL = 0.1  # the leap rate that the collapse radius is read at


def radius_rows(
    subject: Subject,
    examples: Examples,
    references: Mapping[str, Reference],
    crew: Crew,
    report: Report,
) -> list[Row]:
    """Attack at every radius (multiples of eps), and read off the collapse radius of every tap.

    `references` by feature. Radius 0 is the clean images: nothing leaps there.
    """
    if not subject.ball.eps:
        return []
    factors = sorted({0.0, *subject.settings.radii})
    rows: list[Row] = []
    who, shards = crew.keep(subject), crew.shards(subject, examples)
    for done, factor in enumerate(factors):
        stopping.heed()
        report(done / len(factors), f"attack at {factor:g} eps")
        eps = factor * subject.ball.eps
        made = Made(CLEAN, [Condition(CLEAN)] * len(shards))
        if factor:
            parts = [(who, shard, SWEEP, eps) for shard in shards]
            made = Made(SWEEP, crew.map(sweep_shard, parts))
        for feature, reference in references.items():
            found = cheap_measures(
                subject, examples, feature, reference, made, crew, ("leap_rate",)
            )
            rows += [{"feature": feature, "eps": eps} | row for row in found.rows]
            share: Row = {"tap": "output", "measure": "accuracy", "value": found.accuracy}
            rows.append({"feature": feature, "eps": eps} | share | {"n": len(examples.labels)})
    for feature in references:
        mine = [row for row in rows if row["feature"] == feature]
        rows += [{"feature": feature} | row for tap in subject.taps for row in _radius(tap, mine)]
    common: Row = {"condition": SWEEP, "split": examples.split, "attack": str(subject.attacking)}
    depths = {**subject.depths, "output": -1}
    return [common | {"depth": depths[row["tap"]]} | row for row in rows]


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

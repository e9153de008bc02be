"""Leaps and collapse against the radius of the attack, and the radius at which leaps set in."""

from collections.abc import Mapping

from torch import Tensor

from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.leaps import LeapMeter
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.nearest import nearest_vertex
from robust_nc.geometry.radius import collapse_radius
from robust_nc.grid.made import Report, attack
from robust_nc.grid.rows import Row
from robust_nc.grid.side import CLEAN
from robust_nc.grid.subject import Examples, Reference, Subject
from robust_nc.grid.tapbank import TapBank
from robust_nc.report.statistics import wilson

SWEEP = "sweep"
LEVEL = 0.1  # the leap rate that the collapse radius is read at


def radius_rows(
    subject: Subject,
    examples: Examples,
    references: Mapping[str, Reference],
    report: Report,
) -> list[Row]:
    """Attack at every radius (multiples of eps), and read off the collapse radius of every tap.

    `references` by feature. Radius 0 is the clean images: nothing leaps there.
    """
    factors = sorted({0.0, *subject.settings.radii})
    rows: list[Row] = []
    for done, factor in enumerate(factors):
        report(done / len(factors), f"attack at {factor:g} eps")
        eps = factor * subject.ball.eps
        images = examples.images
        if factor:
            images = attack(subject, examples, None, lambda share: None, radius=eps)
        for feature, reference in references.items():
            found = _measure(subject, examples, images, feature, reference)
            rows += [{"feature": feature, "eps": eps} | row for row in found]
    for feature in references:
        mine = [row for row in rows if row["feature"] == feature]
        rows += [{"feature": feature} | row for tap in subject.taps for row in _radius(tap, mine)]
    common: Row = {"condition": SWEEP, "split": examples.split, "attack": str(subject.attacking)}
    depths = {**subject.depths, "output": -1}
    return [common | {"depth": depths[row["tap"]]} | row for row in rows]


def _measure(
    subject: Subject, examples: Examples, images: Tensor, feature: str, reference: Reference
) -> list[Row]:
    """One sweep over the features of one radius."""
    bank = TapBank(
        subject.model,
        {CLEAN: examples.images, SWEEP: images},
        feature=feature,
        batch_size=subject.settings.batch_size,
        taps=subject.taps,
        budget=0,  # one sweep needs nothing twice
    )
    meters = {tap: LeapMeter(moments.means) for tap, moments in reference.items()}
    groupings = {
        (tap, name): Moments(moments.num_groups, moments.dim, device=moments.device)
        for tap, moments in reference.items()
        for name in ("true", "landed")
    }
    right = 0
    for clean, here in zip(bank.batches(CLEAN), bank.batches(SWEEP), strict=True):
        labels = examples.labels[here.rows].to(here.predicted.device)
        right += int((here.predicted == labels).sum())
        for tap, meter in meters.items():
            features = here.features[tap]
            meter.update(clean.features[tap], features, labels)
            groupings[tap, "true"].update(features, labels)
            groupings[tap, "landed"].update(features, nearest_vertex(features, meter.vertices))
    count = len(examples.labels)
    rows: list[Row] = [
        {"tap": tap, "grouping": name, "vertices": "same", "measure": "nc1_trace"}
        | {"value": found.nc1_trace, "n": found.num_examples}
        | {"note": found.notes.get("nc1_trace", "")}
        for (tap, name), moments in groupings.items()
        for found in (collapse(moments),)
    ]
    common: Row = {"grouping": "none", "vertices": "clean-train", "n": count}
    rows += [
        common | {"tap": tap, "measure": "leap_rate", "value": meter.compute().leap_rate}
        for tap, meter in meters.items()
    ]
    return [*rows, {"tap": "output", "measure": "accuracy", "value": right / count, "n": count}]


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
        common | {"measure": name, "value": value, "note": beyond if value is None else radius.note}
        for name, value in values.items()
    ]

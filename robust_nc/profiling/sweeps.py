"""Conditions of which there are many, each measured in one pass: radii of the attack, corruptions.

Leaps and collapse against the radius, with the radius at which leaps set in; accuracy, leaps and
collapse under common corruptions, and the means over them. One condition is in memory at a time.

>>> import torch
>>> halved = CorruptionSource("halved", lambda name, severity, some: some.images / 2)
>>> some = Examples("test", torch.ones(2, 1, 4, 4), torch.tensor([0, 1]), torch.arange(2))
>>> float(halved.images("contrast", 3, some).max())
0.5
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.config import MeasureConfig
from robust_nc.data.base import Split, first_examples
from robust_nc.data.cifar_c import CifarC
from robust_nc.data.class_subset import ClassSubset
from robust_nc.data.corruptions import (
    DISTRIBUTION,
    chosen_corruptions,
    corrupt_images,
    corruption_library,
    mean_corruption_error,
)
from robust_nc.data.load import Named, data_root, open_dataset, to_unit
from robust_nc.exceptions import DataError
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.radius import collapse_radius
from robust_nc.profiling.accumulators import OnePassMeter, TapMeter, part_bytes, rounds
from robust_nc.profiling.conditions import attack_examples
from robust_nc.profiling.measurement import (
    SWEEP,
    ConditionImages,
    Examples,
    Measurement,
    VertexMoments,
)
from robust_nc.profiling.rows import Row, measured_rows
from robust_nc.profiling.shards import Shard, SplitCondition, SplitShards
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Report
from robust_nc.statistics.intervals import wilson

LEVEL = 0.1  # the leap rate that the collapse radius is read at
CORRUPTED = "corrupted"  # the condition
_CHECKED = 10  # test images that are tried before a long run

_MEASURES = ("leap_rate", "landed", "displacement")


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


class CorruptionSource(NamedTuple):
    """Where corrupted images come from: what is said of it in notes, and the images.

    `images` takes a corruption, a severity and examples, and returns `(N, C, H, W)` float32 in
    [0, 1], on the CPU. An executor calls it elsewhere: a folder must be there, too.
    """

    label: str
    images: Callable[[str, int, Examples], Tensor]


def made_corruptions() -> CorruptionSource:
    """Make the images; they are the same for every model, whatever its seed.

    Raises `ConfigError` where the library is missing.
    """
    corruption_library()
    return CorruptionSource(f"made by {DISTRIBUTION} {metadata.version(DISTRIBUTION)}", _made)


def stored_corruptions(
    folder: Path, places: Tensor | None = None, classes: tuple[int, ...] | None = None
) -> CorruptionSource:
    """Take the images from a folder of the CIFAR-10-C layout.

    Ids are places in the test split; of some `classes` alone, in its `places` of them.
    """
    stored = CifarC(folder)
    stored.names()
    return CorruptionSource(f"from {folder.name}", partial(_stored, stored, places, classes))


def _made(corruption: str, severity: int, examples: Examples) -> Tensor:
    return corrupt_images(examples.images, corruption, severity, ids=examples.ids)


def _stored(
    stored: CifarC,
    places: Tensor | None,
    classes: tuple[int, ...] | None,
    corruption: str,
    severity: int,
    examples: Examples,
) -> Tensor:
    ids = examples.ids if places is None else places[examples.ids]
    labels = examples.labels if classes is None else torch.tensor(classes)[examples.labels]
    found = stored.at(corruption, severity, ids=ids, labels=labels)
    if found.shape != examples.images.shape:
        raise DataError(
            f"{stored.folder} has images of the shape {tuple(found.shape[1:])}, the test split of "
            f"{tuple(examples.images.shape[1:])}"
        )
    return to_unit(found)


def corruption_source(data: Named, root: Path | str | None = None) -> CorruptionSource:
    """Return the stored corruptions of a data set where `<root>/<dataset>-c` is, else made ones."""
    found, place = open_dataset(data), data_root(root)
    some = found if isinstance(found, ClassSubset) else None
    folder = place / f"{(some.whole if some else found).info(place).name}-c"
    if not folder.is_dir():
        return made_corruptions()
    if some is None:
        return stored_corruptions(folder)
    return stored_corruptions(folder, some.places("test", place), some.classes)


def check_corrupted(source: CorruptionSource, settings: MeasureConfig, test: Split) -> None:
    """Ask for a few images of every corruption at every severity, before anything long begins."""
    some = first_examples(test, min(_CHECKED, len(test.labels)))
    examples = Examples("test", to_unit(some.images), some.labels, some.ids)
    for name in chosen_corruptions(settings.corruptions):
        for severity in settings.severities:
            source.images(name, severity, examples)


def corrupted_rows(
    split: SplitShards,
    references: Mapping[str, VertexMoments],
    report: Report,
    *,
    source: CorruptionSource | None = None,
) -> list[Row]:
    """Measure every corruption at every severity that the settings ask for, and their means.

    `references` by feature; without `source`, the images are made. Column `attack` names the
    corruption and severity ("fog/3"), in the means how many there are. `corruption_accuracy` is
    the mean accuracy over severities, then corruptions, as on RobustBench's leaderboard of
    CIFAR-10-C; `mce` is the mean error, not divided by that of another network.
    """
    source = source or made_corruptions()
    measurement, examples = split.measurement, split.examples
    names = chosen_corruptions(measurement.settings.corruptions)
    severities = sorted(set(measurement.settings.severities))
    if not names:
        return []
    known = split.executor.keep(source)
    found: dict[str, list[float]] = {name: [] for name in names}
    rows: list[Row] = []
    for done, (name, severity) in enumerate((n, s) for n in names for s in severities):
        stopping.heed()
        report(done / (len(names) * len(severities)), f"corruption {name}/{severity}")
        condition = split.make(CORRUPTED, corrupt_shard, known, name, severity)
        for feature, vertices in references.items():
            measured = measure_once(split, feature, vertices, condition, _MEASURES)
            rows += [{"attack": f"{name}/{severity}"} | row for row in measured]
        found[name].append(rows[-1]["value"])
    error = mean_corruption_error(found)
    place: Row = {"tap": "output", "n": len(examples.labels), "note": source.label}
    levels = ", ".join(map(str, severities))
    place["attack"] = f"{len(found)} corruptions, severities {levels}"
    for feature, (measure, value) in itertools.product(
        references, {"corruption_accuracy": 1 - error, "mce": error}.items()
    ):
        rows.append(place | {"feature": feature, "measure": measure, "value": value})
    return [{"condition": CORRUPTED, "split": examples.split} | row for row in rows]


def corrupt_shard(
    model: nn.Module,
    measurement: Measurement,
    shard: Shard,
    source: CorruptionSource,
    corruption: str,
    severity: int,
    *,
    report: Report,
) -> ConditionImages:
    """Corrupt the images of a shard."""
    return ConditionImages(CORRUPTED, source.images(corruption, severity, shard.examples))

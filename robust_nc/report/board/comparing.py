"""Two models, or two methods over their seeds, compared on the same examples.

>>> both = Discordant(both=200, first=31, second=12, neither=257)
>>> f"{float(mcnemar(both.first, both.second)):.4f}"
'0.0054'
"""

import re
from math import fsum, nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from robust_nc.exceptions import RecordError
from robust_nc.record.schema import Record
from robust_nc.report.board.gather import (
    Identity,
    ModelFlags,
    identity,
    is_finished,
    models_of_row,
    read_results,
    value_in,
)
from robust_nc.report.board.ranking import compare_with
from robust_nc.report.board.table import SCORES, SUMMARIES, mean_share
from robust_nc.statistics.intervals import MIN_SEEDS_FOR_T, Interval, wilson
from robust_nc.statistics.significance import mcnemar, paired_shares, seed_interval

# Data sets that are the same everywhere (checked by their digests when read), so that "the first
# 200" of one are the first 200 of 500. Other names stand for files of the user's own.
_OFFICIAL = frozenset(
    {"cifar10", "cifar100", "digits", "fashion_mnist", "imagenette", "mnist", "svhn"}
)
_FIRST = re.compile(r"the first ([0-9]{1,9}) of (train|test) in the official order")

_Flags = npt.NDArray[np.bool_]


class Side(NamedTuple):
    """What is compared: one model or the seeds of one method, as they stand."""

    path: Path
    name: str
    models: list[ModelFlags]

    def flags(self, accuracy: str, count: int) -> dict[int | str, _Flags]:
        """Flags of the first `count` examples, by `ModelFlags.member`."""
        return {
            one.member: (one.clean if accuracy == "clean" else one.robust)[:count]
            for one in self.models
        }


class Discordant(NamedTuple):
    """Examples that both models get right, the first alone, the second alone, neither."""

    both: int
    first: int
    second: int
    neither: int


class Accuracy(NamedTuple):
    """One accuracy of both sides, and what separates them; `counts` for two single models.

    `by_seed` maps each seed of either side to the two shares, NaN where a side lacks it.
    """

    name: str
    first: Interval
    second: Interval
    difference: Interval
    p: float
    test: str
    counts: Discordant | None
    by_seed: dict[int | str, tuple[float, float]]


class Compared(NamedTuple):
    """Two sides on their `examples` common examples.

    `same_images` is False where their numbers differ, so that no fingerprint can tell. `geometry`
    maps measures to the values that the records claim, means over seeds.
    """

    first: Side
    second: Side
    examples: int
    same_images: bool
    accuracies: tuple[Accuracy, ...]
    geometry: dict[str, tuple[float, float]]


def compare(first: Path, second: Path) -> Compared:
    """Compare two records, or two folders with the seeds of one method each.

    Raises `RecordError` where there is none, where a folder holds more than one method, where one
    is damaged, and where the two were not judged alike: other data, ball or protocol.
    """
    sides = (read_side(first), read_side(second))
    one, other = (side.models[0].record for side in sides)
    _check_alike(one, other, (first, second))
    count = min(one.data.examples, other.data.examples)
    return Compared(
        *sides,
        examples=count,
        same_images=one.data.fingerprint == other.data.fingerprint,
        accuracies=tuple(_accuracy(name, *sides, count) for name in SCORES),
        geometry={name: (_claimed(sides[0], name), _claimed(sides[1], name)) for name in SUMMARIES},
    )


def read_side(path: Path) -> Side:
    """Read one side: a record, or a folder with the seeds of one method."""
    records = read_results(path)
    methods = {method(stored.record): stored.record.model for stored in records}
    if len(methods) > 1:
        names = ", ".join(sorted(set(methods.values()))[:4])
        raise RecordError(
            f"{path} holds {len(methods)} methods ({names}{', ...' if len(methods) > 4 else ''}); "
            "name one record, or a folder with the seeds of one method"
        )
    models = models_of_row(records)
    return Side(path, records[0].record.model, models)


def method(record: Record) -> Identity:
    """What the seeds of one method share; models that came finished may have names of their own."""
    found = identity(record)
    return found._replace(model="") if is_finished(record) else found


def _check_alike(first: Record, second: Record, paths: tuple[Path, Path]) -> None:
    one, other = identity(first), identity(second)
    facts = {
        "data set": (one.dataset, other.dataset),
        "split": (first.data.split, second.data.split),
        "ball": ((one.norm, one.eps), (other.norm, other.eps)),
        "protocol": (one.protocol, other.protocol),
    }
    told = {"ball": (one.ball or "unknown", other.ball or "unknown")}
    differ = [
        f"the {name} ({' and '.join(str(one)[:80] for one in told.get(name, both))})"
        for name, both in facts.items()
        if both[0] != both[1]
    ]
    if not differ and first.data.fingerprint != second.data.fingerprint:
        if one.examples == other.examples:
            differ = [f"the images (fingerprints {one.images[:12]} and {other.images[:12]})"]
        elif not _common_start(first, second):
            differ = [f"the images ({first.data.which!r} and {second.data.which!r})"]
    if differ:
        raise RecordError(
            f"{paths[0]} and {paths[1]} cannot be compared, they differ in {', '.join(differ)}; "
            "take two that were judged alike"
        )


def _common_start(first: Record, second: Record) -> bool:
    """Whether the smaller set of images is surely the start of the larger one."""
    found = [_FIRST.fullmatch(record.data.which) for record in (first, second)]
    said = [
        match is not None
        and (int(match[1]), match[2]) == (record.data.examples, record.data.split)
        and record.data.dataset in _OFFICIAL
        for match, record in zip(found, (first, second), strict=True)
    ]
    one, other = (value_in(record.config, "data", "dataset") for record in (first, second))
    return all(said) and one == other


def _accuracy(name: str, first: Side, second: Side, count: int) -> Accuracy:
    one, other = first.flags(name, count), second.flags(name, count)
    shares = [{seed: float(flags.mean()) for seed, flags in side.items()} for side in (one, other)]
    seeds = sorted({*one, *other}, key=lambda seed: str(seed).rjust(20))
    by_seed = {seed: (shares[0].get(seed, nan), shares[1].get(seed, nan)) for seed in seeds}
    if len(one) == len(other) == 1:
        (first_flags,), (second_flags,) = one.values(), other.values()
        return _of_two_models(name, first_flags, second_flags, by_seed)
    found = compare_with(one, [other])
    common = sorted(one.keys() & other.keys(), key=lambda seed: str(seed).rjust(20))
    differences = [shares[0][seed] - shares[1][seed] for seed in common]
    test = f"paired t over {len(common)} seeds"
    if len(common) < MIN_SEEDS_FOR_T:
        test = f"largest exact McNemar p of all {len(one)} x {len(other)} pairs of models"
    mean, against = (mean_share(list(side.values())) for side in (one, other))
    difference = Interval(mean.value - against.value, nan, nan, 0, "none")
    if common:
        difference = seed_interval(differences, unit=1 / count)
    p = float(found.p[0])
    return Accuracy(name, mean, against, difference, p, test, None, by_seed)


def _of_two_models(
    name: str, first: _Flags, second: _Flags, by_seed: dict[int | str, tuple[float, float]]
) -> Accuracy:
    counts = Discordant(
        int((first & second).sum()),
        int((first & ~second).sum()),
        int((~first & second).sum()),
        int((~first & ~second).sum()),
    )
    return Accuracy(
        name,
        wilson(int(first.sum()), len(first)),
        wilson(int(second.sum()), len(second)),
        paired_shares(first, second),
        float(mcnemar(counts.first, counts.second)),
        "exact McNemar",
        counts,
        by_seed,
    )


def _claimed(side: Side, name: str) -> float:
    values = [one.record.summary.get(name) for one in side.models]
    known = [value for value in values if value is not None]
    return fsum(known) / len(known) if known and len(known) == len(values) else nan

"""Accuracy, leaps and collapse under common corruptions, and the means over them.

One corruption at one severity is in memory at a time; each is one pass over the taps.

>>> import torch
>>> halved = CorruptionSource("halved", lambda name, severity, some: some.images / 2)
>>> some = Examples("test", torch.ones(2, 1, 4, 4), torch.tensor([0, 1]), torch.arange(2))
>>> float(halved.images("contrast", 3, some).max())
0.5
"""

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from robust_nc.config import MeasureConfig
from robust_nc.data.base import Split, first_examples
from robust_nc.data.cifar_c import CifarC
from robust_nc.data.corruptions import (
    DISTRIBUTION,
    chosen_corruptions,
    corrupt_images,
    corruption_library,
    mean_corruption_error,
)
from robust_nc.data.load import data_root, to_unit
from robust_nc.exceptions import DataError
from robust_nc.profiling.measurement import (
    ConditionImages,
    Examples,
    Measurement,
    VertexMoments,
)
from robust_nc.profiling.one_pass import measure_once
from robust_nc.profiling.rows import Row
from robust_nc.profiling.shards import Shard, SplitShards
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Report

CORRUPTED = "corrupted"  # the condition
_CHECKED = 10  # test images that are tried before a long run

_MEASURES = ("leap_rate", "landed", "displacement")


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


def stored_corruptions(folder: Path) -> CorruptionSource:
    """Take the images from a folder of the CIFAR-10-C layout; ids are places in the test split."""
    stored = CifarC(folder)
    stored.names()
    return CorruptionSource(f"from {folder.name}", partial(_stored, stored))


def _made(corruption: str, severity: int, examples: Examples) -> Tensor:
    return corrupt_images(examples.images, corruption, severity, ids=examples.ids)


def _stored(stored: CifarC, corruption: str, severity: int, examples: Examples) -> Tensor:
    found = stored.at(corruption, severity, ids=examples.ids, labels=examples.labels)
    if found.shape != examples.images.shape:
        raise DataError(
            f"{stored.folder} has images of the shape {tuple(found.shape[1:])}, the test split of "
            f"{tuple(examples.images.shape[1:])}"
        )
    return to_unit(found)


def corruption_source(dataset: str, root: Path | str | None = None) -> CorruptionSource:
    """Return the stored corruptions of a data set where `<root>/<dataset>-c` is, else made ones."""
    folder = data_root(root) / f"{dataset}-c"
    return stored_corruptions(folder) if folder.is_dir() else made_corruptions()


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

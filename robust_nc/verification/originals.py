"""What a record is about: its images, read from their data set, its ball, and its model.

>>> from robust_nc.config import RunConfig, plain
>>> from robust_nc.verification.originals import ball_of
>>> str(ball_of(plain(RunConfig())))
'Linf 8/255'
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from robust_nc.config import Component, DataConfig, ThreatConfig, plain, read
from robust_nc.data.load import Named, dataset_info, fingerprint, read_split, to_unit
from robust_nc.exceptions import ConfigError, DataError, InputError, RecordError, UnknownNameError
from robust_nc.plugins import find_protocol
from robust_nc.record.schema import Record
from robust_nc.runtime.torch_state import default_device
from robust_nc.threat import Ball
from robust_nc.zoo.isolation import isolated_model
from robust_nc.zoo.reference import open_model, runs_code

MADE = "synthetic"  # the data set whose size its options choose
_MOST_VALUES = 2**28


class RecordExamples(NamedTuple):
    """The N examples of a record: images `(N, C, H, W)` float32, labels and ids `(N,)` int64.

    `fingerprint` is that of the examples as they are stored.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    fingerprint: str


def examples_of(record: Record, root: Path | None) -> RecordExamples:
    """Read the examples that a record was judged on.

    Raises `RecordError` for a configuration that names no data, `DataError` where they are not
    here, or are others than those of the record's fingerprint.
    """
    part, count = dataset_of(record.config), record.data.examples
    data = data_of(record.config)
    try:
        if part.name == MADE:  # to a stranger's measure, it could fill the memory
            info = dataset_info(part)
            values = max(*info.sizes.values(), info.num_classes) * math.prod(info.image_shape)
            if values > _MOST_VALUES:
                raise DataError(
                    f"the record's images would be made, {values:,} pixels of them; at most "
                    f"{_MOST_VALUES:,} are"
                )
        split = read_split(data, record.data.split, root=root, limit=count)
    except (ConfigError, InputError) as error:
        raise DataError(f"{part.name} of the record is not to be had here: {error}") from None
    found = fingerprint(split)
    if found != record.data.fingerprint:
        raise DataError(
            f"the first {count} images of {record.data.split} of {part.name} here are others than "
            f"the record's (fingerprint {found[:16]}, not {record.data.fingerprint[:16]})"
        )
    return RecordExamples(to_unit(split.images), split.labels, split.ids, found)


@contextmanager
def model_of(
    record: Record,
    reference: str,
    examples: RecordExamples,
    tell: Callable[[str], None],
    *,
    trusted: bool,
) -> Iterator[nn.Module]:
    """Open the model that a record is said to be about, on its device, for the record's images.

    One that is code is isolated, unless it is `trusted` (`zoo.isolation`).
    """
    channels, height, width = examples.images.shape[1:]
    asked: dict[str, Any] = {
        "num_classes": record.data.num_classes,
        "image_shape": (channels, height, width),
        "tell": tell,
    }
    if trusted or not runs_code(reference):
        yield open_model(reference, **asked).model.to(default_device()).eval()
        return
    with isolated_model(reference, **asked) as opened:
        yield opened.model.to(default_device())


def dataset_of(config: Mapping[str, Any]) -> Component:
    """Return the data set that a record's configuration names, or raise `RecordError`.

    A path of a stranger is looked at only if it is a plain file or folder.
    """
    part: Component = _table(config, "data", "dataset", Component)
    path = part.options.get("path")
    if isinstance(path, str) and not _is_there(path):
        raise DataError(f"the record's images lie in {path[:120]!r}, which is not here")
    return part


def data_of(config: Mapping[str, Any]) -> Named:
    """Return what a record's configuration takes of its data set, or raise `RecordError`."""
    part, table = dataset_of(config), config.get("data")
    classes = table.get("classes") if isinstance(table, Mapping) else None
    if classes is None:
        return part
    try:
        return read(DataConfig, {"dataset": plain(part), "classes": classes}, source="config.data")
    except ConfigError as error:
        raise RecordError(str(error)) from None


def _is_there(path: str) -> bool:
    try:
        place = Path(path).expanduser()
        return place.is_file() or place.is_dir()
    except (OSError, RuntimeError):  # a name that is too long, the home of nobody
        return False


def protocol_draws(protocol: str) -> int | None:
    """Return how many passes make a verdict of a protocol, None of one that is not known here."""
    try:
        return find_protocol(protocol).draws
    except UnknownNameError:  # of a suite with attacks of its own
        return None


def ball_of(config: Mapping[str, Any]) -> Ball:
    """Return the ball that a record's configuration names, or raise `RecordError`."""
    threat: ThreatConfig = _table(config, "threat", None, ThreatConfig)
    try:
        return threat.ball()
    except (InputError, ConfigError) as error:
        raise RecordError(f"config.threat: {error}") from None


def _table(config: Mapping[str, Any], table: str, key: str | None, kind: Any) -> Any:
    place = table if key is None else f"{table}.{key}"
    values = config.get(table)
    if key is not None:
        values = values.get(key) if isinstance(values, Mapping) else None
    try:
        return read(kind, values, source=f"config.{place}")
    except ConfigError as error:
        raise RecordError(str(error)) from None

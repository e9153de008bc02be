"""A finished model: what its record depends on, its data, and how much of it is measured.

>>> settings = AppraisalConfig(model=ModelReference(reference="mine.py:net", state="00"))
>>> len(appraisal_id(settings))
16
>>> digits = read_model_data("digits", n=100, root=None, train=True)
>>> measured = measure_settings(digits, None, None)
>>> measured.train_examples, measured.test_examples
(200, 100)
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import parse_qsl

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from robust_nc.config import (
    Component,
    EvaluationConfig,
    MeasureConfig,
    Part,
    Positive,
    ThreatConfig,
    build,
    configuration,
    plain,
)
from robust_nc.data.base import Dataset, Selective, Split, even_rows, first_examples, read_evenly
from robust_nc.data.folder import Folder, told_left_out
from robust_nc.data.hierarchy.tree import tree_of
from robust_nc.data.load import data_root, to_unit
from robust_nc.data.npz import Npz
from robust_nc.exceptions import ConfigError, DataError, InputError, UnknownNameError, unknown_name
from robust_nc.io.files import digest
from robust_nc.models.taps import read_taps
from robust_nc.profiling.feature_cache import chosen_taps
from robust_nc.profiling.measurement import Attacking
from robust_nc.profiling.profile_model import profile
from robust_nc.registry import DATASETS
from robust_nc.runtime.progress import Report
from robust_nc.runtime.torch_state import device_of, full_precision, untouched
from robust_nc.types import Warned

SUITE = "evaluated"  # `Record.suite` of an appraisal, and its folder in results/


@configuration
class ModelReference:
    """The model: as it was asked for, and the digest of its tensors."""

    reference: str
    state: str


@configuration
class EvaluatedData:
    """The images: the first `examples` of a split in the official order (None: all)."""

    dataset: Part = Field(default_factory=lambda: Component(name="digits"))
    split: Literal["train", "test"] = "test"
    examples: Positive | None = None


@configuration
class AppraisalConfig:
    """Everything that the record of a finished model depends on; `measure` None: no geometry."""

    model: ModelReference
    data: EvaluatedData = Field(default_factory=EvaluatedData)
    threat: ThreatConfig = Field(default_factory=ThreatConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    measure: MeasureConfig | None = None
    seed: Annotated[int, Field(ge=0)] = 0


def appraisal_id(settings: AppraisalConfig) -> str:
    """Name an appraisal: the first 16 hexadecimal digits of its configuration's digest."""
    return digest(identifying_appraisal(settings))[:16]


def identifying_appraisal(settings: AppraisalConfig) -> dict[str, Any]:
    """Return what names an appraisal: its configuration, without later settings at defaults."""
    values = plain(settings)
    if values["measure"] is not None and values["measure"]["attack"] is None:
        del values["measure"]["attack"]
    return values


_OF_PATHS = {"npz": ".npz file", "folder": "folder of images"}
_MOST_CLASSES = 100_000  # a label beyond is no class number


class Shape(NamedTuple):
    """What a model must fit: K, (C, H, W), and names of the classes."""

    num_classes: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


class ModelData(NamedTuple):
    """A data set: the first examples of its test split, and those of train that are measured.

    `label` is what the user called it, `examples` how many of test were asked for (None: all),
    `train` None where there is none; `left_out` names files that are no images.
    """

    label: str
    part: Component
    shape: Shape
    test: Split
    examples: int | None
    train: Split | None
    left_out: str = ""
    warnings: tuple[Warned, ...] = ()


def named_dataset(text: str) -> Component:
    """Return the data set that `text` names: registered, a `.npz` file or a folder of images.

    Options follow a question mark: `my/images?size=64`. Raises `UnknownNameError` otherwise, and
    `ConfigError` for a kind of data set without its path.
    """
    place, _, query = text.partition("?")
    options: dict[str, Any] = {key: _value(value) for key, value in parse_qsl(query)}
    if place in _OF_PATHS and "path" not in options:
        raise ConfigError(f"--dataset {place} names no {_OF_PATHS[place]}; give its path instead")
    if place in DATASETS:
        return Component(name=place, options=options)
    if place.endswith(".npz"):
        return Component(name="npz", options={"path": place, **options})
    if Path(place).expanduser().is_dir():
        return Component(name="folder", options={"path": place, **options})
    names = [name for name in DATASETS.names() if name not in _OF_PATHS]
    unknown = unknown_name("data set", place, names)
    raise UnknownNameError(f"{unknown}, a path that ends with .npz, or a folder of images")


def read_model_data(
    text: str, *, n: int | None, root: Path | None, train: bool, shuffle: bool = False
) -> ModelData:
    """Read the first `n` test images (None: all) and, if `train` asks for them, some of train.

    `shuffle`: of files of the user's own, in an order of chance. Raises `ConfigError`, `DataError`
    or `InputError` that says what is wrong with the data.
    """
    part, home = named_dataset(text), data_root(root)
    if shuffle:
        part = _shuffled(part)
    dataset: Dataset = build(DATASETS, part)
    if isinstance(dataset, Selective):
        labels = dataset.labels("test", home)
    else:
        whole = dataset.read("test", home)
        labels = whole.labels
    size = len(labels)
    if n is not None and not 1 <= n <= size:
        raise InputError(f"--n must be in 1..{size}, the test images of {text}; found {n}")
    if isinstance(dataset, Selective):
        test = dataset.read_at("test", home, torch.arange(n or size))
    else:
        test = first_examples(whole, n)
    channels, height, width = test.images.shape[1:]
    shape = _shape(dataset, labels, (channels, height, width), home)
    learnt = None
    if train and _has_train(dataset):
        learnt = read_evenly(dataset, "train", home, _enough(len(test.labels), shape.num_classes))
    return ModelData(
        text,
        part,
        shape,
        test,
        None if n == size else n,
        learnt,
        left_out_files(dataset),
        tuple(_few_classes(dataset, test.labels, labels, shuffled=shuffle)),
    )


def _shuffled(part: Component) -> Component:
    if part.name not in _OF_PATHS:
        raise ConfigError(
            f"--shuffle is for files of your own; the first images of {part.name} are those that "
            "others judge by"
        )
    return Component(name=part.name, options={**part.options, "shuffle": True})


def left_out_files(dataset: Dataset) -> str:
    """Count and name files of a folder that are no images; "" where there are none."""
    if not isinstance(dataset, Folder):
        return ""
    splits = [split for split in ("train", "test") if dataset.has(split)]
    found = [path for split in splits for path in dataset.listing(split).left_out]
    return told_left_out(found) if found else ""


def _few_classes(
    dataset: Dataset, judged: Tensor, labels: Tensor, *, shuffled: bool
) -> Iterator[Warned]:
    """Warn where the `judged` labels are of fewer classes than chance would have it."""
    found, known = (int((part.bincount() > 0).sum()) for part in (judged, labels))
    if found < min(len(judged), known) / 2:
        images = f"{len(judged):,} image{'s' * (len(judged) != 1)}"
        remedy = (
            "judge more" if shuffled or not isinstance(dataset, Folder | Npz) else "use --shuffle"
        )
        yield Warned(
            "few-judged-classes",
            f"{images} of {found} class{'es' * (found != 1)} out of {known}: {remedy}",
        )


def _shape(
    dataset: Dataset, labels: Tensor, image_shape: tuple[int, int, int], home: Path
) -> Shape:
    if _has_train(dataset):
        info = dataset.info(home)
        return Shape(info.num_classes, info.image_shape, info.class_names)
    if isinstance(dataset, Folder):
        names = dataset.listing("test").classes
    else:
        count = 1 + int(labels.max())
        if count > _MOST_CLASSES:
            raise DataError(f"a label is {count - 1}; labels must be class numbers from 0 on")
        names = tuple(str(index) for index in range(max(2, count)))
    return Shape(len(names), image_shape, names)


def _has_train(dataset: Dataset) -> bool:
    """Whether there are training images; only files of the user's own may lack them."""
    if isinstance(dataset, Npz):
        return "train" in dataset.splits()
    if isinstance(dataset, Folder):
        return dataset.has("train")
    return True


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


TRAIN_EXAMPLES, TEST_EXAMPLES = 2_000, 1_000
_PER_CLASS = 20  # training images that a vertex needs at least
_BATCH = 256
_LOOKS, _CLEAN_LOOKS = 4, 6  # forward passes of a condition beside its attack, and of all others


def measure_settings(
    given: ModelData, taps: tuple[str, ...] | None, batch_size: int | None
) -> MeasureConfig:
    """Return what is measured of a finished model on its data, `taps` None: all that are found.

    At most the first 1,000 of the judged test images, and 2,000 training images, or twice the test
    images and 20 a class where that is less: so that a trial on few images is a quick one. Of the
    targeted attacks only the cyclic and the nearest one; no trajectories, nothing adaptive.
    """
    assert given.train is not None
    return MeasureConfig(
        taps=taps,
        train_examples=len(given.train.labels),
        test_examples=min(len(given.test.labels), TEST_EXAMPLES),
        batch_size=batch_size or _BATCH,
        targets=("cyclic", "nearest"),
        trajectories=0,
    )


def _enough(judged: int, num_classes: int) -> int:
    """How many training images are measured beside so many test images that are judged."""
    return min(TRAIN_EXAMPLES, max(2 * min(judged, TEST_EXAMPLES), _PER_CLASS * num_classes))


def check_layers(model: nn.Module, given: ModelData, taps: tuple[str, ...] | None) -> None:
    """Refuse, before anything is attacked, a model whose layers cannot be read."""
    images = to_unit(given.test.images[:2]).to(device_of(model))
    names = chosen_taps(model, taps)
    try:
        with torch.inference_mode(False), torch.no_grad(), untouched(model), full_precision():
            read_taps(model, images, names)
    except InputError as error:
        raise InputError(f"{error}; or leave the geometry out: --no-geometry") from None


class GeometryCost(NamedTuple):
    """About how many passes the parts of a geometry cost.

    `least`: clean, attacked and noisy images, two training images of each class; `images`: all of
    them; `radii`; `kind`: each kind of targets.
    """

    least: int
    images: int
    radii: int
    kind: int


def geometry_cost(measure: MeasureConfig, num_classes: int) -> GeometryCost:
    """Return what a geometry costs.

    >>> settings = MeasureConfig(train_examples=200, test_examples=100)
    >>> geometry_cost(settings, 10)
    GeometryCost(least=2820, images=28200, radii=61600, kind=26400)
    """
    train, test = measure.train_examples or 1, measure.test_examples or 1
    attacking = Attacking(measure.steps, measure.restarts, 1.0)
    each = attacking.forwards + attacking.backwards + _LOOKS
    few = min(train, 2 * num_classes)
    return GeometryCost(
        least=(few + -(-few * test // train)) * (each + _CLEAN_LOOKS),
        images=(train + test) * (each + _CLEAN_LOOKS),
        radii=len(measure.radii) * test * each,
        kind=(train + test) * each,
    )


class Share(NamedTuple):
    """The geometry that is measured: on how many examples, how, and what is left out."""

    train: int
    test: int
    measure: MeasureConfig
    left_out: tuple[str, ...]


def affordable(measure: MeasureConfig, num_classes: int, allowed: float) -> Share | None:
    """Return what `allowed` passes pay for; None where they do not even pay for the least.

    First clean, attacked and noisy images, on fewer of them where need be, but two training images
    of each class; then the radii of the collapse radius; then targeted attacks, in their order.

    >>> settings = MeasureConfig(train_examples=200, test_examples=100, targets=("cyclic",))
    >>> affordable(settings, 10, 1e6).left_out
    ()
    >>> affordable(settings, 10, 100_000).left_out
    ('attacks towards cyclic targets',)
    >>> share = affordable(settings, 10, 10_000)
    >>> share.train, share.test, share.left_out[0]
    (70, 35, '65% of the images')
    >>> affordable(settings, 10, 1_000) is None
    True
    """
    cost, left_out = geometry_cost(measure, num_classes), []
    if allowed < cost.least:
        return None
    train, test = measure.train_examples or 1, measure.test_examples or 1
    part = min(1.0, allowed / cost.images)
    few = min(train, max(int(part * train), 2 * num_classes)), max(1, int(part * test))
    left = allowed - cost.images
    if part < 1:
        left_out.append(f"{1 - few[0] / train:.0%} of the images")
    radii = measure.radii if cost.radii <= left else ()
    if measure.radii and not radii:
        left_out.append("attacks at other radii (the collapse radius)")
    left -= cost.radii if radii else 0
    targets = measure.targets[: max(0, math.floor(min(left / cost.kind, len(measure.targets))))]
    left_out += [f"attacks towards {kind} targets" for kind in measure.targets[len(targets) :]]
    chosen = dataclasses.replace(measure, radii=radii, targets=targets)
    return Share(*few, chosen, tuple(left_out))


def measure_layers(
    model: nn.Module,
    given: ModelData,
    settings: AppraisalConfig,
    share: Share,
    *,
    num_classes: int,
    report: Report,
) -> pd.DataFrame:
    """Measure every tap, clean and attacked, on a share of train and test; tidy rows.

    `num_classes` are those that the model answers.
    """
    assert given.train is not None
    train = given.train.at(even_rows(len(given.train.labels), share.train))
    test = first_examples(given.test, share.test)
    size = share.measure.batch_size
    found = profile(
        model,
        {"train": _batches(train, size), "test": _batches(test, size)},
        settings.threat.ball(),
        measure=share.measure,
        distances=_distances(given, num_classes),
        seed=settings.seed,
        report=report,
    )
    return found.frame


def _batches(split: Split, size: int) -> list[tuple[Tensor, Tensor]]:
    images = torch.split(to_unit(split.images), size)
    return list(zip(images, torch.split(split.labels, size), strict=True))


def _distances(given: ModelData, num_classes: int) -> Tensor | None:
    """Distances between the classes, of data that have a tree of their own."""
    tree = tree_of(None, given.part.name)
    if tree is None or num_classes != given.shape.num_classes:
        return None
    tree.check_classes(given.shape.class_names)
    return tree.distances()

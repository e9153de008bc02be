"""The geometry of a finished model: how much is measured, and the measuring.

>>> from robust_nc.pipeline.settings import gather
>>> digits = gather("digits", n=100, root=None, train=True)
>>> settings = measure_settings(digits, None, None)
>>> settings.train_examples, settings.test_examples
(200, 100)
"""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from robust_nc.config import MeasureConfig
from robust_nc.data.base import Split, first
from robust_nc.data.hierarchy.tree import tree_of
from robust_nc.data.load import to_unit
from robust_nc.exceptions import InputError
from robust_nc.models.taps import read_taps
from robust_nc.pipeline.settings import Appraisal, Given
from robust_nc.profiling.feature_cache import chosen_taps
from robust_nc.profiling.profile_model import profile
from robust_nc.runtime.torch_state import device_of, full_precision, untouched
from robust_nc.training.validation import spread

TRAIN_EXAMPLES, TEST_EXAMPLES = 2_000, 1_000
_PER_CLASS = 20  # training images that a vertex needs at least
_BATCH = 256


def measure_settings(
    given: Given, taps: tuple[str, ...] | None, batch_size: int | None
) -> MeasureConfig:
    """Return what is measured of a finished model on its data, `taps` None: all that are found.

    At most the first 1,000 of the judged test images, and 2,000 training images, or twice the test
    images and 20 a class where that is less: so that a trial on few images is a quick one. Of the
    targeted attacks only the cyclic and the nearest one; no trajectories, nothing adaptive.
    """
    assert given.train is not None
    judged = min(len(given.test.labels), TEST_EXAMPLES)
    enough = max(2 * judged, _PER_CLASS * given.shape.num_classes)
    return MeasureConfig(
        taps=taps,
        train_examples=min(TRAIN_EXAMPLES, enough, len(given.train.labels)),
        test_examples=judged,
        batch_size=batch_size or _BATCH,
        targets=("cyclic", "nearest"),
        trajectories=0,
    )


def check_layers(model: nn.Module, given: Given, taps: tuple[str, ...] | None) -> None:
    """Refuse, before anything is attacked, a model whose layers cannot be read."""
    images = to_unit(given.test.images[:2]).to(device_of(model))
    names = chosen_taps(model, taps)
    try:
        with torch.inference_mode(False), torch.no_grad(), untouched(model), full_precision():
            read_taps(model, images, names)
    except InputError as error:
        raise InputError(f"{error}; or leave the geometry out: --no-geometry") from None


def measure_layers(
    model: nn.Module,
    given: Given,
    settings: Appraisal,
    *,
    num_classes: int,
    report: Callable[[float, str], None],
) -> pd.DataFrame:
    """Measure every tap, clean and attacked, on train and test; tidy rows.

    `num_classes` are those that the model answers.
    """
    measure = settings.measure
    assert measure is not None
    assert given.train is not None
    train = spread(given.train, measure.train_examples or len(given.train.labels))
    test = first(given.test, measure.test_examples)
    found = profile(
        model,
        {"train": _batches(train, measure.batch_size), "test": _batches(test, measure.batch_size)},
        settings.threat.ball(),
        measure=measure,
        distances=_distances(given, num_classes),
        seed=settings.seed,
        report=report,
    )
    return found.frame


def _batches(split: Split, size: int) -> list[tuple[Tensor, Tensor]]:
    images = to_unit(split.images)
    starts = range(0, len(images), size)
    return [(images[i : i + size], split.labels[i : i + size]) for i in starts]


def _distances(given: Given, num_classes: int) -> Tensor | None:
    """Distances between the classes, of data that have a tree of their own."""
    tree = tree_of(None, given.part.name)
    if tree is None or num_classes != given.shape.num_classes:
        return None
    tree.check_classes(given.shape.class_names)
    return tree.distances()

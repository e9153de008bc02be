"""The sizes of a cell before it runs: its model, its taps, and how many images it sees.

Reads no images: labels are taken to be balanced, as in most data sets.

>>> from robust_nc.config import RunConfig
>>> sizes = CellSizer(None).sizes(RunConfig())
>>> sizes.learnt, sizes.held_out, sizes.model
(1297, 140, 'small_cnn 1x8x8, 10 classes')
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robust_nc.config import Component, RunConfig, identifying
from robust_nc.data.alter import alter
from robust_nc.data.base import DatasetInfo, numbered
from robust_nc.data.batches import hold_out
from robust_nc.data.load import dataset_info
from robust_nc.io.files import digest
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier
from robust_nc.profiling.feature_cache import chosen_taps
from robust_nc.runtime.torch_state import untouched
from robust_nc.training.run import resolve_model


class CellSizes(NamedTuple):
    """One cell as it stands before it runs.

    `learnt`, `held_out`: images that it trains on and validates on. `taps`: how many have features
    of their own. `weight_bytes`: parameters and buffers.
    """

    config: RunConfig
    info: DatasetInfo
    learnt: int
    held_out: int
    taps: int
    weight_bytes: int

    @property
    def model(self) -> str:
        """Its backbone, neck, image shape and classes, in words."""
        parts = [self.config.model.backbone, self.config.model.neck]
        body = "+".join(with_options(part) for part in parts if part is not None)
        shape = "x".join(map(str, self.info.image_shape))
        return f"{body} {shape}, {self.info.num_classes} classes"

    @property
    def test(self) -> int:
        """How many test images it may use."""
        return min(self.config.data.test_limit or self.info.sizes["test"], self.info.sizes["test"])

    @property
    def judged(self) -> int:
        """How many test images the verdict is on."""
        return min(self.config.evaluation.examples or self.test, self.test)

    @property
    def measured(self) -> tuple[int, int]:
        """How many images of train and of test the geometry takes."""
        settings = self.config.measure
        train = min(settings.train_examples or self.learnt, self.learnt)
        return train, min(settings.test_examples or self.test, self.test)


class CellSizer:
    """Tells the sizes of cells; a model of one kind is built once. Data sets lie in `root`."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self._known: dict[str, Any] = {}

    def sizes(self, config: RunConfig) -> CellSizes:
        """Return the sizes of a cell; raises what its model or data set raise."""
        data, model = (identifying(config)[part] for part in ("data", "model"))
        read, measure = config.data, config.measure
        about = [data["dataset"], read.classes]
        info: DatasetInfo = self._once(about, lambda: dataset_info(read, self.root))
        taps, weight_bytes = self._once(
            [model, data, measure.taps, measure.feature],
            lambda: _look_at(self.build(config), config),
        )
        learnt, held_out = self._once([data, config.seed], lambda: _split(config, info))
        return CellSizes(config, info, learnt, held_out, taps, weight_bytes)

    def _once(self, about: object, find: Callable[[], Any]) -> Any:
        key = digest(about)
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]

    def build(self, config: RunConfig) -> Classifier:
        """Build the untrained model of a cell, on the CPU."""
        data = config.data
        info = dataset_info(data, self.root)
        shapes = resolve_model(config.model, info, hierarchy=data.hierarchy, classes=data.classes)
        return build_model(shapes, seed=config.seed)


def _look_at(model: Classifier, config: RunConfig) -> tuple[int, int]:
    taps, feature, found = chosen_taps(model, config.measure.taps), config.measure.feature, 0
    images = torch.rand(2, *model.image_shape, generator=torch.Generator().manual_seed(0))
    with untouched(model), torch.no_grad():
        for kind in ("gap", "flatten") if feature == "both" else (feature,):
            values = model.tapped(images, taps=taps, feature=kind).features.values()
            found += len({value.numpy().tobytes() for value in values})
    return found, sum(value.nbytes for value in model.state_dict().values())


def _split(config: RunConfig, info: DatasetInfo) -> tuple[int, int]:
    """Hold out and thin out balanced labels as the cell will do with its own."""
    count = min(config.data.train_limit or info.sizes["train"], info.sizes["train"])
    labels = torch.arange(count) % info.num_classes
    everything = numbered(torch.zeros(count, 1, 1, 1), labels)
    learnt, held_out = hold_out(everything, config.data.validation, seed=config.seed)
    altered = alter(
        learnt,
        imbalance=config.data.imbalance,
        noise=None,
        num_classes=info.num_classes,
        seed=config.seed,
    )
    return len(altered.split.labels), len(held_out.labels)


def with_options(part: Component) -> str:
    """Write a part of a configuration with its options.

    >>> with_options(Component(name="pgd", options={"steps": 5, "bn_mode": "train"}))
    'pgd(bn_mode=train, steps=5)'
    """
    options = [
        f"{name}={value}"
        for name, value in sorted(part.options.items())
        if not isinstance(value, dict | list)
    ]
    return part.name + (f"({', '.join(options)})" if options else "")

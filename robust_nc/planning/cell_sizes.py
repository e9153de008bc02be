"""A cell taken apart before it runs: the model's layers and sizes, and how many images it sees.

Reads no images: labels are taken to be balanced, as in most data sets.

>>> from robust_nc.config import RunConfig
>>> site = Anatomist(None).look(RunConfig())
>>> site.learnt, site.held_out, site.taps[-1]
(1297, 140, 'penultimate')
"""

from pathlib import Path
from typing import NamedTuple

import torch

from robust_nc.config import RunConfig, identifying
from robust_nc.data.alter import alter
from robust_nc.data.base import DatasetInfo, numbered
from robust_nc.data.batches import hold_out
from robust_nc.data.load import dataset_info
from robust_nc.io.files import digest
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier
from robust_nc.planning.pieces import model_key
from robust_nc.profiling.feature_cache import chosen_taps
from robust_nc.runtime.torch_state import untouched
from robust_nc.training.run import resolve_model

FEATURES = ("gap", "flatten")


class Site(NamedTuple):
    """One cell as it stands before it runs.

    `learnt`, `held_out`: images that it trains on and validates on; `test`: those of the test split
    that it may use. `dims` are the numbers of features of each tap, by way of making them; `twins`
    says how many taps have features of their own. `weight_bytes`: parameters and buffers.
    """

    config: RunConfig
    info: DatasetInfo
    key: str
    learnt: int
    held_out: int
    test: int
    taps: tuple[str, ...]
    dims: dict[str, dict[str, int]]
    distinct: dict[str, int]
    parameters: int
    weight_bytes: int
    parameter_bytes: int

    @property
    def features(self) -> tuple[str, ...]:
        """How the outputs of layers become rows of features."""
        feature = self.config.measure.feature
        return FEATURES if feature == "both" else (feature,)


class _Body(NamedTuple):
    taps: tuple[str, ...]
    dims: dict[str, dict[str, int]]
    distinct: dict[str, int]
    parameters: int
    weight_bytes: int
    parameter_bytes: int


class Anatomist:
    """Looks at cells; a model of one kind is built once. `root` is where data sets lie."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self._infos: dict[str, DatasetInfo] = {}
        self._bodies: dict[str, _Body] = {}
        self._sizes: dict[str, tuple[int, int]] = {}

    def look(self, config: RunConfig) -> Site:
        """Take a cell apart; raises what its model or data set raise."""
        plain = identifying(config)
        info = self._info(config, digest(plain["data"]["dataset"]))
        body = self._body(
            config, info, digest([plain["model"], plain["data"], config.measure.taps])
        )
        learnt, held_out = self._split(config, info, digest([plain["data"], config.seed]))
        test = min(config.data.test_limit or info.sizes["test"], info.sizes["test"])
        key = model_key(config, info.image_shape, info.num_classes)
        return Site(config, info, key, learnt, held_out, test, *body)

    def model(self, config: RunConfig) -> Classifier:
        """Build the model of a cell, on the CPU."""
        info = dataset_info(config.data.dataset, self.root)
        return build_model(
            resolve_model(config.model, info, hierarchy=config.data.hierarchy), seed=config.seed
        )

    def _info(self, config: RunConfig, name: str) -> DatasetInfo:
        if name not in self._infos:
            self._infos[name] = dataset_info(config.data.dataset, self.root)
        return self._infos[name]

    def _body(self, config: RunConfig, info: DatasetInfo, name: str) -> _Body:
        if name not in self._bodies:
            model = self.model(config)
            taps = chosen_taps(model, config.measure.taps)
            images = torch.rand(2, *info.image_shape, generator=torch.Generator().manual_seed(0))
            with untouched(model), torch.no_grad():
                read = {f: model.tapped(images, taps=taps, feature=f).features for f in FEATURES}
            self._bodies[name] = _Body(
                taps=taps,
                dims={f: {tap: v.shape[1] for tap, v in read[f].items()} for f in FEATURES},
                distinct={f: len({v.numpy().tobytes() for v in read[f].values()}) for f in read},
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                weight_bytes=sum(value.nbytes for value in model.state_dict().values()),
                parameter_bytes=sum(parameter.nbytes for parameter in model.parameters()),
            )
        return self._bodies[name]

    def _split(self, config: RunConfig, info: DatasetInfo, name: str) -> tuple[int, int]:
        """Hold out and thin out balanced labels as the cell will do with its own."""
        if name not in self._sizes:
            whole = info.sizes["train"]
            count = min(config.data.train_limit or whole, whole)
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
            self._sizes[name] = len(altered.split.labels), len(held_out.labels)
        return self._sizes[name]

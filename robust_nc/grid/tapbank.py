"""Features of one model at its taps for one set of examples under several conditions.

Features that fit the budget are kept; else every sweep over them is a sweep of forward passes.

>>> import torch
>>> from robust_nc.config import ModelConfig
>>> from robust_nc.models.build import build_model
>>> model = build_model(ModelConfig(image_shape=(1, 8, 8))).eval()
>>> bank = TapBank(model, {"clean": torch.rand(5, 1, 8, 8)}, feature="gap", batch_size=2)
>>> [len(batch.predicted) for batch in bank.batches("clean")]
[2, 2, 1]
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robust_nc.exceptions import unknown_name
from robust_nc.models.classifier import Classifier
from robust_nc.runtime import device_of

BUDGET = 2**30  # bytes of features kept per bank


def chosen_taps(model: Classifier, taps: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return taps in depth order (None: all); an unknown name is answered with the nearest."""
    for name in taps or ():
        if name not in model.taps:
            raise unknown_name("tap", name, model.taps)
    return model.taps if taps is None else tuple(name for name in model.taps if name in taps)


class TapBatch(NamedTuple):
    """Rows `rows` of a condition: predictions `(n,)` and features `(n, D)` by tap."""

    rows: slice
    predicted: Tensor
    features: dict[str, Tensor]


class TapBank:
    """Sweeps over the features of `images` (condition -> `(N, C, H, W)`, the same N examples)."""

    def __init__(
        self,
        model: Classifier,
        images: Mapping[str, Tensor],
        *,
        feature: Literal["gap", "flatten"],
        batch_size: int,
        taps: tuple[str, ...] | None = None,
        budget: int = BUDGET,
    ) -> None:
        self.images = images
        self.taps = chosen_taps(model, taps)
        self._model = model
        self._feature: Literal["gap", "flatten"] = feature
        self._batch_size = batch_size
        self._budget = budget
        self._kept: dict[str, list[TapBatch]] = {}

    def batches(self, condition: str) -> Iterator[TapBatch]:
        """Yield the batches of a condition, in order; kept ones cost nothing the second time."""
        if condition in self._kept:
            yield from self._kept[condition]
            return
        fresh: list[TapBatch] = []
        size = 0
        for batch in self._compute(self.images[condition]):
            size += sum(value.nbytes for value in batch.features.values())
            if size <= self._budget:
                fresh.append(batch)
            else:
                fresh.clear()
            yield batch
        if fresh and condition not in self._kept and size <= self._budget:
            self._budget -= size
            self._kept[condition] = fresh

    def dims(self) -> dict[str, int]:
        """D of every tap."""
        first = next(self.batches(next(iter(self.images))))
        return {tap: first.features[tap].shape[1] for tap in self.taps}

    @torch.no_grad()
    def _compute(self, images: Tensor) -> Iterator[TapBatch]:
        device = device_of(self._model)
        for start in range(0, len(images), self._batch_size):
            rows = slice(start, min(start + self._batch_size, len(images)))
            read = self._model.tapped(
                images[rows].to(device), taps=self.taps, feature=self._feature
            )
            yield TapBatch(rows, read.logits.argmax(1), dict(read.features))

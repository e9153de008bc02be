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

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.exceptions import InputError, unknown_name
from robust_nc.models.taps import HasTaps, layer_names, module_taps, read_taps
from robust_nc.runtime.torch_state import device_of

BUDGET = 2**30  # bytes of features kept per bank


def all_taps(model: nn.Module) -> tuple[str, ...]:
    """Name the taps of a model in depth order: its own, or those found in its modules."""
    return tuple(model.taps) if isinstance(model, HasTaps) else module_taps(model)


def chosen_taps(model: nn.Module, taps: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return taps in depth order (None: all); an unknown name is answered with the nearest."""
    known = all_taps(model)
    if taps is None:
        return known
    if not taps:
        raise InputError(f"taps names no layer; valid: {', '.join(known)}, or None for all")
    if not isinstance(model, HasTaps):
        known = (*dict.fromkeys([*layer_names(model), *known]),)
    for name in taps:
        if name not in known:
            raise unknown_name("tap", name, known)
    return tuple(name for name in known if name in taps)


class TapBatch(NamedTuple):
    """Rows `rows` of a condition: predictions `(n,)`, logits `(n, K)`, features `(n, D)` by tap."""

    rows: slice
    predicted: Tensor
    logits: Tensor
    features: dict[str, Tensor]


class TapBank:
    """Sweeps over the features of `images` (condition -> `(N, C, H, W)`, the same N examples).

    Of `among` banks each keeps its share of the budget.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Mapping[str, Tensor],
        *,
        feature: str,
        batch_size: int,
        taps: tuple[str, ...] | None = None,
        budget: int = BUDGET,
        among: int = 1,
    ) -> None:
        self.images = dict(images)
        self.taps = chosen_taps(model, taps)
        self._model = model
        self._feature = feature
        self._batch_size = batch_size
        self._budget = budget // among
        self._kept: dict[str, list[TapBatch]] = {}
        self._logits: dict[str, Tensor] = {}

    @property
    def num_batches(self) -> int:
        """Batches of every condition."""
        return -(-len(next(iter(self.images.values()))) // self._batch_size)

    def hold(self, condition: str, images: Tensor) -> None:
        """Take the images of a condition, unless it has these already."""
        if self.images.get(condition) is images:
            return
        if condition in self.images:
            self.drop({condition})
        self.images[condition] = images

    def drop(self, conditions: Collection[str]) -> None:
        """Forget conditions and what was kept of them."""
        for condition in conditions:
            del self.images[condition]
            self._logits.pop(condition, None)
            kept = self._kept.pop(condition, [])
            self._budget += sum(map(_size, kept))

    def batches(self, condition: str) -> Iterator[TapBatch]:
        """Yield the batches of a condition, in order; kept ones cost nothing the second time."""
        if condition in self._kept:
            yield from self._kept[condition]
            return
        fresh: list[TapBatch] | None = []
        logits = []
        finished = False
        try:
            for batch in self._compute(self.images[condition]):
                logits.append(batch.logits.cpu())
                fresh = self._charged(fresh, batch)
                yield batch
            finished = True
        finally:  # also where whoever asked stops half-way
            if fresh is not None and finished and condition not in self._kept:
                self._kept[condition] = fresh
            elif fresh is not None:
                self._budget += sum(map(_size, fresh))
        self._logits[condition] = torch.cat(logits)

    def _charged(self, fresh: list[TapBatch] | None, batch: TapBatch) -> list[TapBatch] | None:
        """Keep one more batch, or none of them once they do not fit any more."""
        if fresh is None:
            return None
        if _size(batch) > self._budget:
            self._budget += sum(map(_size, fresh))
            return None
        self._budget -= _size(batch)
        return [*fresh, batch]

    def logits(self, condition: str) -> Tensor:
        """Return the network's logits `(N, K)` under a condition, on the CPU."""
        if condition not in self._logits:
            for _ in self.batches(condition):
                pass
        return self._logits[condition]

    @torch.no_grad()
    def _compute(self, images: Tensor) -> Iterator[TapBatch]:
        device = device_of(self._model)
        for start in range(0, len(images), self._batch_size):
            rows = slice(start, min(start + self._batch_size, len(images)))
            read = read_taps(self._model, images[rows].to(device), self.taps, feature=self._feature)
            yield TapBatch(rows, read.logits.argmax(1), read.logits, dict(read.features))


def _size(batch: TapBatch) -> int:
    return sum(value.nbytes for value in batch.features.values())

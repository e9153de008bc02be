"""Batches that live on the device: shuffled and augmented for training, in order for measuring.

What an example looks like in an epoch depends on (seed, epoch, id) alone, so that two models that
train with one seed see the same batches.

>>> from pathlib import Path
>>> from robust_nc.data.digits import Digits
>>> batches = Batches(Digits().read("train", Path()), batch_size=256, device="cpu", seed=1)
>>> len(batches), batches.num_examples
(6, 1437)
>>> next(batches.epoch(0)).images.shape
torch.Size([256, 1, 8, 8])
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_nc.data.base import Split
from robust_nc.data.load import to_unit
from robust_nc.exceptions import InputError, unknown_name
from robust_nc.runtime.torch_state import generator, keyed_uniform

AUGMENTATIONS = ("crop", "flip")
_PADDING = 4


class Batch(NamedTuple):
    """Images float32 `(n, C, H, W)` in [0, 1], labels and ids int64 `(n,)`, on the device."""

    images: Tensor
    labels: Tensor
    ids: Tensor


class Batches:
    """A split on the device, as it came (uint8 stays uint8 until its batch is made).

    `augment`: any of "crop" (zero padding of 4, then a random window) and "flip" (left-right).
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str,
        augment: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        _check(split)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size must be a whole number of at least 1: {batch_size!r}")
        for name in augment:
            if name not in AUGMENTATIONS:
                raise unknown_name("augmentation", name, AUGMENTATIONS)
        self.batch_size = batch_size
        self.augment = tuple(augment)
        self.seed = seed
        self._split = Split(*(part.to(device) for part in split))

    @property
    def num_examples(self) -> int:
        """Examples in the split; an epoch may leave one of them out."""
        return len(self._split.labels)

    def __len__(self) -> int:
        """Batches per training epoch."""
        return len(self._starts())

    def epoch(self, index: int, *, first: int = 0) -> Iterator[Batch]:
        """Yield the shuffled, augmented batches of one epoch, from the `first` (from 0) on.

        A trailing batch of a single example is left out, since batch norm cannot normalise it.
        """
        order = torch.randperm(self.num_examples, generator=generator(self.seed, "order", index))
        order = order.to(self._split.labels.device)
        for start in self._starts()[first:]:
            chosen = self._split.at(order[start : start + self.batch_size])
            yield Batch(to_unit(self._augmented(chosen, index)), chosen.labels, chosen.ids)

    def ordered(self) -> Iterator[Batch]:
        """Yield every example once, in order and as it is."""
        for start in range(0, self.num_examples, self.batch_size):
            images, labels, ids = (part[start : start + self.batch_size] for part in self._split)
            yield Batch(to_unit(images), labels, ids)

    def _starts(self) -> range:
        alone = self.batch_size > 1 and self.num_examples % self.batch_size == 1
        end = self.num_examples - 1 if alone and self.num_examples > 1 else self.num_examples
        return range(0, end, self.batch_size)

    def _augmented(self, chosen: Split, epoch: int) -> Tensor:
        if not self.augment:
            return chosen.images
        draws = keyed_uniform(self.seed, chosen.ids, f"augment/{epoch}", 3)
        padding = _PADDING if "crop" in self.augment else 0
        corner = (draws[:, :2] * (2 * padding + 1)).long().clamp_max(2 * padding)
        mirrored = (draws[:, 2] < 0.5) & ("flip" in self.augment)
        padded = F.pad(chosen.images, [padding] * 4)
        return window(padded, corner, mirrored, chosen.images.shape[2:])


def window(padded: Tensor, corner: Tensor, mirrored: Tensor, size: Sequence[int]) -> Tensor:
    """Cut one window of `size` (h, w) per image, at `corner` `(n, 2)`, mirrored where told."""
    height, width = (torch.arange(length, device=padded.device) for length in size)
    columns = torch.where(mirrored[:, None], width.flip(0), width) + corner[:, 1:]
    rows = height + corner[:, :1]
    number = torch.arange(len(padded), device=padded.device)[:, None, None, None]
    channel = torch.arange(padded.shape[1], device=padded.device)[None, :, None, None]
    return padded[number, channel, rows[:, None, :, None], columns[:, None, None, :]]


def hold_out(split: Split, share: float, *, seed: int) -> tuple[Split, Split]:
    """Take a stratified share out of train: (train, validation), both in the official order.

    Each class gives its rounded share, and keeps and gives at least one example where it has two
    or more; a class of one stays in train. A share of 0 gives an empty validation split.
    """
    _check(split)
    if not 0 <= share < 1:
        raise InputError(f"the share held out for validation must be in [0, 1), found {share}")
    if share == 0:
        return split, split.at(torch.arange(0))
    counts = split.labels.bincount()
    wanted = (counts * share + 0.5).long().clamp_min(1).minimum((counts - 1).clamp_min(0))
    shuffled = torch.randperm(len(split.labels), generator=generator(seed, "split"))
    grouped = shuffled[split.labels[shuffled].argsort(stable=True)]
    classes = split.labels[grouped]
    rank = torch.arange(len(grouped)) - (counts.cumsum(0) - counts)[classes]
    held = grouped[rank < wanted[classes]].sort().values
    if len(held) == 0:
        raise InputError(
            f"nothing can be held out of {len(grouped)} examples without taking a class's only "
            "one; use more examples or validation = 0"
        )
    kept = torch.ones(len(grouped), dtype=torch.bool)
    kept[held] = False
    return split.at(kept.nonzero().flatten()), split.at(held)


def _check(split: Split) -> None:
    sizes = {name: len(part) for name, part in zip(split._fields, split, strict=True)}
    if len(set(sizes.values())) != 1:
        raise InputError(f"images, labels and ids must have one length, found {sizes}")
    if not sizes["labels"]:
        raise InputError("the split is empty; at least one example is needed")
    if split.images.ndim != 4:
        shape = tuple(split.images.shape)
        raise InputError(f"images must have the shape (N, C, H, W), found {shape}")

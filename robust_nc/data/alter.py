"""What is done to the training examples before anything learns from them, and what they were.

First some classes lose examples, then some examples get a wrong label. What was held out for the
validation before keeps its balance and its labels.

>>> from robust_nc.data.base import numbered
>>> split = numbered(torch.zeros(200, 1, 1, 1), torch.arange(200) % 2)
>>> noise = Component(name="symmetric", options={"rate": 0.2})
>>> tail = Component(name="step", options={"factor": 10.0})
>>> altered = alter(split, imbalance=tail, noise=noise, num_classes=2, seed=0)
>>> altered.original.bincount().tolist(), altered.effective_rate
([100, 10], 0.1)
>>> int(altered.wrong.sum()) == int((altered.split.labels != altered.original).sum())
True
"""

from typing import NamedTuple

import torch
from torch import Tensor

from robust_nc.config import Component, build
from robust_nc.data.base import Split
from robust_nc.data.imbalance import Imbalance
from robust_nc.data.noise import LabelNoise
from robust_nc.exceptions import InputError
from robust_nc.registry import IMBALANCES, LABEL_NOISES


class Altered(NamedTuple):
    """A split with the labels it is given, in the official order, and its `original` ones `(N,)`.

    `wrong` (N,) bool: where the two differ; `effective_rate`: its expected share, None without
    noise.
    """

    split: Split
    original: Tensor
    effective_rate: float | None
    wrong: Tensor

    def wrong_among(self, ids: Tensor) -> Tensor:
        """Return which examples of these ids `(M,)` were given a wrong label, `(M,)` bool."""
        return torch.isin(ids, self.split.ids[self.wrong].to(ids.device))


def alter(
    split: Split,
    *,
    imbalance: Component | None,
    noise: Component | None,
    num_classes: int,
    seed: int,
) -> Altered:
    """Thin out the classes of a training split, then give some examples wrong labels.

    Raises `ConfigError` for options that do not fit and for an imbalance that leaves a class fewer
    than two examples, `InputError` for labels that are not in 0..K-1, and where noise takes every
    label of a class that has examples.
    """
    if imbalance is not None:
        thin: Imbalance = build(IMBALANCES, imbalance)
        split = thin(split, num_classes, seed=seed)
    original = split.labels
    if noise is None:
        return Altered(split, original, None, torch.zeros(len(original), dtype=torch.bool))
    spoil: LabelNoise = build(LABEL_NOISES, noise)
    rate = spoil.effective_rate(original, num_classes)
    given = spoil(original, num_classes, seed=seed, ids=split.ids)
    before, after = (labels.bincount(minlength=num_classes) for labels in (original, given))
    gone = ((before > 0) & (after == 0)).nonzero().flatten().tolist()
    if gone:
        raise InputError(
            f"{noise.name} noise takes the label {gone[0]} from all {int(before[gone[0]])} examples"
            " of that class, and gives it to none; lower its rate, or use more examples"
        )
    return Altered(split._replace(labels=given), original, rate, given != original)

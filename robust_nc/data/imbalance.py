"""Long tails: keep fewer training examples of some classes.

Which examples of a class go is keyed by (seed, id), so that a larger factor keeps a part of what a
smaller one keeps. Classes are never reduced below two examples: one has no within-class spread, and
a mean of one is no vertex.

>>> Exponential(100.0).sizes(5000, 10).tolist()
[5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
>>> Step(10.0).sizes(500, 4).tolist()
[500, 500, 50, 50]
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.data.base import Split
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.runtime.torch_state import keyed_uniform

FEWEST = 2  # examples that make a vertex with a spread around it
_ROUNDING = 1e-9  # 500 / 100 must not become 4 for the last bit of a power


@dataclass(frozen=True)
class Imbalance(ABC):
    """What thins out the classes of a split.

    `factor`, at least 1: the size of the largest class over that of the smallest.
    """

    factor: float

    def __post_init__(self) -> None:
        if not (isinstance(self.factor, int | float) and 1 <= self.factor < math.inf):
            raise ConfigError(
                f"{self.name} imbalance: factor is the largest class's size over the smallest's, "
                f"at least 1, found {self.factor!r}"
            )

    @property
    def name(self) -> str:
        """How it is called in errors."""
        return type(self).__name__.lower()

    @abstractmethod
    def sizes(self, largest: int, num_classes: int) -> Tensor:
        """Return how many examples each class keeps, `(K,)` int64; the largest has `largest`."""

    def __call__(self, split: Split, num_classes: int, *, seed: int) -> Split:
        """Return what is kept, in the official order.

        Raises `ConfigError` where a class would be left with fewer than two examples.
        """
        if num_classes < 2:
            raise InputError(f"imbalance needs at least two classes, found {num_classes}")
        labels = check_labels(split.labels, len(split.images), num_classes)
        counts = labels.bincount(minlength=num_classes)
        largest = int(counts.max())
        sizes = self.sizes(largest, num_classes)
        lost = sizes < counts.clamp_max(FEWEST)
        if bool(lost.any()):
            worst = int(lost.int().argmax())
            lower = f"lower the factor to at most {largest / FEWEST:g}, or " if largest > 3 else ""
            raise ConfigError(
                f"{self.name} imbalance: factor {self.factor:g} leaves class {worst} "
                f"{int(sizes[worst])} of its {int(counts[worst])} examples, and {FEWEST} are "
                f"needed; {lower}use more examples"
            )
        kept = _rank(labels, split.ids, counts, seed) < sizes[labels]
        return split.at(kept.nonzero().flatten())


class Exponential(Imbalance):
    """Class k keeps n factor^(-k/(K-1)) examples, n the size of the largest class, rounded down.

    The long-tailed CIFAR of Cui et al. (CVPR 2019) and Cao et al. (NeurIPS 2019): CIFAR-10 keeps
    12,406 of its images at factor 100. A class that has fewer than its share keeps what it has.
    """

    def sizes(self, largest: int, num_classes: int) -> Tensor:
        """Return how many examples each class keeps, `(K,)` int64."""
        place = torch.arange(num_classes, dtype=torch.float64) / max(num_classes - 1, 1)
        return (largest * self.factor**-place + _ROUNDING).long()


@dataclass(frozen=True)
class Step(Imbalance):
    """The last `share` of the classes keep n / factor examples, the others n (Cao et al., 2019).

    n is the size of the largest class; n / factor is rounded down, the number of classes to the
    nearest, with at least one on each side. A class that has fewer than its share keeps what it
    has.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise ConfigError(
                f"step imbalance: share is that of the small classes, between 0 and 1, "
                f"found {self.share!r}"
            )

    def sizes(self, largest: int, num_classes: int) -> Tensor:
        """Return how many examples each class keeps, `(K,)` int64."""
        small = min(max(math.floor(self.share * num_classes + 0.5), 1), num_classes - 1)
        sizes = torch.full((num_classes,), largest)
        sizes[num_classes - small :] = math.floor(largest / self.factor + _ROUNDING)
        return sizes


def _rank(labels: Tensor, ids: Tensor, counts: Tensor, seed: int) -> Tensor:
    """Rank each example within its class by its draw; the id decides between equal draws."""
    order = ids.argsort()
    order = order[keyed_uniform(seed, ids[order], "imbalance", 1)[:, 0].argsort(stable=True)]
    order = order[labels[order].argsort(stable=True)]
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - first[labels[order]]
    return rank

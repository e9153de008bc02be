"""What is measured, on which examples, and what all measures of one model share.

>>> images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])
>>> Examples("test", images, labels, torch.arange(3)).part(slice(1, 3)).ids.tolist()
[1, 2]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.config import MeasureConfig
from robust_nc.geometry.moments import Moments
from robust_nc.models.classifier import Classifier
from robust_nc.profiling.accumulators import Head
from robust_nc.profiling.conditions import Attacking
from robust_nc.profiling.feature_cache import all_taps
from robust_nc.runtime.torch_state import generator, stream_key
from robust_nc.threat import Ball

Reference = dict[str, Moments]  # by tap: moments of the clean training features by true label


class Subject(NamedTuple):
    """A model and how it is measured; `taps` in depth order, `distances` (K, K) between classes.

    Pickled, it leaves the model behind, which goes by itself.
    """

    model: nn.Module
    taps: tuple[str, ...]
    num_classes: int
    ball: Ball
    attacking: Attacking
    settings: MeasureConfig
    seed: int
    distances: Tensor | None

    def __reduce__(self) -> tuple[Callable[..., "Subject"], tuple[Any, ...]]:
        """Put a module that is nothing in the model's place."""
        return Subject, tuple(self._replace(model=nn.Identity()))

    def of(self, model: nn.Module) -> "Subject":
        """Give it its model back."""
        return self._replace(model=model)

    @property
    def depths(self) -> dict[str, int]:
        """Place of each tap among all of the model's."""
        known = all_taps(self.model)
        places = known if set(self.taps) <= set(known) else self.taps
        return {tap: places.index(tap) for tap in self.taps}

    @property
    def features(self) -> tuple[str, ...]:
        """How the outputs of layers become rows."""
        feature = self.settings.feature
        return ("gap", "flatten") if feature == "both" else (feature,)

    def head(self, tap: str, dim: int) -> Head | None:
        """Return the head where its rows live in the feature space of this tap."""
        if tap != self.taps[-1] or tap != all_taps(self.model)[-1]:
            return None
        if isinstance(self.model, Classifier):
            frame = self.model.head.frame()
            weight = self.model.head.vertices().detach()
            return Head(weight, None if frame is None else frame.detach())
        layers = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        if not layers or layers[-1].weight.shape != (self.num_classes, dim):
            return None
        return Head(layers[-1].weight.detach(), None)


class Examples(NamedTuple):
    """Images `(N, C, H, W)` float32, labels and ids `(N,)` of one split, on the CPU.

    `given` (N,): the labels that training saw, where some were wrong; attacks aim away from those,
    since a network that has fitted a wrong label is not moved by an attack on the right one.
    """

    split: str
    images: Tensor
    labels: Tensor
    ids: Tensor
    given: Tensor | None = None

    @property
    def attacked_labels(self) -> Tensor:
        """Labels `(N,)` that attacks aim away from."""
        return self.labels if self.given is None else self.given

    def first(self, limit: int) -> "Examples":
        """Take the first examples."""
        return self.part(slice(0, limit))

    def part(self, rows: slice) -> "Examples":
        """Take some examples, as copies: a view would be pickled with all that it is a view of."""
        start, stop, _ = rows.indices(len(self.labels))
        if (start, stop) == (0, len(self.labels)):
            return self
        images, labels, ids = (part[rows].clone() for part in (self.images, self.labels, self.ids))
        given = None if self.given is None else self.given[rows].clone()
        return Examples(self.split, images, labels, ids, given)

    def key(self, seed: int) -> int:
        """Return the seed of all draws on this split."""
        return stream_key(seed, "geometry", self.split)


class Condition(NamedTuple):
    """What was done to the images: `(N, C, H, W)`, with the targets `(N,)` of a targeted attack.

    Clean ones are those of the examples, and `images` None. `noisy` are the images with noise on
    top of the attack, or None.
    """

    name: str
    images: Tensor | None = None
    targets: Tensor | None = None
    noisy: Tensor | None = None


def drawn(split: str, images: list[Tensor], labels: list[Tensor]) -> Examples:
    """Join batches, in an order of chance (data come by class, often); ids are the places given.

    So the first examples, where not all are taken, are a sample of all.
    """
    joined = torch.cat(labels)
    order = torch.randperm(len(joined), generator=generator(0, "profile-order", split))
    return Examples(split, torch.cat(images)[order], joined[order], order)

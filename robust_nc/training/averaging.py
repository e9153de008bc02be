"""Averages of the weights of a training, kept beside the weights that it goes on with.

>>> model = torch.nn.Linear(1, 1)
>>> average = Average(model, Swa(start=0.5))
>>> for epoch, weight in enumerate((1.0, 2.0, 4.0), start=1):
...     _ = torch.nn.init.constant_(model.weight, weight)
...     average.update(model, progress=epoch / 3, epoch_ends=True)
>>> average.count, average.model.weight.item()
(2, 3.0)
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust_nc.exceptions import ConfigError
from robust_nc.models.heads import Head

STATISTICS_BATCHES = 50
"""Batches, at most, from which the batch norm of an average takes its statistics."""


@runtime_checkable
class Averaging(Protocol):
    """A way to average weights.

    `new_statistics`: whether the running statistics of batch norm, of which the average is not that
    of the averaged weights, are taken anew before the average is used.
    """

    new_statistics: ClassVar[bool]

    def share(self, count: int, *, progress: float, epoch_ends: bool) -> float:
        """Return the share of the present weights in the average, after a step.

        `count`: how many weights are in it so far; `progress`: the share of the training that is
        done. 0 leaves the average as it is.
        """
        ...


@dataclass(frozen=True)
class Ema:
    """Exponential moving average of the weights after every step.

    The t-th step, from 0, leaves a share of min(decay, (1 + t) / (10 + t)) to the average so far,
    so that it soon forgets the initial weights. The running statistics are averaged as well.
    """

    decay: float = 0.995
    new_statistics: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"decay must be at least 0 and below 1, found {self.decay}")

    def share(self, count: int, *, progress: float, epoch_ends: bool) -> float:
        """Return 1 - min(decay, (1 + t) / (10 + t))."""
        return 1 - min(self.decay, (1 + count) / (10 + count))


@dataclass(frozen=True)
class Swa:
    """Mean of the weights at the ends of epochs, from `start` of the training on.

    Stochastic weight averaging (Izmailov et al., UAI 2018), on the run's own schedule.
    """

    start: float = 0.75
    new_statistics: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise ConfigError(f"start is a share of the training, from 0 to 1, found {self.start}")

    def share(self, count: int, *, progress: float, epoch_ends: bool) -> float:
        """Return 1 / (count + 1) at the ends of epochs, 0 elsewhere and before the start."""
        return 1 / (count + 1) if epoch_ends and progress >= self.start else 0.0


class Average:
    """The average of a training's weights, as a model of its own in eval mode.

    Parameters and floating buffers are averaged. Whole numbers are copied, and so are all buffers
    of a head that observes: they hang together, and an average of frames is no frame.
    """

    def __init__(self, model: nn.Module, averaging: Averaging) -> None:
        self.model = copy.deepcopy(model).eval()
        self.averaging = averaging
        self.count = 0
        norms = (part for part in self.model.modules() if isinstance(part, _BatchNorm))
        self._norms = [part for part in norms if part.running_mean is not None]

    @property
    def needs_statistics(self) -> bool:
        """Whether `statistics` must be taken before this average is used."""
        return bool(self.count and self.averaging.new_statistics and self._norms)

    @torch.no_grad()
    def update(self, model: nn.Module, *, progress: float, epoch_ends: bool) -> None:
        """Take the present weights in, if it is time."""
        share = self.averaging.share(self.count, progress=progress, epoch_ends=epoch_ends)
        if not share:
            return
        present, copied = model.state_dict(), _observed(model)
        for name, mean in self.model.state_dict().items():
            if name in copied or not mean.is_floating_point():
                mean.copy_(present[name])
            else:
                mean.lerp_(present[name], share)
        self.count += 1

    @contextlib.contextmanager
    def statistics(self) -> Iterator[nn.Module]:
        """Lend the model in train mode: batch norm takes the mean of what it is shown inside.

        All else is put back, so that nothing but its running statistics has changed.
        """
        moving = {id(buffer) for norm in self._norms for buffer in norm.buffers()}
        kept = [(b, b.clone()) for b in self.model.buffers() if id(b) not in moving]
        momenta = [(norm, norm.momentum, _tracked(norm).clone()) for norm in self._norms]
        try:
            for norm in self._norms:
                norm.momentum = None  # the cumulative mean; the first batch replaces what was there
                _tracked(norm).zero_()
            yield self.model.train()
        finally:
            for norm, momentum, tracked in momenta:
                norm.momentum = momentum
                _tracked(norm).copy_(tracked)
            for buffer, value in kept:
                buffer.copy_(value)
            self.model.eval()


def _tracked(norm: _BatchNorm) -> torch.Tensor:
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked


def _observed(model: nn.Module) -> set[str]:
    """Names of the buffers that a head learns from features without a gradient."""
    return {
        f"{place}.{name}"
        for place, part in model.named_modules()
        if isinstance(part, Head) and part.observes
        for name, _ in part.named_buffers()
    }

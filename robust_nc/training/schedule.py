"""Learning rates as pure functions of the progress, so that a resumed run needs only its step.

`progress` is step / (all steps), from 0 at the first step to just below 1 at the last.

>>> schedule = Piecewise(milestones=(100.0, 150.0))
>>> [round(schedule.lr_at(epoch / 400, 0.1, epochs=400), 6) for epoch in (99, 100, 150)]
[0.1, 0.01, 0.001]
"""

import math
from dataclasses import dataclass
from typing import Protocol

from robust_nc.exceptions import ConfigError

_ROUNDING = 1e-9  # so that step / steps * epochs reaches a whole epoch on its first step


class Schedule(Protocol):
    """What the loop asks of a schedule before every step."""

    def lr_at(self, progress: float, base_lr: float, *, epochs: int) -> float:
        """Learning rate at this share of a training of so many epochs."""
        ...


@dataclass(frozen=True)
class Constant:
    """The base rate throughout."""

    def lr_at(self, progress: float, base_lr: float, *, epochs: int) -> float:
        """Return `base_lr`."""
        return base_lr


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the base rate to `final` times it, after a linear `warmup` (a share)."""

    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_share("warmup", self.warmup)
        _check_share("final", self.final)

    def lr_at(self, progress: float, base_lr: float, *, epochs: int) -> float:
        """Rise linearly from 0 to 1 until `warmup`, then fall along the cosine."""
        if progress < self.warmup:
            return base_lr * progress / self.warmup
        return base_lr * _anneal(1.0, self.final, (progress - self.warmup) / (1 - self.warmup))


@dataclass(frozen=True)
class OneCycle:
    """From `start` times the base rate up to it at share `peak`, down to `final` times it.

    Both parts are half cosines (Smith and Topin, arXiv 1708.07120).
    """

    peak: float = 0.3
    start: float = 0.04
    final: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("peak", "start", "final"):
            _check_share(name, getattr(self, name))

    def lr_at(self, progress: float, base_lr: float, *, epochs: int) -> float:
        """Rise until `peak`, then fall."""
        if progress < self.peak:
            return base_lr * _anneal(self.start, 1.0, progress / self.peak)
        return base_lr * _anneal(1.0, self.final, (progress - self.peak) / (1 - self.peak))


@dataclass(frozen=True)
class Piecewise:
    """The base rate times `factor` for every milestone passed.

    A milestone below 1 is a share of the training, from 1 on it is an epoch (counted from 0).
    """

    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        if any(milestone <= 0 for milestone in self.milestones):
            raise ConfigError(f"milestones must be above 0, found {self.milestones}")
        if self.factor <= 0:
            raise ConfigError(f"factor must be above 0, found {self.factor}")

    def lr_at(self, progress: float, base_lr: float, *, epochs: int) -> float:
        """Count the milestones that lie behind."""
        epoch = progress * epochs + _ROUNDING
        places = [m * epochs if m < 1 else m for m in self.milestones]
        return base_lr * math.prod(self.factor for place in places if epoch >= place)


def _anneal(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} must be at least 0 and below 1, found {value}")

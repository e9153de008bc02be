"""Label noise: which training images get a wrong label, and which one.

What happens to an example depends on (seed, its id) alone: neither on its neighbours nor on their
order. The same draws serve every rate, so that a higher rate corrupts the same examples and more.

>>> labels, ids = torch.arange(10_000) % 4, torch.arange(10_000)
>>> noise = Symmetric(0.4)
>>> given = noise(labels, 4, seed=0, ids=ids)
>>> round(noise.effective_rate(labels, 4), 9), round(float((given != labels).double().mean()), 2)
(0.3, 0.3)
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.runtime.torch_state import keyed_uniform

STREAM = "label-noise"


class LabelNoise(Protocol):
    """What gives labels `(N,)` int64 in 0..K-1 some wrong ones; draws are keyed by (seed, id)."""

    def __call__(self, labels: Tensor, num_classes: int, *, seed: int, ids: Tensor) -> Tensor:
        """Return the given labels `(N,)`; raises `InputError` for what are no labels of K."""
        ...

    def effective_rate(self, labels: Tensor, num_classes: int) -> float:
        """Return the expected share of wrong labels, once `labels` have been through it."""
        ...


@dataclass(frozen=True)
class Symmetric:
    """With probability `rate`, any label alike.

    With `redraw` the label is drawn anew among all K, the right one too: the effective rate is
    rate (K-1)/K (Nguyen et al., arXiv 2206.05530). Without, among the K-1 others: it is `rate`.
    """

    rate: float
    redraw: bool = True

    def __post_init__(self) -> None:
        _check_rate("symmetric", "rate", self.rate)

    def __call__(self, labels: Tensor, num_classes: int, *, seed: int, ids: Tensor) -> Tensor:
        """Return the given labels `(N,)`."""
        labels = _checked(labels, num_classes, ids)
        chance, which = _draw(seed, ids.to(labels.device))
        anew = (which * num_classes).long() if self.redraw else _other(which, labels, num_classes)
        return torch.where(chance < self.rate, anew, labels)

    def effective_rate(self, labels: Tensor, num_classes: int) -> float:
        """Return the expected share of wrong labels."""
        _checked(labels, num_classes)
        return self.rate * (num_classes - 1) / num_classes if self.redraw else float(self.rate)


@dataclass(frozen=True)
class PerClass:
    """Class k gets another label with probability `rates[k]`, any of the others alike."""

    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        for index, rate in enumerate(self.rates):
            _check_rate("per_class", f"rates[{index}]", rate)

    def __call__(self, labels: Tensor, num_classes: int, *, seed: int, ids: Tensor) -> Tensor:
        """Return the given labels `(N,)`; raises `ConfigError` for other than K rates."""
        labels = _checked(labels, num_classes, ids)
        chance, which = _draw(seed, ids.to(labels.device))
        drawn = _other(which, labels, num_classes)
        return torch.where(chance < self._of(labels, num_classes), drawn, labels)

    def effective_rate(self, labels: Tensor, num_classes: int) -> float:
        """Return the expected share of wrong labels: the mean rate of the examples."""
        return float(self._of(_checked(labels, num_classes), num_classes).mean())

    def _of(self, labels: Tensor, num_classes: int) -> Tensor:
        _check_length("per_class", "rates", len(self.rates), num_classes)
        return torch.tensor(self.rates, dtype=torch.float64, device=labels.device)[labels]


@dataclass(frozen=True)
class Pair:
    """With probability `rate`, label k becomes `pairs[k]`; without `pairs`, (k+1) mod K.

    A class that is paired with itself keeps its labels: so are made the noises that confuse only
    some classes. At least one must be paired with another.
    """

    rate: float
    pairs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_rate("pair", "rate", self.rate)
        if self.pairs is None:
            return
        classes = range(len(self.pairs))
        for index, other in enumerate(self.pairs):
            if isinstance(other, bool) or not isinstance(other, int) or other not in classes:
                raise ConfigError(
                    f"pair noise: pairs must be classes in 0..{len(self.pairs) - 1}, one for each "
                    f"class, found pairs[{index}] = {other!r}"
                )
        if tuple(classes) == tuple(self.pairs):
            raise ConfigError(
                "pair noise: pairs gives every class itself, so that no label would change; give "
                "at least one class another"
            )

    def __call__(self, labels: Tensor, num_classes: int, *, seed: int, ids: Tensor) -> Tensor:
        """Return the given labels `(N,)`; raises `ConfigError` for other than K pairs."""
        labels = _checked(labels, num_classes, ids)
        chance, _ = _draw(seed, ids.to(labels.device))
        return torch.where(chance < self.rate, self._of(labels, num_classes), labels)

    def effective_rate(self, labels: Tensor, num_classes: int) -> float:
        """Return the expected share of wrong labels; classes paired with themselves have none."""
        labels = _checked(labels, num_classes)
        moved = self._of(labels, num_classes) != labels
        return self.rate * float(moved.double().mean())

    def _of(self, labels: Tensor, num_classes: int) -> Tensor:
        if self.pairs is None:
            return (labels + 1) % num_classes
        _check_length("pair", "pairs", len(self.pairs), num_classes)
        return torch.tensor(self.pairs, device=labels.device)[labels]


def _draw(seed: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Two uniform draws of each example, float64 `(N,)`: whether its label changes, to which."""
    chance, which = keyed_uniform(seed, ids, STREAM, 2).double().unbind(1)
    return chance, which


def _other(which: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Choose among the other classes; float64 cannot round a draw up to their number."""
    return (labels + 1 + (which * (num_classes - 1)).long()) % num_classes


def _checked(labels: Tensor, num_classes: int, ids: Tensor | None = None) -> Tensor:
    if num_classes < 2:
        raise InputError(f"label noise needs at least two classes, found {num_classes}")
    if not len(labels):
        raise InputError("label noise needs at least one label, found none")
    if ids is not None and ids.shape != labels.shape:
        raise InputError(
            f"found ids of shape {tuple(ids.shape)} for labels of shape {tuple(labels.shape)}; one "
            "for each label is needed"
        )
    return check_labels(labels, len(labels), num_classes)


def _check_rate(noise: str, name: str, rate: object) -> None:
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not (number and 0 <= rate <= 1):  # type: ignore[operator]
        raise ConfigError(f"{noise} noise: {name} is a probability in [0, 1], found {rate!r}")


def _check_length(noise: str, name: str, found: int, num_classes: int) -> None:
    if found != num_classes:
        raise ConfigError(
            f"{noise} noise: {name} has {found} entries for {num_classes} classes; give one for "
            "each class"
        )

"""The base of all attacks: one signature, checked once; a subclass computes on the checked inputs.

>>> import torch
>>> from robust_nc.attacks.pgd import FGSM
>>> images, labels, ids = torch.rand(2, 8), torch.tensor([0, 1]), torch.arange(2)
>>> FGSM()(torch.nn.Flatten(), images, labels, Ball("L2", 0.5), seed=0, ids=ids)
Traceback (most recent call last):
...
robust_nc.exceptions.InputError: images must be float32 (N, C, H, W), found torch.float32 (2, 8)
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.exceptions import InputError
from robust_nc.runtime import check_float64, sent
from robust_nc.threat import Ball
from robust_nc.types import Attacked, Goal, Referee


class AttackInputs(NamedTuple):
    """What an attack is called with, checked: N images, and on their device what goes with each."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    ball: Ball
    goal: Goal
    targets: Tensor | None
    seed: int
    ids: Tensor

    @property
    def target_columns(self) -> Tensor | None:
        """The targets as `(N, T)`, or None."""
        targets = self.targets
        return targets if targets is None or targets.ndim == 2 else targets[:, None]

    @property
    def classes(self) -> Tensor:
        """All classes that labels and targets name."""
        named = [] if self.targets is None else [self.targets.flatten()]
        return torch.cat([self.labels, *named])

    def at(self, rows: Tensor) -> "AttackInputs":
        """Return the inputs of some of the images."""
        return self._replace(
            images=self.images[rows],
            labels=self.labels[rows],
            targets=None if self.targets is None else self.targets[rows],
            ids=self.ids[rows],
        )


class BaseAttack(ABC):
    """An attack that is called as `robust_nc.types.Attack` says."""

    @abstractmethod
    def points(self, inputs: AttackInputs) -> Tensor:
        """Return perturbed images, `(N, C, H, W)`."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        ball: Ball,
        *,
        goal: Goal = "flip",
        targets: Tensor | None = None,
        seed: int,
        ids: Tensor,
    ) -> Tensor:
        """Return perturbed images, `(N, C, H, W)`, of images with labels `(N,)`.

        `targets` is None, `(N,)`, or for some attacks `(N, T)` to try T targets per example;
        `ids` `(N,)` key the draws. Raises `InputError` for what cannot be used.
        """
        return self.points(checked_inputs(model, images, labels, ball, goal, targets, seed, ids))


class BaseCountedAttack(BaseAttack):
    """An attack that counts passes through the model; a subclass sets `compute`."""

    @abstractmethod
    def compute(self, inputs: AttackInputs) -> Attacked:
        """Attack the images, and count passes per example."""

    def points(self, inputs: AttackInputs) -> Tensor:
        """Return the points alone."""
        return self.compute(inputs).points

    def run(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        ball: Ball,
        *,
        goal: Goal = "flip",
        targets: Tensor | None = None,
        seed: int,
        ids: Tensor,
    ) -> Attacked:
        """Attack as a call does, and count passes per example."""
        return self.compute(checked_inputs(model, images, labels, ball, goal, targets, seed, ids))


class BaseRefereedAttack(BaseCountedAttack):
    """An attack that a referee can stop, example by example; a subclass sets `compute_under`."""

    @abstractmethod
    def compute_under(self, referee: Referee | None, inputs: AttackInputs) -> Attacked:
        """Attack the images; under a referee, try to flip each."""

    def compute(self, inputs: AttackInputs) -> Attacked:
        """Attack the images without a referee."""
        return self.compute_under(None, inputs)

    def run_under(
        self,
        referee: Referee,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        ball: Ball,
        *,
        seed: int,
        ids: Tensor,
    ) -> Attacked:
        """Try to flip each example under a referee; see `types.RefereedAttack`."""
        inputs = checked_inputs(model, images, labels, ball, "flip", None, seed, ids)
        return self.compute_under(referee, inputs)


def checked_inputs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    goal: Goal,
    targets: Tensor | None,
    seed: int,
    ids: Tensor,
) -> AttackInputs:
    """Return the inputs of a call, or raise `InputError` for those that no attack can use."""
    if images.ndim != 4 or images.dtype != torch.float32:
        raise InputError(
            f"images must be float32 (N, C, H, W), found {images.dtype} {tuple(images.shape)}"
        )
    if goal not in ("flip", "maximise"):
        raise InputError(f"goal must be 'flip' or 'maximise', found {goal!r}")
    _check_classes("labels", labels, len(images))
    _check_classes("ids", ids, len(images))
    device = images.device
    check_float64(device)
    if targets is not None:
        first = targets[:, 0] if targets.ndim == 2 and targets.shape[1] else targets
        _check_classes("targets", first, len(images))
        targets = sent(targets, device)
    labels, ids = sent(labels, device), sent(ids, device)
    return AttackInputs(model, images, labels, ball, goal, targets, seed, ids)


def _check_classes(name: str, values: Tensor, count: int) -> None:
    if values.dtype != torch.int64 or values.shape != (count,):
        raise InputError(
            f"{name} must be int64 of shape ({count},), one per image, "
            f"found {values.dtype} {tuple(values.shape)}"
        )

"""The base of attacks that count: calling one returns the points of its `run`.

>>> from robust_nc.attacks.pgd import PGD
>>> isinstance(PGD(), Counted)
True
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from robust_nc.threat import Ball
from robust_nc.types import Attacked, Goal


class Counted(ABC):
    """An attack with a `run` that counts passes."""

    @abstractmethod
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
        """Attack images `(N, C, H, W)` with labels `(N,)`, and count passes per example.

        `targets` is None, `(N,)`, or for some attacks `(N, T)` to try T targets per example;
        `ids` `(N,)` key the draws. Raises `InputError` for what cannot be used.
        """

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
        """Return perturbed images, `(N, C, H, W)`; see `run`."""
        return self.run(
            model, images, labels, ball, goal=goal, targets=targets, seed=seed, ids=ids
        ).points

"""The words that all parts share: array shapes and small results.

Shapes are checked at run time under pytest only (jaxtyping with beartype); in production they
are documentation. ``n`` examples, ``c h w`` pixels, ``k`` classes, ``d`` features.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robust_nc.threat import Ball

Images = Float[Tensor, "n c h w"]
Labels = Int[Tensor, " n"]
Logits = Float[Tensor, "n k"]
Features = Float[Tensor, "n d"]
Vertices = Float[Tensor, "k d"]
Flags = Bool[Tensor, " n"]
PerExample = Float[Tensor, " n"]
Counts = Int[Tensor, " n"]

Goal = Literal["flip", "maximise"]


class Loss(NamedTuple):
    """What an objective returns: a scalar to descend, and what to show of it (batch means)."""

    value: Tensor
    logs: dict[str, Tensor]


class Warned(NamedTuple):
    """A named doubt about a verdict, and what it means."""

    name: str
    message: str


class Attacked(NamedTuple):
    """What a counted attack returns: images `(N, C, H, W)`, and passes `(N,)` int64 per example."""

    points: Tensor
    forwards: Tensor
    backwards: Tensor


@runtime_checkable
class Attack(Protocol):
    """An attack: perturbed images for images; whether it succeeded is for the evaluation to say.

    `goal="flip"` may stop an example at its first misclassification; `goal="maximise"` runs to
    the end and returns the point of highest loss. `targets` (N,) int64 or None for untargeted.
    Draws depend on (seed, id of the example) and on nothing else.
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
        """Return perturbed images, `(N, C, H, W)`."""
        ...


class Referee(Protocol):
    """Who an attack of the pool asks while it runs: whether a point counts, and where to stop.

    Rows count the examples of the call. An attack without a referee confirms its own flips.
    """

    batch_size: int  # how many items to keep in flight; halved by the pool when memory runs out
    logits: Tensor  # clean logits (N, K) by the user's own model

    def confirm(self, rows: Tensor, points: Tensor) -> Tensor:
        """Whether the user's own model misclassifies these points, put into the ball, `(R,)`."""
        ...

    def settle(self, rows: Tensor, attacked: Attacked) -> None:
        """Take note of examples that the attack has finished, each told once."""
        ...


@runtime_checkable
class CountedAttack(Attack, Protocol):
    """An attack that says how many passes each example cost, and reports to a referee."""

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
        referee: Referee | None = None,
    ) -> Attacked:
        """Return perturbed images with passes per example."""
        ...


class EvaluationProtocol(NamedTuple):
    """A named list of attacks whose per-example worst case is the verdict.

    `by_norm` replaces the attacks for a norm. Where the output is random, correctness is the
    majority of `draws` forward passes.
    """

    name: str
    attacks: tuple[tuple[str, Attack], ...]
    by_norm: Mapping[str, tuple[tuple[str, Attack], ...]] = MappingProxyType({})
    draws: int = 1

    def under(self, ball: Ball) -> "EvaluationProtocol":
        """Return the protocol for one ball: with the attacks of its norm."""
        return self._replace(attacks=self.by_norm.get(ball.norm, self.attacks), by_norm={})

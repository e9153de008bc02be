"""The words that all parts share: array shapes and small results.

Shapes are checked at run time under pytest only (jaxtyping with beartype); in production they
are documentation. ``n`` examples, ``c h w`` pixels, ``k`` classes, ``d`` features.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

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
    """A named warning about a verdict, and what it means."""

    name: str
    message: str


# Warnings that gradients may lead nowhere: attacks that do not trust them join the worst case.
GRADIENT_WARNINGS = frozenset(
    {
        "probability-output",
        "optimisation-in-forward",
        "no-gradient",
        "zero-gradients",
        "unusable-gradients",
        "masked-gradients",
        "eps-no-zero",
        "black-box-stronger",
    }
)
# Warnings that leave a verdict in doubt, so that it has no rank.
DOUBTS = GRADIENT_WARNINGS | {"random-output", "batch-dependent-output"}


class Attacked(NamedTuple):
    """What a counted attack returns: images `(N, C, H, W)`, and passes `(N,)` int64 per example."""

    points: Tensor
    forwards: Tensor
    backwards: Tensor


Found = TypeVar("Found", covariant=True)


class _Call(Protocol[Found]):
    """How an attack is called.

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
    ) -> Found:
        """Return what was found for the images."""
        ...


@runtime_checkable
class Attack(_Call[Tensor], Protocol):
    """An attack: perturbed images, `(N, C, H, W)`; whether it succeeded the evaluation says."""


@runtime_checkable
class CountedAttack(Attack, Protocol):
    """An attack that also says how many passes each example cost."""

    @property
    def run(self) -> _Call[Attacked]:
        """Is called as the attack, and returns perturbed images with passes per example."""


@runtime_checkable
class Referee(Protocol):
    """Whom a long attack asks while it runs: does a flip count, how many items at a time.

    Rows number the examples of the call.
    """

    batch_size: int  # items to keep in flight; the attack halves it when memory runs out

    @property
    def logits(self) -> Tensor:
        """Clean logits `(N, K)` of the user's own model."""

    @property
    def worst_logits(self) -> Tensor:
        """Its logits `(N, K)` at the point of largest margin that any attack has found so far."""

    def confirm(self, rows: Tensor, points: Tensor) -> Tensor:
        """Whether the user's own model misclassifies these points of these examples, `(R,)`."""

    def settle(self, rows: Tensor, attacked: Attacked) -> None:
        """Take note of examples that the attack has finished; each is told once."""

    def spare(self, rows: Tensor) -> None:
        """Take note of examples that the attack leaves alone."""

    def tick(self, forwards: int, backwards: int) -> None:
        """Take note of passes, for the progress."""


@runtime_checkable
class RefereedAttack(CountedAttack, Protocol):
    """An attack that takes any number of examples and reports each as soon as it is finished."""

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
        """Try to flip each example; an example leaves at its first confirmed flip."""
        ...

    def cost(self, num_classes: int) -> int:
        """Passes, forward and backward, of an example that nothing breaks."""
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


@runtime_checkable
class RemoteModel(Protocol):
    """A model that runs in another process; there is done what needs more of it than its answers.

    `smoothed` is for `attacks.smooth`, `candidates` for `evaluation.acceleration`, `watched` for
    `evaluation.sanity`. `head_weight` is that of its last linear layer, None where there is none.
    """

    head_weight: Tensor | None

    def smoothed(self) -> AbstractContextManager[None]:
        """Let the smooth stand-in answer in this block."""
        ...

    def candidates(self, images: Tensor) -> Sequence[Sequence[tuple[nn.Module, tuple[str, ...]]]]:
        """Return faster copies and what was done to each, by groups; `images` are probes."""
        ...

    def watched(self, seen: Any) -> AbstractContextManager[None]:
        """Note in `seen`, a `WatchedPass`, what passes in this block do."""
        ...

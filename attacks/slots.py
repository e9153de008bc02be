"""The items in flight: one slot each, with what the pool reads of an attack's state.

>>> import torch
>>> keys = item_keys(torch.tensor([7, 7, 8]), restarts=torch.tensor([0, 1, 0]), targets=None)
>>> [bool(key == id) for key, id in zip(keys, (7, 7, 8))]
[True, False, True]
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from robust_nc.attacks.model_calls import Oracle
from robust_nc.runtime import chosen
from robust_nc.threat import Ball
from robust_nc.types import Flags, Goal, Images, Labels, Logits, PerExample

# Odd constants far apart, so that no two items of a data set share a key (int64 wraps around).
_RESTART_KEY = -2955697823453434787
_TARGET_KEY = 7809847782465536323


@runtime_checkable
class State(Protocol):
    """What the pool reads of an attack's state; all tensors have the slot as first axis."""

    @property
    def points(self) -> Tensor:
        """Current points, `(S, C, H, W)`, in the ball."""

    @property
    def best_points(self) -> Tensor:
        """Point of highest loss so far; once flipped, the misclassified point."""

    @property
    def best_loss(self) -> Tensor:
        """Loss of the best point, `(S,)`."""

    @property
    def flipped(self) -> Tensor:
        """Whether the best point is misclassified (kept under `goal="flip"` only), `(S,)`."""

    @property
    def step(self) -> Tensor:
        """How many steps each slot has done, `(S,)` int64."""


S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Slots:
    """The items in flight, one row each, and what they share.

    `targets` is None for an untargeted attack. `contested` says that an example has several
    items, so that their final losses are compared.
    """

    images: Images
    labels: Labels
    targets: Labels | None
    ids: Labels
    restarts: Labels
    ball: Ball
    seed: int
    goal: Goal
    contested: bool
    oracle: Oracle

    def keys(self) -> Labels:
        """Keys for `runtime.keyed_*` and `Ball.sample`: the same whatever the batch."""
        return item_keys(self.ids, restarts=self.restarts, targets=self.targets)


class SearchState(NamedTuple):
    """The state of an attack that keeps nothing else."""

    points: Tensor
    best_points: Tensor
    best_loss: Tensor
    flipped: Tensor
    step: Tensor

    @classmethod
    def begin(cls, slots: Slots, points: Images) -> "SearchState":
        """Return the state of new items at these points, none of them scored."""
        count, device = len(points), points.device
        return cls(
            points=points,
            best_points=slots.images,
            best_loss=torch.full((count,), -torch.inf, device=device),
            flipped=torch.zeros(count, dtype=torch.bool, device=device),
            step=torch.zeros(count, dtype=torch.int64, device=device),
        )


def item_keys(ids: Labels, *, restarts: Labels, targets: Labels | None) -> Labels:
    """Make one key of (id, target, restart); the id itself for restart 0 without a target."""
    keys = ids + restarts * _RESTART_KEY
    return keys if targets is None else keys + (targets + 1) * _TARGET_KEY


def wide(each: Tensor) -> Tensor:
    """View values per slot, `(S,)`, so that they spread over images."""
    return each[:, None, None, None]


def replaced(old: Images, new: Images, rows: Flags) -> Images:
    """Take some rows of images from `new`, the others from `old`."""
    return chosen(wide(rows), new, old)


def observed(
    slots: Slots,
    state: S,
    values: PerExample,
    logits: Logits,
    *,
    inside: Flags | None = None,
) -> S:
    """Score the state's current points: keep the best so far, and note a first flip.

    `inside` says which points lie in the ball, for an attack that leaves it; only those count.
    A slot that has flipped keeps the point that it flipped with.
    """
    better, flipped = values > state.best_loss, state.flipped
    if slots.goal == "flip":
        wrong = logits.argmax(1) != slots.labels
        better = better | wrong  # a flip beats any loss
        flipped = flipped | (wrong if inside is None else wrong & inside)
    better = better if inside is None else better & inside
    better = better > state.flipped  # and not
    return cast(
        S,
        cast(Any, state)._replace(
            best_points=replaced(state.best_points, state.points, better),
            best_loss=torch.where(better, values, state.best_loss),
            flipped=flipped,
        ),
    )

"""Projected gradient ascent (Madry et al., ICLR 2018); FGSM, BIM and the inner attack of TRADES
are its recipes.

>>> import torch
>>> from robust_nc.threat import Ball
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
>>> images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
>>> ball = Ball("Linf", 8 / 255)
>>> attacked = PGD(steps=5)(model, images, labels, ball, seed=0, ids=torch.arange(5))
>>> bool(ball.contains(attacked, images).all())
True
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robust_nc.attacks.losses import LOSSES, NEEDS_REFERENCE
from robust_nc.attacks.pool import PooledAttack
from robust_nc.attacks.slots import SearchState, Slots, observed
from robust_nc.exceptions import InputError, unknown_name
from robust_nc.runtime import chosen, keyed_normal
from robust_nc.types import Images

Initial = Literal["uniform", "gaussian", "none"]

_GAUSSIAN_START = 0.001  # TRADES starts there: the gradient of the KL is zero at the image itself


class PGDState(NamedTuple):
    """State of projected gradient ascent; `reference` is `(S, 0)` for a loss that needs none."""

    points: Tensor
    best_points: Tensor
    best_loss: Tensor
    flipped: Tensor
    step: Tensor
    reference: Tensor


def _uniform(slots: Slots, stream: str) -> Images:
    return slots.ball.sample(slots.images, seed=slots.seed, ids=slots.keys(), stream=stream)


def _gaussian(slots: Slots, stream: str) -> Images:
    size = slots.images[0].numel()
    noise = keyed_normal(slots.seed, slots.keys(), stream, size).view_as(slots.images)
    return slots.ball.project(slots.images + _GAUSSIAN_START * noise, slots.images)


_INITIAL: dict[str, Callable[[Slots, str], Images]] = {
    "uniform": _uniform,
    "gaussian": _gaussian,
    "none": lambda slots, stream: slots.images,
}


def _straight(slots: Slots, points: Images, gradient: Images, length: float) -> Images:
    return points.add(slots.ball.steepest(gradient), alpha=length)


def _fill(slots: Slots, points: Images, gradient: Images, length: float) -> Images:
    """Steepest L1 step that stays in the pixel bounds: spend it in the order of the gradient.

    The plain one has a single coordinate, which is stuck once that pixel is at its bound.
    """
    low, high = slots.ball.bounds
    slope, place = gradient.flatten(1), points.flatten(1)
    order = slope.abs().argsort(1, descending=True)
    room = chosen(slope > 0, high - place, place - low).gather(1, order)
    room = room.clamp_max(_WIDEST)
    spent = (length - (room.cumsum(1) - room)).clamp_min(0).minimum(room)
    delta = torch.zeros_like(slope).scatter(1, order, spent) * slope.sign()
    return points + delta.view_as(points)


_WIDEST = 1e30  # room without a bound: sums of it are finite

# How to step where the steepest direction of the ball is not enough.
_MOVES: dict[str, Callable[[Slots, Images, Images, float], Images]] = {"L1": _fill}


@dataclass(frozen=True, kw_only=True)
class PGD(PooledAttack[PGDState]):
    """`steps` steps of length `step_size` (pixels; None: 2.5 eps / steps) up the loss.

    `loss` is a name of `losses.LOSSES`, taken of logits divided by `scale`. `initial` is a point
    drawn uniformly in the ball, the image plus 0.001 N(0, 1), or the image. Under
    `goal="maximise"` the point of highest loss is returned, or with `keep_best=False` the last.

    Passes per item: `steps` forward and backward, and one forward for the last point, saved by
    `keep_best=False` under `goal="maximise"` without restarts; one more forward for `loss="kl"`.
    """

    steps: int = 10
    step_size: float | None = None
    loss: str = "ce"
    initial: Initial = "uniform"
    keep_best: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, found {self.steps}")
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise InputError(f"step_size must be positive, or None, found {self.step_size}")
        if not 0 < self.scale < math.inf:
            raise InputError(f"scale must be positive and finite, found {self.scale}")
        if self.loss not in LOSSES:
            raise unknown_name("attack loss", self.loss, LOSSES)
        if self.initial not in _INITIAL:
            raise unknown_name("initial point", self.initial, _INITIAL)

    @property
    def rounds(self) -> int:
        """How many steps an item takes."""
        return self.steps

    def start(self, slots: Slots) -> PGDState:
        """Return the state of new items, at their starting points."""
        begun = SearchState.begin(slots, _INITIAL[self.initial](slots, f"pgd/{self.loss}"))
        read = self.loss in NEEDS_REFERENCE
        none = slots.images.new_empty(len(slots.images), 0)
        return PGDState(*begun, reference=slots.oracle.logits(slots.images) if read else none)

    def step(self, slots: Slots, state: PGDState) -> PGDState:
        """Score the current points and move each along its steepest direction."""
        values, logits, gradient = slots.oracle.gradient(
            state.points, lambda logits: self._value(slots, state, logits)
        )
        if self.keep_best or slots.goal == "flip":
            state = observed(slots, state, values, logits)
        length = 2.5 * slots.ball.eps / self.steps if self.step_size is None else self.step_size
        move = _MOVES.get(slots.ball.norm, _straight)
        moved = move(slots, state.points, gradient, length)
        return state._replace(points=slots.ball.project(moved, slots.images), step=state.step + 1)

    def finish(self, slots: Slots, state: PGDState) -> PGDState:
        """Score the last points where that matters."""
        if not (self.keep_best or slots.goal == "flip" or slots.contested):
            return state._replace(best_points=state.points)
        logits = slots.oracle.logits(state.points)
        return observed(slots, state, self._value(slots, state, logits), logits)

    def _value(self, slots: Slots, state: PGDState, logits: Tensor) -> Tensor:
        reference = self._scaled(state.reference) if self.loss in NEEDS_REFERENCE else None
        return LOSSES[self.loss](self._scaled(logits), slots.labels, slots.targets, reference)

    def _scaled(self, logits: Tensor) -> Tensor:
        return logits if self.scale == 1 else logits / self.scale


FGSM = functools.partial(PGD, steps=1, initial="none", keep_best=False)
"""The fast gradient sign method (Goodfellow et al., ICLR 2015): one step to the ball's surface."""

"""Square attack: a random search that asks for logits only (Andriushchenko et al., ECCV 2020).

It sees through models whose gradients lie, and needs no gradient at all.

>>> import torch
>>> from robust_nc.threat import Ball
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
>>> images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
>>> ball = Ball("L2", 0.5)
>>> with torch.no_grad():
...     attacked = Square(queries=10)(model, images, labels, ball, seed=0, ids=torch.arange(5))
>>> bool(ball.contains(attacked, images).all())
True
"""

import functools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robust_nc.attacks.losses import LOSSES, NEEDS_REFERENCE
from robust_nc.attacks.pool import PooledAttack
from robust_nc.attacks.slots import Slots, observed
from robust_nc.attacks.square_windows import PROPOSERS, STAGES, Draw
from robust_nc.exceptions import InputError, unknown_name
from robust_nc.types import Counts, Labels

_CHANGES = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # last query of each stage but one
_SCHEDULED = 10_000  # queries that those numbers are meant for
_STEP_KEY = -8663945395140668459  # odd and far from the constants of slots.py

assert len(_CHANGES) == STAGES - 1


class SquareState(NamedTuple):
    """State of the search: `points` are the candidates, drawn around `best_points`."""

    points: Tensor
    best_points: Tensor
    best_loss: Tensor
    flipped: Tensor
    step: Tensor


@dataclass(frozen=True, kw_only=True)
class Square(PooledAttack[SquareState]):
    """Random search over square windows: a candidate of higher loss is accepted.

    `loss` is a name of `losses.LOSSES`. `p_init` is the share of pixels in the first windows; it
    is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 queries, or with
    `rescale_schedule` after the same shares of `queries` (of 10,000). The defaults are those of
    AutoAttack. A window that would change nothing takes the other signs (Linf), and windows reach
    the last row and column, which AutoAttack's never do.

    Passes per item: `queries` + 1 forward, the first for the starting point; none backward.
    """

    queries: int = 5000
    p_init: float = 0.8
    rescale_schedule: bool = False
    loss: str = "margin"

    gradient_free: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 1:
            raise InputError(f"queries must be at least 1, found {self.queries}")
        if not 0 < self.p_init <= 1:
            raise InputError(f"p_init must be above 0 and at most 1, found {self.p_init}")
        if self.loss not in LOSSES or self.loss in NEEDS_REFERENCE:
            raise unknown_name("loss of Square", self.loss, set(LOSSES) - NEEDS_REFERENCE)

    @property
    def rounds(self) -> int:
        """How many steps an item takes: one for the starting point, one per query."""
        return self.queries + 1

    def start(self, slots: Slots) -> SquareState:
        """Return the state of new items, at their starting points, without a pass."""
        count, device = len(slots.images), slots.images.device
        return SquareState(
            points=PROPOSERS[slots.ball.norm].start(slots),
            best_points=slots.images,
            best_loss=torch.full((count,), -torch.inf, device=device),
            flipped=torch.zeros(count, dtype=torch.bool, device=device),
            step=torch.zeros(count, dtype=torch.int64, device=device),
        )

    def step(self, slots: Slots, state: SquareState) -> SquareState:
        """Score the candidates, accept those of higher loss, and propose the next ones."""
        logits = slots.oracle.logits(state.points)
        values = LOSSES[self.loss](logits, slots.labels, slots.targets, None)
        state = observed(slots, state, values, logits)
        draw = Draw(slots.keys() + state.step * _STEP_KEY, self.stages(state.step), self.p_init)
        return state._replace(
            points=PROPOSERS[slots.ball.norm].propose(slots, state.best_points, draw),
            step=state.step + 1,
        )

    def finish(self, slots: Slots, state: SquareState) -> SquareState:
        """Return the state: the candidates of the last step are left alone."""
        return state

    def stages(self, queries: Counts) -> Labels:
        """How often p has been halved at each query, `(S,)` int64, counted from 0."""
        if self.rescale_schedule:
            queries = queries * _SCHEDULED // self.queries
        return torch.bucketize(queries, _changes(queries.device))


@functools.lru_cache(maxsize=8)
def _changes(device: torch.device) -> Tensor:
    return torch.tensor(_CHANGES, device=device)

"""Auto-PGD: gradient ascent that sets its own step size (Croce and Hein, ICML 2020, algorithm 1;
in L1: Croce and Hein, ICML 2021).

>>> import torch
>>> from robust_nc.threat import Ball
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
>>> images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
>>> ball = Ball("L1", 2.0)
>>> attack = APGD(steps=10, loss="dlr", enlarged=True)
>>> attacked = attack(model, images, labels, ball, seed=0, ids=torch.arange(5))
>>> bool(ball.contains(attacked, images).all())
True
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_nc.attacks.apgd_rules import (
    FIRST_SHARE,
    PHASES,
    RULES,
    APGDState,
    Timetable,
    timetable,
    wide,
)
from robust_nc.attacks.losses import LOSSES, NEEDS_REFERENCE
from robust_nc.attacks.model_calls import Gradient
from robust_nc.attacks.pool import PooledAttack
from robust_nc.attacks.slots import Slots, observed, replaced
from robust_nc.exceptions import InputError, unknown_name
from robust_nc.types import Images, PerExample


@dataclass(frozen=True, kw_only=True)
class APGD(PooledAttack[APGDState]):
    """Auto-PGD: `steps` steps up the loss named by `loss` ("ce", "margin" or "dlr").

    The step halves at checkpoints where less than `rho` of the steps since the last one rose.
    `eot` forward passes are averaged at each point, for a model whose output is random.
    `enlarged` (L1 only) climbs in three phases within 3, 2 and 1 eps, of 30, 30 and 40 % of the
    steps, each from the projected peak of the phase before; only points in the ball count.

    Passes per item: `steps` forward and backward and one forward, times `eot`.
    """

    steps: int = 100
    loss: str = "ce"
    rho: float = 0.75
    eot: int = 1
    enlarged: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        least = len(PHASES) if self.enlarged else 1
        if self.steps < least:
            raise InputError(f"steps must be at least {least}, found {self.steps}")
        if self.eot < 1:
            raise InputError(f"eot must be at least 1, found {self.eot}")
        if not 0 < self.rho <= 1:
            raise InputError(f"rho must be above 0 and at most 1, found {self.rho}")
        if self.loss not in LOSSES.keys() - NEEDS_REFERENCE:
            raise unknown_name("attack loss", self.loss, LOSSES.keys() - NEEDS_REFERENCE)

    @property
    def rounds(self) -> int:
        """How many steps an item takes."""
        return self.steps

    def cost(self, num_classes: int) -> int:
        """Passes of an example that nothing breaks, about: for the time left."""
        return self.eot * super().cost(num_classes)

    def start(self, slots: Slots) -> APGDState:
        """Return the state of new items, at their starting points."""
        if self.enlarged and slots.ball.norm != "L1":
            raise InputError(
                f"enlarged is a schedule for the norm L1, found {slots.ball.norm}; leave it out"
            )
        radius = slots.ball.eps * (PHASES[0] if self.enlarged else 1.0)
        points = RULES[slots.ball.norm].draw(slots, f"apgd/{self.loss}", radius)
        pixels = slots.images[0].numel() if len(points) else 1
        whole = slots.labels.new_zeros(len(points))
        zero = slots.images.new_zeros(len(points))
        return APGDState(
            points=points,
            best_points=slots.images,
            best_loss=zero - torch.inf,
            flipped=whole.bool(),
            step=whole,
            previous=points,
            peak_points=points,
            peak_gradient=torch.zeros_like(points),
            peak_loss=zero - torch.inf,
            last_loss=zero,
            rises=whole,
            checked_loss=zero,
            reduced=whole.bool(),
            length=zero,
            width=whole + math.ceil(FIRST_SHARE * pixels),
            support=whole + pixels,
        )

    def step(self, slots: Slots, state: APGDState) -> APGDState:
        """Score the current points, set the steps that are due, and move."""
        norm, device = slots.ball.norm, state.step.device
        rule, table = (
            RULES[norm],
            timetable(norm, self.steps, enlarged=self.enlarged, device=device),
        )
        due = table.at(state.step)
        due = due._replace(radius=due.radius * slots.ball.eps)
        answer = self._gradient(slots, state.points)
        state = self._observed(slots, state, answer.values, answer.logits)
        state = _climbed(state, answer, due, rule.first_length)
        state, back = rule.check(slots, state, due, self.rho)
        state = state._replace(points=replaced(state.points, state.peak_points, back))
        gradient = torch.where(wide(back), state.peak_gradient, answer.gradient)
        moved = rule.move(slots, state, gradient, due)
        return state._replace(points=moved, previous=state.points, step=state.step + 1)

    def finish(self, slots: Slots, state: APGDState) -> APGDState:
        """Score the last points."""
        draws = [slots.oracle.logits(state.points) for _ in range(self.eot)]
        values = [self._value(slots, logits) for logits in draws]
        return self._observed(slots, state, _mean(values), _mean(draws))

    def _gradient(self, slots: Slots, points: Images) -> Gradient:
        draws = [
            slots.oracle.gradient(points, lambda logits: self._value(slots, logits))
            for _ in range(self.eot)
        ]
        return Gradient(*(_mean(parts) for parts in zip(*draws, strict=True)))

    def _value(self, slots: Slots, logits: Tensor) -> Tensor:
        return LOSSES[self.loss](logits, slots.labels, slots.targets, None)

    def _observed(
        self, slots: Slots, state: APGDState, values: PerExample, logits: Tensor
    ) -> APGDState:
        inside = slots.ball.contains(state.points, slots.images) if self.enlarged else None
        return observed(slots, state, values, logits, inside=inside)


def _mean(draws: Sequence[Tensor]) -> Tensor:
    total = draws[0]
    for draw in draws[1:]:
        total = total + draw
    return total / len(draws)


def _climbed(state: APGDState, answer: Gradient, due: Timetable, first_length: float) -> APGDState:
    """Note rises and the peak; begin the books anew where a phase opens."""
    values, opens = answer.values, due.opens
    higher = opens | (values > state.peak_loss)
    return state._replace(
        peak_points=replaced(state.peak_points, state.points, higher),
        peak_gradient=torch.where(wide(higher), answer.gradient, state.peak_gradient),
        peak_loss=torch.where(higher, values, state.peak_loss),
        last_loss=values,
        rises=torch.where(opens, 0, state.rises + (values > state.last_loss)),
        checked_loss=torch.where(opens, values, state.checked_loss),
        reduced=opens | state.reduced,
        length=torch.where(opens, first_length, state.length),
    )

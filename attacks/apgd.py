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

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robust_nc.attacks.losses import LOSSES, NEEDS_REFERENCE
from robust_nc.attacks.model_calls import Gradient
from robust_nc.attacks.pool import PooledAttack
from robust_nc.attacks.slots import Slots, observed, replaced, wide
from robust_nc.exceptions import InputError, unknown_name
from robust_nc.runtime import chosen, keyed_normal, keyed_uniform
from robust_nc.types import Counts, Flags, Images, PerExample


def into_ball_and_box(
    points: Images, origins: Images, radii: PerExample, bounds: tuple[float, float]
) -> Images:
    """Euclidean projection onto {|x - origin|_1 <= radius} within the pixel bounds (section 2.1).

    Each row has its own radius, in pixels. The answer is the change, cut to the room left to its
    pixel's bound after its size has shrunk by one threshold for the whole row. It is rounded
    towards the origin: in float32, D rounded values could add up to more than the ball's slack.
    """
    low, high = bounds
    centre = origins.flatten(1).double()
    change = points.flatten(1).double() - centre
    room = chosen(change > 0, high - centre, centre - low)
    size = change.abs()
    kept = (size - _threshold(size, room, radii.double())).clamp_min(0).minimum(room)
    rounded = (centre + kept * change.sign()).to(origins.dtype)
    over = (rounded.double() - centre).abs() > kept
    rounded = chosen(over, torch.nextafter(rounded, origins.flatten(1)), rounded)
    return rounded.clamp(low, high).view_as(origins)


def sparse_step(points: Images, gradient: Images, length: PerExample, width: Counts) -> Images:
    """Move by L1 `length`, spread evenly over the `width` pixels with the steepest slopes."""
    slope = gradient.flatten(1)
    steepness, pixels = slope.abs(), slope.shape[1]
    weakest = steepness.sort(1).values.gather(1, pixels - width[:, None])
    direction = slope.sign() * (steepness >= weakest)
    each = length / direction.abs().sum(1).clamp_min(1)
    return points + (direction * each[:, None]).view_as(points)


def changed(points: Images, origins: Images) -> Counts:
    """How many pixels differ from the origin, `(N,)`."""
    return (points != origins).flatten(1).sum(1)


def _threshold(size: Tensor, room: Tensor, radii: Tensor) -> Tensor:
    """Smallest t >= 0, `(N, 1)`, with sum of min(max(size - t, 0), room) at most the radius.

    The sum falls piecewise linearly in t: an entry begins to shrink at size - room and is gone at
    size. With these knots sorted, a running count of the shrinking entries is the slope.
    """
    knots, order = torch.cat([(size - room).clamp_min(0), size], 1).sort(1)
    shrinking = torch.where(order < size.shape[1], 1.0, -1.0).double().cumsum(1)
    whole = size.minimum(room).sum(1, keepdim=True)
    fallen = (knots.diff(dim=1) * shrinking[:, :-1]).cumsum(1)
    left = torch.cat([whole, whole - fallen], 1)
    last = ((left > radii[:, None]).sum(1, keepdim=True) - 1).clamp_min(0)  # knot before the radius
    excess = (left.gather(1, last) - radii[:, None]).clamp_min(0)
    found = knots.gather(1, last) + excess / shrinking.gather(1, last).clamp_min(1)
    return torch.where(whole > radii[:, None], found, 0.0)


FIRST_SHARE = 0.2  # of the pixels that the first L1 steps move
PHASES = (3.0, 2.0, 1.0)  # radii of the enlarged schedule, in eps


class APGDState(NamedTuple):
    """State of Auto-PGD; the peak is the point of highest loss of the phase, in its radius."""

    points: Tensor
    best_points: Tensor
    best_loss: Tensor
    flipped: Tensor
    step: Tensor
    previous: Tensor  # where the last move began
    peak_points: Tensor
    peak_gradient: Tensor
    peak_loss: Tensor
    last_loss: Tensor  # of the point before this one
    rises: Tensor  # steps that raised the loss since the last checkpoint
    checked_loss: Tensor  # of the peak, at the last checkpoint
    reduced: Tensor  # whether the last checkpoint halved the step
    length: Tensor  # of a step, in radii
    width: Tensor  # pixels that a step moves (L1)
    support: Tensor  # pixels that the peak changes, at the last checkpoint (L1)


class Timetable(NamedTuple):
    """What is due when the point of a step has been scored; one entry per step, `(steps,)`."""

    opens: Tensor  # the point is the first of its phase
    closes: Tensor  # the next point will be
    check: Tensor  # the point stands at a checkpoint
    window: Tensor  # steps since the checkpoint before, where it does
    radius: Tensor  # of the ball that the next point must lie in

    def at(self, step: Tensor) -> "Timetable":
        """Entries for slots at these steps, `(S,)` each."""
        return Timetable(*(column[step] for column in self))


_Checked = tuple[APGDState, Flags]  # the state, and which slots go on from their peak


@dataclass(frozen=True)
class Momentum:
    """Linf and L2: steepest steps with momentum; halved where they oscillate or gain nothing."""

    noise: Callable[[Slots, str], Images]

    first_length: ClassVar[float] = 2.0  # of the first steps, in radii
    PULL: ClassVar[float] = 0.75  # weight of the new step; the rest repeats the one before

    def windows(self, steps: int) -> list[int]:
        """Steps between checkpoints: 22 % of all, then 3 % less each time, down to 6 %."""
        first, less, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
        return [*range(first, least, -less), least]

    def draw(self, slots: Slots, stream: str, radius: float) -> Images:
        """Draw on the surface of the ball, then clip to the pixel bounds."""
        return slots.ball.project(slots.images + radius * self.noise(slots, stream), slots.images)

    def check(self, slots: Slots, state: APGDState, due: Timetable, rho: float) -> _Checked:
        """Halve the step where too few steps rose, or where the same step found no new peak."""
        oscillates = state.rises <= rho * due.window
        idle = ~state.reduced & (state.checked_loss >= state.peak_loss)
        halve = due.check & (oscillates | idle)
        state = state._replace(
            length=torch.where(halve, state.length / 2, state.length),
            reduced=torch.where(due.check, halve, state.reduced),
            checked_loss=torch.where(due.check, state.peak_loss, state.checked_loss),
            rises=torch.where(due.check, 0, state.rises),
        )
        return state, halve

    def move(self, slots: Slots, state: APGDState, gradient: Images, due: Timetable) -> Images:
        """Step, project, mix with the step before (none at the start), project."""
        ball, points = slots.ball, state.points
        steps = wide(state.length * ball.eps) * ball.steepest(gradient)
        fresh = ball.project(points + steps, slots.images)
        pull = wide(torch.where(due.opens, 1.0, self.PULL))
        mixed = points + pull * (fresh - points) + (1 - pull) * (points - state.previous)
        return ball.project(mixed, slots.images)


@dataclass(frozen=True)
class Sparse:
    """L1: steps along few pixels, fewer as the peak grows sparser; no momentum."""

    first_length: ClassVar[float] = 1.0
    least_length: ClassVar[float] = 0.1
    SHORTER: ClassVar[float] = 1.5  # each window, of the step and of the peak's support
    SPARSER: ClassVar[float] = 0.95

    def windows(self, steps: int) -> list[int]:
        """Windows of 4 % of the steps."""
        return [max(int(0.04 * steps), 1)]

    def draw(self, slots: Slots, stream: str, radius: float) -> Images:
        """Gaussian noise, projected onto the ball and the box."""
        size = slots.images[0].numel()
        noise = keyed_normal(slots.seed, slots.keys(), stream, size).view_as(slots.images)
        radii = noise.new_full((len(noise),), radius)
        return into_ball_and_box(slots.images + noise, slots.images, radii, slots.ball.bounds)

    def check(self, slots: Slots, state: APGDState, due: Timetable, rho: float) -> _Checked:
        """Begin again at full length where the peak became sparser, else shorten the step."""
        support = changed(state.peak_points, slots.images)
        sparser = due.opens | (support < self.SPARSER * state.support)
        shorter = (state.length / self.SHORTER).clamp_min(self.least_length)
        length = torch.where(sparser, self.first_length, shorter)
        # Fewer in any case: rounded up, two pixels would stay two for ever.
        width = (support / self.SHORTER).ceil().long().minimum(support - 1).clamp_min(1)
        state = state._replace(
            length=torch.where(due.check, length, state.length),
            width=torch.where(due.check, width, state.width),
            support=torch.where(due.check, support, state.support),
        )
        return state, due.check & sparser

    def move(self, slots: Slots, state: APGDState, gradient: Images, due: Timetable) -> Images:
        """Step and project; at the end of a phase, project the peak."""
        moved = sparse_step(state.points, gradient, state.length * due.radius, state.width)
        moved = replaced(moved, state.peak_points, due.closes)
        return into_ball_and_box(moved, slots.images, due.radius, slots.ball.bounds)


def _in_the_cube(slots: Slots, stream: str) -> Images:
    size = slots.images[0].numel()
    noise = keyed_uniform(slots.seed, slots.keys(), stream, size) * 2 - 1
    return (noise / noise.abs().amax(1, keepdim=True)).view_as(slots.images)


def _on_the_sphere(slots: Slots, stream: str) -> Images:
    size = slots.images[0].numel()
    noise = keyed_normal(slots.seed, slots.keys(), stream, size).view_as(slots.images)
    return slots.ball.steepest(noise)


RULES: dict[str, Momentum | Sparse] = {
    "Linf": Momentum(_in_the_cube),
    "L2": Momentum(_on_the_sphere),
    "L1": Sparse(),
}


@functools.lru_cache(maxsize=64)
def timetable(norm: str, steps: int, *, enlarged: bool, device: torch.device) -> Timetable:
    """Lay out the phases (of 30, 30 and 40 % of the steps, or one) and their checkpoints.

    Enlarged phases take the width of their steps from where they begin: a checkpoint too. Slots are
    at different steps, so what is due is looked up here, per slot.

    >>> table = timetable("Linf", 100, enlarged=False, device=torch.device("cpu"))
    >>> table.check.nonzero().flatten().tolist()
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    short = max(3 * steps // 10, 1)
    phases = [short, short, steps - 2 * short] if enlarged else [steps]
    radii = PHASES if enlarged else PHASES[-1:]
    window = [ends for length in phases for ends in _windows(RULES[norm].windows(length), length)]
    opens = [place == 0 for length in phases for place in range(length)]
    radius = [radius for radius, length in zip(radii, phases, strict=True) for _ in range(length)]
    due = torch.tensor(window, device=device), torch.tensor(opens, device=device)
    return Timetable(
        opens=due[1],
        closes=torch.tensor([*opens[1:], False], device=device),
        check=(due[0] > 0) | (due[1] & enlarged),
        window=due[0],
        radius=torch.tensor([*radius[1:], radius[-1]], device=device),
    )


def _windows(windows: list[int], steps: int) -> list[int]:
    """Length of the window that ends at each step of a phase, 0 where none does."""
    ends = [0] * steps
    windows = windows + [windows[-1]] * steps
    for end, window in zip(itertools.accumulate(windows), windows, strict=True):
        if end < steps:
            ends[end] = window
    return ends


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
        rule = RULES[norm]
        due = timetable(norm, self.steps, enlarged=self.enlarged, device=device).at(state.step)
        due = due._replace(radius=due.radius * slots.ball.eps)
        answer = self._gradient(slots, state.points)
        state = self._observed(slots, state, answer.values, answer.logits)
        state = _climbed(state, answer, due, rule.first_length)
        state, back = rule.check(slots, state, due, self.rho)
        state = state._replace(points=replaced(state.points, state.peak_points, back))
        gradient = replaced(answer.gradient, state.peak_gradient, back)
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
    if len(draws) == 1:
        return draws[0]
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
        peak_gradient=replaced(state.peak_gradient, answer.gradient, higher),
        peak_loss=torch.where(higher, values, state.peak_loss),
        last_loss=values,
        rises=torch.where(opens, 0, state.rises + (values > state.last_loss)),
        checked_loss=torch.where(opens, values, state.checked_loss),
        reduced=opens | state.reduced,
        length=torch.where(opens, first_length, state.length),
    )

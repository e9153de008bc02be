"""FAB, the fast adaptive boundary attack (Croce and Hein, ICML 2020).

It walks along the decision boundary towards the image: the model is made linear at each point,
and the next point is a mix of the nearest points of that hyperplane to the current point and to
the image, a little beyond it.

>>> import torch
>>> from robust_nc.threat import Ball
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
>>> images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
>>> ball = Ball("L2", 0.5)
>>> attacked = FAB(steps=5)(model, images, labels, ball, seed=0, ids=torch.arange(5))
>>> bool(ball.contains(attacked, images).all())
True
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robust_nc.attacks.losses import LOSSES
from robust_nc.attacks.model_calls import Gradient
from robust_nc.attacks.pool import PooledAttack
from robust_nc.attacks.slots import SearchState, Slots, observed, replaced
from robust_nc.exceptions import InputError
from robust_nc.runtime import chosen
from robust_nc.threat import NORMS, Ball
from robust_nc.types import Flags, Images, Labels, Logits, PerExample

_DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
_TINY = 1e-12

Doubt = Callable[[Tensor], None] | None  # where to tell, by infinity, that steps were too few


@dataclass(frozen=True, kw_only=True)
class FAB(PooledAttack[SearchState]):
    """`steps` steps towards the nearest point that the model takes for another class.

    `alpha_max` bounds the pull towards the image, `eta` is how far a step goes beyond the
    hyperplane, and `beta` how much of a misclassified point's distance is kept. The first restart
    begins at the image, the others at distance eps / 2. With targets, the hyperplane is between
    the label and the target; without, it is the nearest of all other classes.

    The original takes one forward pass to see whether a point is misclassified, and a forward and
    a backward pass where it goes from there. Here the pass that scores a point also gives the
    hyperplane, though the step may begin closer to the image (by `beta`) than where it was taken.
    A misclassified point counts if it lies in the ball; the last point is first put into it.

    Passes per item: with targets `steps` forward and backward, and one forward; without, K - 1
    times as many for the `steps` (one for each difference of logits), and one forward.
    """

    steps: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, found {self.steps}")
        if not 0 <= self.alpha_max <= 1:
            raise InputError(f"alpha_max must lie in 0..1, found {self.alpha_max}")
        if not 1 <= self.eta < math.inf:
            raise InputError(f"eta must be at least 1 and finite, found {self.eta}")
        if not 0 < self.beta <= 1:
            raise InputError(f"beta must be above 0 and at most 1, found {self.beta}")

    @property
    def rounds(self) -> int:
        """How many steps an item takes."""
        return self.steps

    def cost(self, num_classes: int) -> int:
        """Passes of an example that nothing breaks, about: for the time left."""
        planes = num_classes - 1 if self.num_targets is None else 1
        return planes * super().cost(num_classes)

    def start(self, slots: Slots) -> SearchState:
        """Return the state of new items; later `points` leave the ball."""
        return SearchState.begin(slots, _starting_points(slots))

    def step(self, slots: Slots, state: SearchState) -> SearchState:
        """Score the current points and go on from each to the hyperplane found there."""
        plane = _hyperplane(slots, state.points)
        inside = slots.ball.distance(state.points, slots.images) <= slots.ball.eps
        state = observed(slots, state, _margin(slots, plane.logits), plane.logits, inside=inside)
        wrong = plane.logits.argmax(1) != slots.labels
        rows = _ROWS if wrong.device.type == "cpu" else len(wrong)
        given = (slots.images, state.points, plane.values, plane.gradient, wrong)
        doubt = slots.oracle.doubt if slots.oracle.hasty else None
        pieces = zip(*(torch.split(one, rows) for one in given), strict=True)
        moved = [self._moved(slots.ball, doubt, *piece) for piece in pieces]
        points = moved[0] if len(moved) == 1 else torch.cat(moved)
        return state._replace(points=points, step=state.step + 1)

    def finish(self, slots: Slots, state: SearchState) -> SearchState:
        """Score the last points, put into the ball: outside of it they would not count."""
        state = state._replace(points=slots.ball.project(state.points, slots.images))
        logits = slots.oracle.logits(state.points)
        return observed(slots, state, _margin(slots, logits), logits)

    def _moved(
        self,
        ball: Ball,
        doubt: Doubt,
        images: Images,
        points: Images,
        values: PerExample,
        gradient: Images,
        wrong: Flags,
    ) -> Images:
        """Mix the nearest points of the hyperplane to the point and to the image (eq. 8)."""
        norm, bounds = ball.norm, ball.bounds
        back = replaced(points, images.lerp(points, self.beta), wrong)
        begins = torch.stack([back, images]).flatten(2)
        slopes = gradient.flatten(1)
        values = values + (slopes * (begins - points.flatten(1))).sum(-1)
        moves = PROJECTIONS[norm](values, slopes[None], begins, bounds, doubt)
        lengths = NORMS[norm].size(moves.flatten(0, 1)).view(2, -1).clamp_min(1e-8)
        pull = (lengths[0] / lengths.sum(0)).clamp_max(self.alpha_max)[:, None]
        beyond = begins + self.eta * moves
        return beyond[0].lerp(beyond[1], pull).clamp(*bounds).view_as(points)


def _starting_points(slots: Slots) -> Images:
    """Return the image for the first restart, a point at distance eps / 2 for the others."""
    norm = NORMS[slots.ball.norm]
    shape = (len(slots.images), slots.images[0].numel())
    draw = norm.sample(shape, slots.seed, slots.keys(), "fab")
    length = torch.where(slots.restarts > 0, slots.ball.eps / 2, 0.0)
    delta = draw * (length / norm.size(draw).clamp_min(_TINY))[:, None]
    return (slots.images + delta.view_as(slots.images)).clamp(*slots.ball.bounds)


def _hyperplane(slots: Slots, points: Images) -> Gradient:
    """Values, logits and gradients of the difference of logits that is to become zero."""
    if slots.targets is not None:
        return slots.oracle.gradient(points, lambda logits: _margin(slots, logits))
    nearest = slots.oracle.gradient(points, _difference(slots.labels, 1))
    shortest = _length(slots, nearest)
    for turn in range(2, nearest.logits.shape[1]):
        other = slots.oracle.gradient(points, _difference(slots.labels, turn))
        length = _length(slots, other)
        nearer = length < shortest
        shortest = torch.where(nearer, length, shortest)
        nearest = nearest._replace(
            values=torch.where(nearer, other.values, nearest.values),
            gradient=replaced(nearest.gradient, other.gradient, nearer),
        )
    return nearest


def _difference(labels: Labels, turn: int) -> Callable[[Tensor], Tensor]:
    """Logit of the class that comes `turn` places after the label, minus the label's."""

    def loss(logits: Tensor) -> Tensor:
        return LOSSES["margin"](logits, labels, (labels + turn) % logits.shape[1], None)

    return loss


def _length(slots: Slots, plane: Gradient) -> PerExample:
    """Distance of the points from their hyperplanes, the pixel bounds aside."""
    slope = NORMS[_DUAL[slots.ball.norm]].size(plane.gradient.flatten(1))
    return plane.values.abs() / (slope + _TINY)


def _margin(slots: Slots, logits: Logits) -> PerExample:
    return LOSSES["margin"](logits, slots.labels, slots.targets, None)


Values = Float[Tensor, "*rows"]
Pixels = Float[Tensor, "*rows d"]
Slopes = Float[Tensor, "*#rows d"]
Bounds = tuple[float, float]

_ROWS = 32  # that move at a time on a CPU: their temporaries stay in its cache
_NEWTON_STEPS = 12  # each cuts (what is missing) x (slope of the gain) to a quarter or less
_HASTY_STEPS = 7  # nearly always enough: most often three or four are, and one more shows it
_CLOSE = 1e-6  # of what was to be gained
_LEAST = 1e-37
_LONGEST = 1e30  # finite, because pixels without a slope move at rate zero


def _linf(
    values: Values, gradients: Slopes, points: Pixels, bounds: Bounds, doubt: Doubt = None
) -> Pixels:
    """Move every pixel by the same length, or to its bound (Croce and Hein, 2020, eq. 4).

    `values` and `gradients` of a linear function, `points` `(..., D)`. Returns the move
    `(..., D)` of least maximum norm that makes the function zero; where the bounds keep zero out
    of reach, the one that comes nearest. Pixels without a slope do not move. With `doubt` it takes
    fewer steps of Newton's method, and tells infinity where they were not enough.

    >>> value, gradient = torch.tensor([-1.0]), torch.tensor([[2.0, 2.0, 1.0]])
    >>> _linf(value, gradient, torch.tensor([[0.0, 0.9, 0.0]]), (0.0, 1.0))
    tensor([[0.2667, 0.1000, 0.2667]])
    """
    weight, need, room, sign = _problem(values, gradients, points, bounds)
    return _capped(weight, (weight > 0).to(weight.dtype), need, room, sign, doubt)


def _l2(
    values: Values, gradients: Slopes, points: Pixels, bounds: Bounds, doubt: Doubt = None
) -> Pixels:
    """Move every pixel in proportion to its slope, or to its bound; else as `_linf`."""
    weight, need, room, sign = _problem(values, gradients, points, bounds)
    return _capped(weight, weight, need, room, sign, doubt)


def _l1(
    values: Values, gradients: Slopes, points: Pixels, bounds: Bounds, doubt: Doubt = None
) -> Pixels:
    """Move the pixels of steepest slope to their bounds, as many as it takes; else as `_linf`.

    In float64: a rounding error in what is still missing, over a small slope, is a large move.
    """
    weight, need, room, sign = _problem(values, gradients, points, bounds)
    ordered, order = weight.sort(-1, descending=True)
    order = order.expand_as(room)
    room, ordered = room.gather(-1, order).clamp_max(_LONGEST), ordered.double()
    gain = ordered * room
    missing = (need.double()[..., None] - (gain.cumsum(-1) - gain)).clamp_min(0)
    spent = (missing / ordered.clamp_min(_LEAST)).to(room.dtype).minimum(room)
    return torch.zeros_like(room).scatter(-1, order, spent) * sign


# The smallest move onto the hyperplane where a linear function of the pixels, given by its value at
# the point and its gradient, is zero, within the pixel bounds; leading axes broadcast.
PROJECTIONS: dict[str, Callable[..., Tensor]] = {
    "Linf": _linf,
    "L2": _l2,
    "L1": _l1,
}


def _problem(
    values: Tensor, gradients: Tensor, points: Tensor, bounds: Bounds
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slopes (at most one), what to gain, how far each pixel may move, and in which direction."""
    low, high = bounds
    weight = gradients.abs()
    scale = weight.amax(-1, keepdim=True).clamp_min(_LEAST)
    sign = -gradients.sign() * values.sign()[..., None]
    room = chosen(sign > 0, high - points, points - low).clamp_min(0)
    return weight / scale, values.abs() / scale.squeeze(-1), room, sign


def _capped(
    weight: Tensor, rate: Tensor, need: Tensor, room: Tensor, sign: Tensor, doubt: Doubt
) -> Tensor:
    """Move pixels by min(t rate, room), with t such that the function becomes zero.

    The gain is concave in t and linear between the t where a pixel meets its bound, so Newton's
    method comes to the root from below, and stops there without error; no sort is needed.
    """
    slope, close = weight * rate, _CLOSE * need
    time = torch.zeros_like(need)[..., None]
    reached, part = torch.empty_like(room), torch.empty_like(room)  # written anew by every step
    for left in reversed(range(_HASTY_STEPS if doubt else _NEWTON_STEPS)):
        torch.mul(rate, time, out=reached)
        missing = need - torch.minimum(reached, room, out=part).mul_(weight).sum(-1)
        free = torch.lt(reached, room, out=part).mul_(slope).sum(-1)
        solved = (missing <= close) | (free <= 0)
        if free.device.type == "cpu" and bool(solved.all()):
            break  # here a look costs nothing; more steps would change nothing
        if doubt and not left:
            break  # the last one only shows whether those before were enough
        longer = torch.where(solved, 0, missing / free.clamp_min(_LEAST))
        time = (time + longer[..., None]).clamp_max(_LONGEST)
    if doubt:
        doubt(torch.where(solved, 0.0, torch.inf).sum())
    return torch.mul(rate, time, out=reached).minimum(room).mul_(sign)

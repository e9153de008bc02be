"""The step that FAB takes: the smallest move onto a hyperplane that stays in the pixel bounds.

The hyperplane is where a linear function of the pixels is zero, given by its value at the point
and its gradient. `PROJECTIONS` has one projection for each norm of `Ball`; each broadcasts over
leading axes, so that several points share a gradient.

>>> import torch
>>> value, gradient = torch.tensor([-1.0]), torch.tensor([[2.0, 2.0, 1.0]])
>>> point = torch.tensor([[0.0, 0.9, 0.0]])
>>> PROJECTIONS["Linf"](value, gradient, point, (0.0, 1.0))
tensor([[0.2667, 0.1000, 0.2667]])
>>> PROJECTIONS["L1"](value, gradient, point, (0.0, 1.0)).sum()
tensor(0.5000)
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Values = Float[Tensor, "*rows"]
Pixels = Float[Tensor, "*rows d"]
Slopes = Float[Tensor, "*#rows d"]
Bounds = tuple[float, float]

_NEWTON_STEPS = 12  # each cuts (what is missing) x (slope of the gain) to a quarter or less
_CLOSE = 1e-6  # of what was to be gained
_TINY = 1e-37
_LONGEST = 1e30  # finite, because pixels without a slope move at rate zero


def linf(values: Values, gradients: Slopes, points: Pixels, bounds: Bounds) -> Pixels:
    """Move every pixel by the same length, or to its bound (Croce and Hein, 2020, eq. 4).

    `values` and `gradients` of a linear function, `points` `(..., D)`. Returns the move
    `(..., D)` of least maximum norm that makes the function zero; where the bounds keep zero out
    of reach, the one that comes nearest. Pixels without a slope do not move.
    """
    return _capped(values, gradients, points, bounds, lambda weight: (weight > 0).to(weight.dtype))


def l2(values: Values, gradients: Slopes, points: Pixels, bounds: Bounds) -> Pixels:
    """Move every pixel in proportion to its slope, or to its bound; else as `linf`."""
    return _capped(values, gradients, points, bounds, lambda weight: weight)


def l1(values: Values, gradients: Slopes, points: Pixels, bounds: Bounds) -> Pixels:
    """Move the pixels of steepest slope to their bounds, as many as it takes; else as `linf`.

    In float64: a rounding error in what is still missing, over a small slope, is a large move.
    """
    weight, need, room, sign = _problem(values, gradients, points, bounds)
    ordered, order = weight.sort(-1, descending=True)
    order = order.expand_as(room)
    room, ordered = room.gather(-1, order), ordered.double()
    gain = ordered * room
    missing = (need.double()[..., None] - (gain.cumsum(-1) - gain)).clamp_min(0)
    spent = (missing / ordered.clamp_min(_TINY)).to(room.dtype).minimum(room)
    return torch.zeros_like(room).scatter(-1, order, spent) * sign


PROJECTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Bounds], Tensor]] = {
    "Linf": linf,
    "L2": l2,
    "L1": l1,
}


def _problem(
    values: Tensor, gradients: Tensor, points: Tensor, bounds: Bounds
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slopes (at most one), what to gain, how far each pixel may move, and in which direction."""
    low, high = bounds
    weight = gradients.abs()
    scale = weight.amax(-1, keepdim=True).clamp_min(_TINY)
    sign = -gradients.sign() * values.sign()[..., None]
    room = torch.where(sign > 0, high - points, points - low).clamp_min(0)
    return weight / scale, values.abs() / scale.squeeze(-1), room, sign


def _capped(
    values: Tensor,
    gradients: Tensor,
    points: Tensor,
    bounds: Bounds,
    speed: Callable[[Tensor], Tensor],
) -> Tensor:
    """Move pixels by min(t speed, room), with t such that the function becomes zero.

    The gain is concave in t and linear between the t where a pixel meets its bound, so Newton's
    method comes to the root from below, and stops there without error; no sort is needed.
    """
    weight, need, room, sign = _problem(values, gradients, points, bounds)
    rate = speed(weight)
    slope = weight * rate
    time = torch.zeros_like(need)[..., None]
    for _ in range(_NEWTON_STEPS):
        reached = rate * time
        missing = need - _dot(weight, torch.minimum(reached, room))
        free = _dot(slope, (reached < room).to(room.dtype))
        solved = (missing <= _CLOSE * need) | (free <= 0)
        if not free.is_cuda and bool(solved.all()):
            break  # here a look costs nothing; more steps would change nothing
        longer = torch.where(solved, 0, missing / free.clamp_min(_TINY))
        time = (time + longer[..., None]).clamp_max(_LONGEST)
    return torch.minimum(rate * time, room) * sign


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(-1)

"""What Auto-PGD does differently in L1 (Croce and Hein, ICML 2021, "Mind the box").

Steps are sparse, and points are projected onto the ball *and* the pixel box at once: to project
onto the ball, then clip, would leave much of the ball's radius unspent.

>>> import torch
>>> images = torch.tensor([[[[0.9, 0.5]]]])
>>> points = into_ball_and_box(images + 1, images, torch.tensor([0.4]), (0.0, 1.0))
>>> [round(float(value), 3) for value in points.flatten()]
[1.0, 0.8]
"""

import torch
from torch import Tensor

from robust_nc.types import Counts, Images, PerExample


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
    room = torch.where(change > 0, high - centre, centre - low)
    size = change.abs()
    kept = (size - _threshold(size, room, radii.double())).clamp_min(0).minimum(room)
    rounded = (centre + kept * change.sign()).to(origins.dtype)
    over = (rounded.double() - centre).abs() > kept
    rounded = torch.where(over, torch.nextafter(rounded, origins.flatten(1)), rounded)
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

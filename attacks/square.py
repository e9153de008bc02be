"""Square attack: a random search that asks for logits only (Andriushchenko et al., ECCV 2020).

It sees through models whose gradients lie, and needs no gradient at all. It moves by random square
windows in which the perturbation is written anew. Linf: vertical stripes at first, then a window at
a corner of the cube, per channel. L2 and L1: bumps of both signs, first on a grid, then one window
that takes over the budget of another (algorithms 2 and 3; L1 as in AutoAttack).

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
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robust_nc.attacks.losses import LOSSES, NEEDS_REFERENCE
from robust_nc.attacks.pool import PooledAttack
from robust_nc.attacks.slots import SearchState, Slots, observed, wide
from robust_nc.exceptions import InputError, unknown_name
from robust_nc.runtime import chosen, keyed_uniform
from robust_nc.types import Counts, Features, Flags, Images, Labels

STAGES = 10  # p halves from each stage to the next
_TILES = 5  # bumps along the shorter side of the first perturbation
_TINY = 1e-12
_SEARCH = 8  # evaluations of the threshold of the L1 projection; see the tests
_ROUNDING = 1e-6  # of the radius, so that sums in float32 stay within it


class Draw(NamedTuple):
    """What the proposals of one step depend on: keys `(S,)`, stages `(S,)` and the first p."""

    keys: Tensor
    stages: Tensor
    p_init: float


class Stripes:
    """Linf: every value at +eps or -eps, in stripes of width one, then in windows.

    Of each slot a first point, then neighbours of the accepted one, in the ball and the bounds.
    """

    def start(self, slots: Slots) -> Images:
        """Move each column of each channel up or down by eps."""
        count, channels, _, width = slots.images.shape
        draws = keyed_uniform(slots.seed, slots.keys(), "square/start", channels * width)
        return _corner(slots, _signs(draws).view(count, channels, 1, width))

    def propose(self, slots: Slots, accepted: Images, draw: Draw) -> Images:
        """Move one window of each channel up or down by eps; other signs where nothing changes."""
        _, channels, height, width = accepted.shape
        draws = keyed_uniform(slots.seed, draw.keys, "square", 2 + channels)
        sizes = _sizes(height, width, draw.p_init, 1, False, accepted.device)[draw.stages]
        rows, columns = _offsets(draws[:, 0], sizes, height), _offsets(draws[:, 1], sizes, width)
        inside = _window(rows, columns, sizes)
        signs = _signs(draws[:, 2:])[:, :, None, None]
        fresh = torch.lerp(accepted, _corner(slots, signs), inside)
        other = torch.lerp(accepted, _corner(slots, -signs), inside)
        idle = (fresh - accepted).abs_().flatten(1).amax(1) == 0
        return torch.lerp(fresh, other, wide(idle.float()))


@dataclass(frozen=True)
class Bumps:
    """L2 (`order` 2) and L1 (`order` 1): bumps of both signs that share the radius.

    The mass of a perturbation is the sum of its |values|^order. A window takes over its own mass,
    that of a second window, which is emptied, and what the pixel bounds have left unused.
    """

    order: int

    def start(self, slots: Slots) -> Images:
        """Put bumps on a grid of 5 by 5 tiles, with signs per tile and channel."""
        count, channels, height, width = slots.images.shape
        tile = max(min(height, width) // _TILES, 1)
        down, across = height // tile, width // tile
        draws = keyed_uniform(
            slots.seed, slots.keys(), "square/start", (channels + 1) * down * across
        ).view(count, channels + 1, down, across)
        draws = draws.repeat_interleave(tile, 2).repeat_interleave(tile, 3)
        bump = _bump(tile, self.order).to(draws)
        bumps = torch.where(
            draws[:, :1] < 0.5, bump.repeat(down, across), bump.mT.repeat(down, across)
        )
        top, left = (height - down * tile) // 2, (width - across * tile) // 2
        delta = torch.zeros_like(slots.images)
        area = (..., slice(top, top + down * tile), slice(left, left + across * tile))
        delta[area] = bumps * _signs(draws[:, 1:])
        whole = wide(self._root(self._mass(delta).sum((1, 2, 3))))
        return _FIT[self.order](slots, delta * (slots.ball.eps / whole).clamp_min(1))

    def propose(self, slots: Slots, accepted: Images, draw: Draw) -> Images:
        """Write a bump, plus what was there, into one window, and empty another."""
        _, channels, height, width = accepted.shape
        draws = keyed_uniform(slots.seed, draw.keys, "square", 5 + channels)
        sizes = _sizes(height, width, draw.p_init, 3, True, accepted.device)[draw.stages]
        rows, columns = _offsets(draws[:, 0], sizes, height), _offsets(draws[:, 1], sizes, width)
        table = _bumps(height, width, draw.p_init, self.order, accepted.device)
        bump = _placed(table, draw.stages, rows, columns, sizes, turned=draws[:, 4] < 0.5)
        first = _window(rows, columns, sizes)
        second = _window(
            _offsets(draws[:, 2], sizes, height), _offsets(draws[:, 3], sizes, width), sizes
        )
        either = torch.maximum(first, second)
        delta = accepted - slots.images
        mass = self._mass(delta)
        unused = (slots.ball.eps**self.order - mass.sum((1, 2, 3), keepdim=True)).clamp_min(0)
        freed = (mass * either).sum((2, 3), keepdim=True)
        there = (mass * first).sum((2, 3), keepdim=True)
        signs = _signs(draws[:, 5:])[:, :, None, None]
        fresh = (delta / (self._root(there) + _TINY)).mul_(first).addcmul_(bump, signs)
        size = self._root(self._mass(fresh).sum((2, 3), keepdim=True)) + _TINY
        gain = channels ** (2 - self.order)  # AutoAttack's: the projection of L1 then sharpens
        weight = self._root(unused / channels + freed) * gain / size
        return _FIT[self.order](slots, torch.lerp(delta, fresh.mul_(weight), either))

    def _mass(self, delta: Tensor) -> Tensor:
        return delta.square() if self.order == 2 else delta.abs()

    def _root(self, mass: Tensor) -> Tensor:
        return mass.sqrt() if self.order == 2 else mass


def window_sizes(
    height: int, width: int, *, p_init: float, smallest: int = 1, odd: bool = False
) -> tuple[int, ...]:
    """Side of the windows at each stage: a share p of the pixels, p halved from stage to stage.

    At least `smallest` (and `odd`: made odd upwards) and at most the shorter side of the image.

    >>> window_sizes(28, 28, p_init=0.8)
    (25, 18, 13, 9, 6, 4, 3, 2, 2, 1)
    """
    sides = [max(round(math.sqrt(p_init / 2**k * height * width)), smallest) for k in range(STAGES)]
    return tuple(min(side | 1 if odd else side, height, width) for side in sides)


def _into_ball_and_box(slots: Slots, delta: Images) -> Images:
    """Project `images + delta` onto the L1 ball within the pixel bounds: Euclidean, nearly.

    All values shrink by one threshold, then stop at the bounds. The threshold is bracketed by
    Newton steps, as the sum of the values is piecewise linear in it; then the two ends are mixed,
    which spends the whole radius however far the search came. A sort takes several times as long.
    """
    low, high = slots.ball.bounds
    images, flat = slots.images.flatten(1), delta.flatten(1)
    room = chosen(flat > 0, high - images, images - low)
    kept = _shrunk(flat.abs(), room, slots.ball.eps).copysign(flat)
    points = images + kept
    over = (points - images).abs() > kept.abs()  # rounded away from the image: values add up
    points = chosen(over, torch.nextafter(points, images), points)
    return points.clamp(low, high).view_as(delta)


def _shrunk(size: Features, room: Features, eps: float | int) -> Features:
    """Sizes less a threshold, cut to the room, so that each row sums to at most eps."""
    radius = eps * (1 - _ROUNDING)
    upper = size.amax(1, keepdim=True)
    lower = threshold = torch.zeros_like(upper)
    for _ in range(_SEARCH):
        left = size - threshold
        excess = left.clamp_min(0).minimum(room).sum(1, keepdim=True) - radius
        slope = ((left > 0) & (left < room)).sum(1, keepdim=True)
        upper = torch.where(excess <= 0, threshold, upper)
        lower = torch.where(excess <= 0, lower, threshold)
        newton = threshold + excess / slope.clamp_min(1)
        good = (newton > lower) & (newton < upper)
        threshold = torch.where(good, newton, (lower + upper) / 2)
    more = (size - lower).clamp_min_(0).minimum(room)
    less = (size - upper).clamp_min_(0).minimum(room)
    spent = less.sum(1, keepdim=True)
    share = (radius - spent) / (more.sum(1, keepdim=True) - spent).clamp_min(_TINY)
    return torch.lerp(less, more, share.clamp(0, 1))


def _onto_sphere(slots: Slots, delta: Images) -> Images:
    """Scale to length eps, then clip to the pixel bounds."""
    scale = slots.ball.eps / (torch.linalg.vector_norm(delta, dim=(1, 2, 3)) + _TINY)
    return (slots.images + delta * wide(scale)).clamp_(*slots.ball.bounds)


_FIT = {1: _into_ball_and_box, 2: _onto_sphere}

PROPOSERS: dict[str, Stripes | Bumps] = {"Linf": Stripes(), "L2": Bumps(2), "L1": Bumps(1)}


def _corner(slots: Slots, signs: Tensor) -> Images:
    return (slots.images + slots.ball.eps * signs).clamp_(*slots.ball.bounds)


def _signs(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0)


def _offsets(draws: Tensor, sizes: Labels, length: int) -> Tensor:
    """Where each of `length` places lies in a window placed by a draw: `(S, length)`, from 0."""
    first = (draws * (length - sizes + 1)).long()
    return torch.arange(length, device=draws.device) - first[:, None]


def _within(offsets: Tensor, sizes: Labels) -> Tensor:
    return (offsets >= 0) & (offsets < sizes[:, None])


def _window(rows: Tensor, columns: Tensor, sizes: Labels) -> Tensor:
    """Mask of the windows, `(S, 1, H, W)`: ones and zeros.

    As floats, for products and `torch.lerp`, which is exact there: `torch.where` on the CPU takes
    several times as long.
    """
    down, across = _within(rows, sizes).float(), _within(columns, sizes).float()
    return down[:, None, :, None] * across[:, None, None, :]


def _placed(
    table: Tensor, stages: Labels, rows: Tensor, columns: Tensor, sizes: Labels, *, turned: Flags
) -> Images:
    """Put each stage's bump into its window, `(S, 1, H, W)`: zero outside, turned or not."""
    edge = table.shape[-1]  # the last row and column of the table are zero
    rows = torch.where(_within(rows, sizes), rows, edge - 1)
    columns = torch.where(_within(columns, sizes), columns, edge - 1)
    down, across = torch.where(turned, 1, edge), torch.where(turned, edge, 1)
    rows = stages[:, None] * edge**2 + rows * down[:, None]
    columns = columns * across[:, None]
    return table.take(rows[:, None, :, None] + columns[:, None, None, :])


@functools.lru_cache(maxsize=64)
def _sizes(
    height: int, width: int, p_init: float, smallest: int, odd: bool, device: torch.device
) -> Tensor:
    sizes = window_sizes(height, width, p_init=p_init, smallest=smallest, odd=odd)
    return torch.tensor(sizes, device=device)


@functools.lru_cache(maxsize=64)
def _bumps(height: int, width: int, p_init: float, order: int, device: torch.device) -> Tensor:
    """Bumps of all stages in the corner of zeros, `(10, E, E)`."""
    sizes = window_sizes(height, width, p_init=p_init, smallest=3, odd=True)
    table = torch.zeros(STAGES, max(sizes) + 1, max(sizes) + 1)
    for stage, side in enumerate(sizes):
        table[stage, :side, :side] = _bump(side, order)
    return table.to(device)


def _bump(side: int, order: int) -> Tensor:
    """Upper half positive, lower half negative, each highest at its middle; of norm one."""
    upper, lower = _half(side // 2, side, order), _half(side - side // 2, side, order)
    bump = torch.cat([upper, -lower]).double()
    norm: Tensor = torch.linalg.vector_norm(bump, ord=order)
    return (bump / norm).float()


def _half(height: int, width: int, order: int) -> Tensor:
    """Sum over k > r of 1 / k^(4 / order), r the larger of the distances from the middle.

    That is, squares of growing side are stacked on one another; of norm one (equation 2).
    """
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    rings = max(height // 2, width // 2) + 1
    heights = torch.arange(1, rings + 1).double() ** -(4 / order)
    above = heights.flip(0).cumsum(0).flip(0)
    half = above[torch.maximum(down[:, None], across[None, :])]
    norm: Tensor = torch.linalg.vector_norm(half, ord=order)
    return half / norm.clamp_min(_TINY)


_CHANGES = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # last query of each stage but one
_SCHEDULED = 10_000  # queries that those numbers are meant for
_STEP_KEY = -8663945395140668459  # odd and far from the constants of slots.py

assert len(_CHANGES) == STAGES - 1


@dataclass(frozen=True, kw_only=True)
class Square(PooledAttack[SearchState]):
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

    def start(self, slots: Slots) -> SearchState:
        """Return the state of new items, at their starting points, without a pass."""
        return SearchState.begin(slots, PROPOSERS[slots.ball.norm].start(slots))

    def step(self, slots: Slots, state: SearchState) -> SearchState:
        """Score the candidates, accept those of higher loss, and propose the next ones."""
        logits = slots.oracle.logits(state.points)
        values = LOSSES[self.loss](logits, slots.labels, slots.targets, None)
        state = observed(slots, state, values, logits)
        draw = Draw(slots.keys() + state.step * _STEP_KEY, self.stages(state.step), self.p_init)
        return state._replace(
            points=PROPOSERS[slots.ball.norm].propose(slots, state.best_points, draw),
            step=state.step + 1,
        )

    def finish(self, slots: Slots, state: SearchState) -> SearchState:
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

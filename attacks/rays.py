"""RayS: a search along rays that asks for predictions only (Chen and Gu, KDD 2020).

It needs neither gradients nor logits, so that nothing which hides those hides an example from it. A
ray leads from the image along a vector of signs; what is sought are signs along which the model
fails close to the image. Signs are turned block by block, each block of pixels half as large as
those before; where the model still fails at the distance found so far, a bisection finds how near.

>>> import torch
>>> from robust_nc.threat import Ball
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
>>> images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
>>> ball = Ball("Linf", 0.1)
>>> attacked = RayS(queries=20)(model, images, labels, ball, seed=0, ids=torch.arange(5))
>>> bool(ball.contains(attacked, images).all())
True
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robust_nc.attacks.losses import LOSSES
from robust_nc.attacks.pool import PooledAttack
from robust_nc.attacks.slots import SearchState, Slots, observed
from robust_nc.exceptions import InputError
from robust_nc.runtime import keyed_uniform
from robust_nc.types import Images

_SIZES = 6  # of drawn rays: 2, 4, 8, ... 64 blocks
_STEP_KEY = -8663945395140668459  # odd and far from the constants of slots.py
_BEYOND = 100  # balls, where pixels have no bounds
_EXACT = 1e-3  # of the range of a pixel: a bisection ends there, as in the authors' code


class RayState(NamedTuple):
    """Where the search of each slot stands: beside what every attack keeps, its ray.

    `signs` of the best ray so far, along which the model fails at `reach` (per pixel), and those of
    the `ray` that is asked about, in which `block` is turned, counted over all sizes. While a
    bisection goes on, `inner` and `outer` hold where that ray does not fail and does; at other
    times `inner` is negative.
    """

    points: Tensor
    best_points: Tensor
    best_loss: Tensor
    flipped: Tensor
    step: Tensor
    signs: Tensor
    ray: Tensor
    reach: Tensor
    block: Tensor
    inner: Tensor
    outer: Tensor


@dataclass(frozen=True, kw_only=True)
class RayS(PooledAttack[RayState]):
    """Search along rays; an example is broken where one fails within the ball.

    `queries` are predictions per item. The rays move all pixels alike, which is the steepest way
    in Linf; in L2 and L1 the ball ends sooner along them, and less is found. The first item begins
    with all signs positive, a restart with signs drawn by chance; as long as no ray fails at all,
    others are drawn.

    Passes per item: `queries` forward; none backward.
    """

    queries: int = 1000

    gradient_free: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 1:
            raise InputError(f"queries must be at least 1, found {self.queries}")

    @property
    def rounds(self) -> int:
        """How many steps an item takes: one per query."""
        return self.queries

    def start(self, slots: Slots) -> RayState:
        """Return the state of new items, at the far end of their first ray, without a pass."""
        first = (slots.restarts == 0)[:, None, None, None]
        signs = torch.where(first, 1.0, _drawn(slots, torch.zeros_like(slots.labels)))
        reach = torch.full_like(signs[:, 0, 0, 0], self._range(slots))
        return RayState(
            *SearchState.begin(slots, _on_ray(slots, signs, reach)),
            signs=signs,
            ray=signs,
            reach=reach,
            block=torch.zeros_like(slots.labels),
            inner=torch.full_like(reach, -1.0),
            outer=reach.clone(),
        )

    def step(self, slots: Slots, state: RayState) -> RayState:
        """Ask for the predictions, and choose the next point of each ray."""
        logits = slots.oracle.logits(state.points)
        wrong = logits.argmax(1) != slots.labels
        if slots.targets is not None:
            wrong = logits.argmax(1) == slots.targets
        bisecting = state.inner >= 0
        asked = torch.where(bisecting, (state.inner + state.outer) / 2, state.outer)
        values = LOSSES["margin"](logits, slots.labels, slots.targets, None)
        state = observed(slots, state, values, logits, inside=asked <= self._edge(slots))
        outer = torch.where(wrong, asked, state.outer)
        inner = torch.where(wrong, state.inner.clamp_min(0), torch.where(bisecting, asked, -1.0))
        # A ray that fails is followed until it is known how near; then, or where it does not fail,
        # the next block is turned.
        ended = (outer - inner <= _EXACT * self._range(slots)) & (inner >= 0)
        better = ended & (outer < state.reach)
        signs = torch.where(better[:, None, None, None], state.ray, state.signs)
        reach = torch.where(better, outer, state.reach)
        onward = ended | (inner < 0)
        # As long as no ray has failed anywhere, others are drawn.
        lost = onward & (reach >= self._range(slots))
        if lost.device.type != "cpu" or bool(lost.any()):  # on a CPU a look costs nothing
            signs = torch.where(lost[:, None, None, None], _drawn(slots, state.step + 1), signs)
        block = torch.where(onward & ~lost, state.block + 1, state.block)
        inner = torch.where(onward, -1.0, inner)
        outer = torch.where(onward, reach, outer)
        ray = _turned(signs, block)
        return state._replace(
            points=_on_ray(slots, ray, torch.where(inner >= 0, (inner + outer) / 2, outer)),
            step=state.step + 1,
            signs=signs,
            ray=ray,
            reach=reach,
            block=block,
            inner=inner,
            outer=outer,
        )

    def finish(self, slots: Slots, state: RayState) -> RayState:
        """Return the state: the point of the next query is left alone."""
        return state

    def _range(self, slots: Slots) -> float:
        """How far rays are followed: as far as pixels go, or well beyond the ball."""
        low, high = slots.ball.bounds
        return high - low if math.isfinite(high - low) else _BEYOND * self._edge(slots)

    def _edge(self, slots: Slots) -> float:
        """How far each pixel may move along a ray within the ball."""
        ones = torch.ones(1, *slots.images.shape[1:])  # on the CPU: no wait for a device
        return slots.ball.eps / float(slots.ball.distance(ones, torch.zeros_like(ones)))


def _turned(signs: Images, number: Tensor) -> Images:
    """Return the signs with the block of each slot turned; number 0 turns nothing."""
    size = signs[0].numel()
    block = number % (2 ** (size - 1).bit_length() * 2)  # then from the start
    level = block.clamp_min(1).double().log2().floor().long()  # of 1, 2, 4, ... blocks
    sides = (size / 2.0**level).ceil().long()
    places = torch.arange(size, device=signs.device) // sides[:, None]
    turned = (places == (block - 2**level)[:, None]) & (block > 0)[:, None]
    return torch.where(turned.view_as(signs), -signs, signs)


def _drawn(slots: Slots, step: Tensor) -> Images:
    """Draw signs by blocks of equal length, twice as many of them from step to step."""
    draws = keyed_uniform(slots.seed, slots.keys() + step * _STEP_KEY, "rays", 2**_SIZES)
    blocks = 2 ** (1 + step % _SIZES)
    size = slots.images[0].numel()
    places = torch.arange(size, device=draws.device) * blocks[:, None] // size
    return torch.where(draws.gather(1, places) < 0.5, -1.0, 1.0).view_as(slots.images)


def _on_ray(slots: Slots, signs: Images, reach: Tensor) -> Images:
    """Return the points so far along the rays, clipped to the pixel bounds."""
    return (slots.images + signs * reach[:, None, None, None]).clamp(*slots.ball.bounds)

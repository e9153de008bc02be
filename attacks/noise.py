"""Noise as a control: what a perturbation of the same size does that nobody aimed.

>>> import torch
>>> images = torch.rand(4, 1, 8, 8)
>>> attacked = (images + 0.1).clamp(0, 1)
>>> noisy = matched_noise(images, attacked, kind="gaussian", seed=0, ids=torch.arange(4))
>>> sizes = [(points - images).flatten(1).norm(dim=1) for points in (noisy, attacked)]
>>> bool(torch.allclose(*sizes, rtol=1e-4))
True
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robust_nc.attacks.base import AttackInputs, BaseCountedAttack
from robust_nc.exceptions import InputError, unknown_name
from robust_nc.runtime import keyed_normal, keyed_uniform
from robust_nc.threat import NORMS
from robust_nc.types import Attacked, Images, PerExample

Kind = Literal["gaussian", "sign"]

_OCTAVES = 40.0  # a Gaussian draw below 2^-40 of the rest is not moved to the bounds
_BISECTIONS = 50


def _signs(seed: int, ids: Tensor, stream: str, size: int) -> Tensor:
    return torch.where(keyed_uniform(seed, ids, stream, size) < 0.5, -1.0, 1.0)


_KINDS: dict[str, Callable[[int, Tensor, str, int], Tensor]] = {
    "gaussian": keyed_normal,
    "sign": _signs,
}


def matched_noise(
    images: Tensor,
    attacked: Tensor,
    *,
    kind: Kind = "gaussian",
    norm: str = "L2",
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int,
    ids: Tensor,
) -> Tensor:
    """Add noise that is, after clipping to the bounds, as large as the attack was, per example.

    `images` and `attacked` are `(N, C, H, W)`; sizes are measured in `norm`. Where clipping
    leaves too little room for that size, the noise is as large as it can be.
    """
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    if kind not in _KINDS:
        raise unknown_name("kind of noise", kind, _KINDS)
    if images.ndim != 4 or images.shape != attacked.shape or ids.shape != (len(images),):
        raise InputError(
            "images and attacked must both be (N, C, H, W), and ids (N,), found "
            f"{tuple(images.shape)}, {tuple(attacked.shape)} and {tuple(ids.shape)}"
        )
    radius = NORMS[norm].size((attacked.double() - images.double()).flatten(1))
    return _noise(images, radius, kind=kind, norm=norm, bounds=bounds, seed=seed, ids=ids)


@dataclass(frozen=True)
class _Noise(BaseCountedAttack):
    """A keyed random point on the surface of the ball; asks the model nothing."""

    kind: ClassVar[Kind]

    def compute(self, inputs: AttackInputs) -> Attacked:
        """Return noisy images, with no passes."""
        images, ball = inputs.images, inputs.ball
        noisy = _noise(
            images,
            torch.full((len(images),), ball.eps, dtype=torch.float64, device=images.device),
            kind=self.kind,
            norm=ball.norm,
            bounds=ball.bounds,
            seed=inputs.seed,
            ids=inputs.ids,
        )
        none = torch.zeros_like(inputs.labels)
        return Attacked(ball.project(noisy, images), none, none)  # rounding may have left the ball


class GaussianNoise(_Noise):
    """A Gaussian direction, scaled so that the clipped image lies on the surface of the ball."""

    kind = "gaussian"


class SignNoise(_Noise):
    """Every value moved up or down by the same amount, scaled as `GaussianNoise`."""

    kind = "sign"


def _noise(
    images: Images,
    radius: PerExample,
    *,
    kind: str,
    norm: str,
    bounds: tuple[float, float],
    seed: int,
    ids: Tensor,
) -> Images:
    """Bisect, per example, on how far to go: the clipped size grows with the unclipped one."""
    if not len(images):
        return images.clone()
    draws = _KINDS[kind](seed, ids.to(images.device), f"noise/{kind}", images[0].numel()).double()
    origins = images.double().flatten(1)
    unit = draws / NORMS[norm].size(draws)[:, None]

    def clipped(octaves: Tensor) -> Tensor:
        return (origins + (radius * 2**octaves)[:, None] * unit).clamp(*bounds)

    low, high = torch.zeros_like(radius), torch.full_like(radius, _OCTAVES)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        inside = NORMS[norm].size(clipped(middle) - origins) <= radius
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return clipped(low).to(images.dtype).view_as(images)

"""The threat model: a ball around each image, within the pixel bounds.

`Ball` is the one place that knows norms. An attack never branches on the norm.

>>> import torch
>>> ball = Ball("Linf", 8 / 255)
>>> image = torch.zeros(1, 3, 4, 4)
>>> moved = ball.project(image + 1, image)
>>> float(moved.max()) <= 8 / 255 + 1e-8
True
"""

import numbers
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from robust_nc.exceptions import InputError, unknown_name
from robust_nc.runtime.torch_state import chosen, keyed_normal, keyed_uniform

_TINY = 1e-12

Rows = Float[Tensor, "n d"]


class Norm(Protocol):
    """What a norm must answer for flattened perturbations `(N, D)`.

    `accumulates`: rounding of single values can add up to more than the ball's slack.
    """

    accumulates: ClassVar[bool]

    def size(self, delta: Rows) -> Float[Tensor, " n"]:
        """Norm of each row."""

    def shrink(self, delta: Rows, eps: float | int) -> Rows:
        """Project each row onto the ball of radius eps."""

    def steepest(self, gradient: Rows) -> Rows:
        """Row of norm one with the largest inner product with the gradient (zero for zero)."""

    def sample(self, shape: tuple[int, int], seed: int, ids: Tensor, stream: str) -> Rows:
        """Draw rows from the unit ball, keyed by (seed, stream, id)."""


class Linf:
    """Largest absolute change of any value."""

    accumulates: ClassVar[bool] = False

    def size(self, delta: Rows) -> Float[Tensor, " n"]:
        """Maximum norm."""
        return delta.abs().amax(1)

    def shrink(self, delta: Rows, eps: float | int) -> Rows:
        """Clip every value."""
        return delta.clamp(-eps, eps)

    def steepest(self, gradient: Rows) -> Rows:
        """Sign of the gradient."""
        return gradient.sign()

    def sample(self, shape: tuple[int, int], seed: int, ids: Tensor, stream: str) -> Rows:
        """Uniform in the cube."""
        return keyed_uniform(seed, ids, stream, shape[1]) * 2 - 1


class L2:
    """Euclidean norm."""

    accumulates: ClassVar[bool] = True

    def size(self, delta: Rows) -> Float[Tensor, " n"]:
        """Euclidean norm."""
        size: Tensor = torch.linalg.vector_norm(delta, dim=1)
        return size

    def shrink(self, delta: Rows, eps: float | int) -> Rows:
        """Scale rows that are too long, by their length in float64."""
        size: Tensor = torch.linalg.vector_norm(delta, dim=1, dtype=torch.float64)
        factor = (eps / size.clamp_min(_TINY)).clamp_max(1)[:, None]
        shrunk: Tensor = (delta * factor).to(delta.dtype)
        return shrunk

    def steepest(self, gradient: Rows) -> Rows:
        """Gradient over its length, safe for tiny gradients (scaled by the largest entry first)."""
        scaled = gradient / gradient.abs().amax(1, keepdim=True).clamp_min(1e-38)
        return scaled / self.size(scaled).clamp_min(_TINY)[:, None]

    def sample(self, shape: tuple[int, int], seed: int, ids: Tensor, stream: str) -> Rows:
        """Uniform in the ball: a Gaussian direction, a radius u^(1/D)."""
        direction = self.steepest(keyed_normal(seed, ids, stream, shape[1]))
        radius = keyed_uniform(seed, ids, f"{stream}/radius", 1) ** (1 / shape[1])
        return direction * radius


class L1:
    """Sum of absolute changes."""

    accumulates: ClassVar[bool] = True

    def size(self, delta: Rows) -> Float[Tensor, " n"]:
        """Sum of absolute values."""
        return delta.abs().sum(1)

    def shrink(self, delta: Rows, eps: float | int) -> Rows:
        """Euclidean projection onto the L1 ball by sorting (Duchi et al., ICML 2008, figure 1).

        In float64: in float32 the error of the threshold, times D, exceeds a small eps.
        """
        magnitude = delta.double().abs()
        ordered = magnitude.sort(1, descending=True).values
        excess = ordered.cumsum(1) - eps
        rank = torch.arange(1, delta.shape[1] + 1, device=delta.device)
        active = (ordered * rank > excess).sum(1, keepdim=True).clamp_min(1)
        threshold = (excess.gather(1, active - 1) / active).clamp_min(0)
        return delta.sign() * (magnitude - threshold).clamp_min(0).to(delta.dtype)

    def steepest(self, gradient: Rows) -> Rows:
        """All of the step into the coordinate of largest absolute gradient."""
        place = gradient.abs().argmax(1, keepdim=True)
        return torch.zeros_like(gradient).scatter(1, place, gradient.gather(1, place).sign())

    def sample(self, shape: tuple[int, int], seed: int, ids: Tensor, stream: str) -> Rows:
        """Uniform in the cross-polytope: Laplace direction, radius u^(1/D)."""
        uniform = keyed_uniform(seed, ids, stream, shape[1]) * 2 - 1
        laplace = -uniform.sign() * torch.log1p(-uniform.abs().clamp_max(1 - 1e-7))
        direction = laplace / self.size(laplace).clamp_min(_TINY)[:, None]
        radius = keyed_uniform(seed, ids, f"{stream}/radius", 1) ** (1 / shape[1])
        return direction * radius


NORMS: dict[str, Norm] = {"Linf": Linf(), "L2": L2(), "L1": L1()}


@dataclass(frozen=True, slots=True)
class Ball:
    """All images within `eps` of the original in `norm`, and within the pixel bounds.

    `eps` is in units of pixels in [0, 1]. Raises `InputError` for an unknown norm, and for an eps
    that is negative, not finite, or so large (Linf: above 1) that it is surely in 0..255 units.
    """

    norm: str
    eps: float | int
    bounds: tuple[float, float] = (0.0, 1.0)

    SLACK_RELATIVE: ClassVar[float] = 1e-6
    SLACK_ABSOLUTE: ClassVar[float] = 1e-7

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown_name("norm", self.norm, NORMS)
        if isinstance(self.eps, bool) or not isinstance(self.eps, numbers.Real):
            raise InputError(f"eps must be a number such as 8/255, found {self.eps!r}")
        if not isinstance(self.eps, int | float):  # a number of NumPy
            object.__setattr__(self, "eps", float(self.eps))
        if not 0 <= self.eps < float("inf"):
            raise InputError(f"eps must be finite and at least 0, found {self.eps}")
        if self.norm == "Linf" and self.eps > 1:
            raise InputError(
                f"eps {self.eps} is above 1, the whole range of a pixel in [0, 1]; "
                f"did you mean {self.eps:g}/255?"
            )
        if not self.bounds[0] < self.bounds[1]:
            raise InputError(f"pixel bounds must be (low, high) with low < high: {self.bounds}")

    def project(
        self, points: Float[Tensor, "n c h w"], origins: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n c h w"]:
        """Bring points into the ball around their origins, then into the pixel bounds.

        Clipping to the bounds moves each pixel towards its origin, so the result stays in the ball.
        """
        delta = NORMS[self.norm].shrink((points - origins).flatten(1), self.eps)
        return self._moved(origins, delta)

    def sample(
        self, origins: Float[Tensor, "n c h w"], *, seed: int, ids: Int[Tensor, " n"], stream: str
    ) -> Float[Tensor, "n c h w"]:
        """Draw a point of the ball around each origin, keyed by (seed, stream, id)."""
        shape = (origins.shape[0], origins[0].numel() if len(origins) else 1)
        unit = NORMS[self.norm].sample(shape, seed, ids, stream)
        return self._moved(origins, self.eps * unit.to(origins.dtype))

    def _moved(self, origins: Float[Tensor, "n c h w"], delta: Rows) -> Float[Tensor, "n c h w"]:
        delta = delta.view_as(origins)
        points = origins + delta
        if NORMS[self.norm].accumulates:  # round towards the origin, so that no value overshoots
            over = (points - origins).abs() > delta.abs()
            points = chosen(over, torch.nextafter(points, origins), points)
        return points.clamp(*self.bounds)

    def steepest(self, gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Direction of norm one along which a linear function with this gradient grows fastest."""
        return NORMS[self.norm].steepest(gradient.flatten(1)).view_as(gradient)

    def distance(
        self, points: Float[Tensor, "n c h w"], origins: Float[Tensor, "n c h w"]
    ) -> Float64[Tensor, " n"]:
        """Distance of each point from its origin, in float64."""
        return NORMS[self.norm].size((points.double() - origins.double()).flatten(1))

    def contains(
        self, points: Float[Tensor, "n c h w"], origins: Float[Tensor, "n c h w"]
    ) -> Bool[Tensor, " n"]:
        """Whether each point is in the ball (float64, eps (1 + 1e-6) + 1e-7) and in the bounds."""
        limit = self.eps * (1 + self.SLACK_RELATIVE) + self.SLACK_ABSOLUTE
        low, high = self.bounds
        inside = ((points >= low) & (points <= high)).flatten(1).all(1)
        return inside & (self.distance(points, origins) <= limit)

    def __str__(self) -> str:
        return f"{self.norm} {format_eps(self.eps)}"


def format_eps(eps: float | int) -> str:
    """Write eps as people do: in 255ths where it is one, else as a number.

    >>> format_eps(8 / 255), format_eps(0.15), format_eps(0.0), format_eps(1e308)
    ('8/255', '0.15', '0', '1e+308')
    """
    levels = eps * 255 if eps < 1 else 0.0
    whole = round(levels)
    return f"{whole}/255" if whole and abs(levels - whole) < 1e-6 else f"{eps:g}"


def check_ball(ball: object) -> Ball:
    """Return the ball, or raise `InputError` for what is none."""
    if isinstance(ball, Ball):
        return ball
    raise InputError(f"the ball must be such as robust_nc.Ball('Linf', 8 / 255), found {ball!r}")


def parse_eps(value: object) -> float:
    """Read eps given as a number or as a fraction.

    >>> parse_eps("8/255") == 8 / 255
    True
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    above, bar, below = str(value).partition("/")
    try:
        return float(above) / float(below) if bar else float(above)
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"eps must be a number or a fraction such as 8/255, found {value!r}"
        ) from None

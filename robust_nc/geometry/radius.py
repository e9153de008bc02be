"""The collapse radius: the smallest attack that makes a tenth of the examples leap.

Doubling of a collapse measure is no such radius: to double a number near zero is easy, so it would
punish collapse.

>>> rates = {"rates": [0.0, 0.05, 0.2], "lower": [0.0, 0.02, 0.14], "upper": [0.02, 0.12, 0.28]}
>>> radius = collapse_radius([0.0, 0.01, 0.02], **rates)
>>> [round(end, 4) for end in (radius.value, radius.low, radius.high)]
[0.0133, 0.008, 0.0167]
"""

import itertools
from typing import Any, NamedTuple

from robust_nc.exceptions import InputError
from robust_nc.geometry.inputs import as_tensor


class Radius(NamedTuple):
    """Where a rate first reaches a level, in the units of eps.

    `value` None: nowhere up to `eps_max` (`note` gives the bound). `low` and `high` are where the
    upper and the lower bound of the rate reach the level, which contain `value`; an end that is
    None lies beyond `eps_max`, one at the smallest eps may lie below it.
    """

    value: float | None
    low: float | None
    high: float | None
    eps_max: float
    note: str


def collapse_radius(
    eps: Any, rates: Any, *, lower: Any, upper: Any, level: float | int = 0.1
) -> Radius:
    """Find where the leap rate first reaches `level`, linear between the radii of a sweep.

    `rates` are the leap rates of the same examples at each of `eps`, ascending, 0 allowed; `lower`
    and `upper` bound each rate (score intervals, say). The ends of the interval invert these bounds
    radius by radius. Raises `InputError` for eps that do not ascend, lengths that differ, values
    that are not finite, rates outside [0, 1] and bounds that do not enclose them.
    """
    if not 0 < level <= 1:
        raise InputError(f"level must be in (0, 1], found {level}")
    level = float(level)
    radii = _radii(eps)
    curves = {
        name: _curve(values, name, len(radii))
        for name, values in (("lower", lower), ("rates", rates), ("upper", upper))
    }
    for place, (least, rate, most) in enumerate(zip(*curves.values(), strict=True)):
        if not least <= rate <= most:
            raise InputError(
                f"bounds must enclose the rate, found {least} <= {rate} <= {most} "
                f"at eps {radii[place]}"
            )
    value = _crossing(radii, curves["rates"], level)
    return Radius(
        value=value,
        low=_crossing(radii, curves["upper"], level),
        high=_crossing(radii, curves["lower"], level),
        eps_max=radii[-1],
        note=_note(radii, curves["rates"], level),
    )


def _numbers(values: Any, name: str) -> list[float]:
    found = as_tensor(values, name)
    if found.ndim != 1:
        raise InputError(f"{name} must be one number per radius, found {tuple(found.shape)}")
    if not bool(found.isfinite().all()):
        raise InputError(f"{name} must be finite, found {found.tolist()}")
    return [float(value) for value in found.tolist()]


def _radii(eps: Any) -> list[float]:
    radii = _numbers(eps, "eps")
    if not radii:
        raise InputError("eps is empty; a radius needs at least one eps")
    if radii[0] < 0:
        raise InputError(f"eps must be 0 or more, found {radii[0]}")
    for before, after in itertools.pairwise(radii):
        if not before < after:
            raise InputError(f"eps must ascend without repeats, found {before} before {after}")
    return radii


def _curve(values: Any, name: str, count: int) -> list[float]:
    curve = _numbers(values, name)
    if len(curve) != count:
        raise InputError(f"{name} must have one value per eps, found {len(curve)} for {count} eps")
    if curve and not 0 <= min(curve) <= max(curve) <= 1:
        raise InputError(f"{name} must be in [0, 1], found {min(curve)} to {max(curve)}")
    return curve


def _crossing(radii: list[float], curve: list[float], level: float) -> float | None:
    """Return the first point where the curve, linear between its knots, is at the level."""
    for place, rate in enumerate(curve):
        if rate >= level:
            if place == 0:
                return radii[0]
            before = curve[place - 1]
            way = (level - before) / (rate - before)
            return (1 - way) * radii[place - 1] + way * radii[place]
    return None


def _note(radii: list[float], rates: list[float], level: float) -> str:
    """Say what the value alone does not."""
    reached = [rate >= level for rate in rates]
    if not any(reached):
        return f"> {radii[-1]:g}: the leap rate stays below {level:g}"
    if reached[0]:
        where = "on the clean data" if radii[0] == 0 else f"at the smallest eps, {radii[0]:g}"
        return f"the leap rate is {rates[0]:.3g} already {where}"
    if not all(reached[reached.index(True) :]):
        return f"the leap rate falls below {level:g} again at a larger eps"
    return ""

"""The first crossing of a piecewise linear curve, by walking along it in small steps."""

from collections.abc import Sequence

import numpy as np


def crossing(eps: Sequence[float], curve: Sequence[float], level: float) -> float | None:
    fine = np.unique(np.concatenate([np.linspace(eps[0], eps[-1], 200_001), eps]))
    above = np.interp(fine, eps, curve) >= level
    return float(fine[above.argmax()]) if above.any() else None

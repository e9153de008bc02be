"""Class by class: which leap, and whether those that collapse less leap more.

>>> import torch
>>> leaped = torch.tensor([True, False, False, True])
>>> leap_rates(torch.tensor([0, 0, 1, 3]), leaped, 4)
LeapRates(rates=(0.5, 0.0, None, 1.0), counts=(2, 1, 0, 1))
>>> found = vulnerability([0.1, 0.2, 0.3, 0.9], [0.5, 0.0, None, 1.0])
>>> found.spearman, found.num_classes
(0.5, 3)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError

_FEWEST = 3  # two points always lie on a line
_ROUNDING = 1e-12


class LeapRates(NamedTuple):
    """Share of the examples of each class that leaped, None without examples; their `counts`."""

    rates: tuple[float | None, ...]
    counts: tuple[int, ...]


def leap_rates(groups: Tensor, leaped: Tensor, num_classes: int) -> LeapRates:
    """Count leaps by class: `groups` (N,) the true labels, or any other; `leaped` (N,) bool.

    Raises `InputError` for another shape or dtype, and for groups outside of 0..num_classes - 1.
    """
    if leaped.ndim != 1 or leaped.dtype != torch.bool:
        raise InputError(
            f"leaped must be bool of shape (N,), found {leaped.dtype} of {tuple(leaped.shape)}"
        )
    groups = check_labels(groups, len(leaped), num_classes).to(leaped.device)
    counts = torch.bincount(groups, minlength=num_classes).tolist()
    leaps = torch.bincount(groups[leaped], minlength=num_classes).tolist()
    rates = (leap / count if count else None for leap, count in zip(leaps, counts, strict=True))
    return LeapRates(tuple(rates), tuple(counts))


class Vulnerability(NamedTuple):
    """Correlation over classes of collapse with leap rate; None with a reason in `notes`.

    `spearman` that of the ranks (average ranks for ties), `pearson` that of the values;
    `num_classes` have both. Collapse measures are smaller the more a class is collapsed: a positive
    correlation says that classes which collapse less leap more.
    """

    spearman: float | None
    pearson: float | None
    num_classes: int
    notes: Mapping[str, str]


def vulnerability(collapse_per_class: Any, leap_rate_per_class: Any) -> Vulnerability:
    """Correlate a collapse measure of each class (its `nc1`, say) with its leap rate, (K,) each.

    A class where one of the two is None (or NaN) is left out. Values that differ by rounding alone
    count as equal. Raises `InputError` for lengths that differ and for infinite values.
    """
    collapse = _per_class(collapse_per_class, "collapse_per_class")
    rates = _per_class(leap_rate_per_class, "leap_rate_per_class")
    if len(collapse) != len(rates):
        raise InputError(
            "collapse_per_class and leap_rate_per_class must be of the same classes, "
            f"found {len(collapse)} and {len(rates)} values"
        )
    from scipy import stats  # takes longer to import than all the rest

    both = ~(np.isnan(collapse) | np.isnan(rates))
    collapse, rates = collapse[both], rates[both]
    count = len(rates)
    reason = None
    if count < _FEWEST:
        reason = f"undefined: {count} classes have both values, at least {_FEWEST} are needed"
    elif _constant(collapse) or _constant(rates):
        same = "collapse" if _constant(collapse) else "leap rate"
        reason = f"undefined: the {same} is the same in all classes"
    if reason is not None:
        return Vulnerability(None, None, count, {"spearman": reason, "pearson": reason})
    return Vulnerability(
        spearman=_bounded(stats.spearmanr(collapse, rates).statistic),
        pearson=_bounded(stats.pearsonr(collapse, rates).statistic),
        num_classes=count,
        notes={},
    )


def _per_class(values: Any, name: str) -> NDArray[np.float64]:
    """Read one value per class as float64; None becomes NaN."""
    given = values.detach().cpu() if isinstance(values, Tensor) else values
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be one number or None per class") from None
    if array.ndim != 1:
        raise InputError(f"{name} must be one number per class, found the shape {array.shape}")
    if np.isinf(array).any():
        raise InputError(f"{name} must be finite, found an infinite value")
    return array


def _constant(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) <= _ROUNDING * np.abs(values).max())


def _bounded(value: float) -> float:
    """Take rounding off the ends of [-1, 1]."""
    return min(max(float(value), -1.0), 1.0)

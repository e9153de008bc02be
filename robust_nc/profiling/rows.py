"""Rows: one value each, with the columns of `record.COLUMNS` that it fills.

>>> valued("ncc", None, {"ncc": "undefined: no example"})
{'measure': 'ncc', 'value': None, 'note': 'undefined: no example'}
"""

from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]

CLEAN, ATTACKED, SWEEP = "clean", "attacked", "sweep"  # conditions; the others by their kind

_NO_SPREAD = "undefined: the means coincide, or fewer than two groups have two examples"


def valued(name: str, value: float | None, notes: Mapping[str, str]) -> Row:
    """Return the measure and value of a row, with the reason where there is none."""
    note = notes.get(name, _NO_SPREAD) if value is None else ""
    return {"measure": name, "value": value, "note": note}


def class_rows(common: Row, values: tuple[float | None, ...], sizes: list[int]) -> list[Row]:
    """One row per class `i`; `sizes` are the examples behind each."""
    return [
        common
        | {"i": i, "value": value, "n": size}
        | {"note": "" if value is not None else "undefined: too few examples, or no spread"}
        for i, (value, size) in enumerate(zip(values, sizes, strict=True))
    ]

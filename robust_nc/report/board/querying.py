"""Conditions and order for a table: `head=etf`, `robust>=0.4`, `model~trades`; `-robust`.

>>> frame = pd.DataFrame({"model": ["a", "b", "c"], "robust": [0.1, 0.5, 0.4]})
>>> ordered(kept(frame, ["robust>=0.4"]), "-robust")["model"].tolist()
['b', 'c']
"""

import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robust_nc.exceptions import ConfigError, unknown_name

_FORM = re.compile(r"\s*(\w+)\s*(!=|<=|>=|==?|<|>|~)(.*)", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class _Condition(NamedTuple):
    """One condition on a column; the value is text as it was given."""

    column: str
    operator: str
    value: str


def _parsed(text: str) -> _Condition:
    """Read a condition; `==` is `=`. Raises `ConfigError` for anything else."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"--where takes a column, one of = != < <= > >= ~, and a value, found {text!r}"
        )
    column, sign, value = found.groups()
    return _Condition(column, sign.replace("==", "="), value.strip())


def kept(frame: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """Return the rows for which all conditions hold, in their order.

    Columns of numbers compare as numbers (`eps=8/255` is one), others as text; `~` looks for text
    in text, whatever its case. A missing number meets no condition but `column=`, which asks for
    it. Raises `UnknownNameError` for a column that is not there, and `ConfigError` for a value that
    is no number where one is needed.
    """
    mask = np.ones(len(frame), dtype=bool)
    for text in where:
        condition = _parsed(text)
        column = _column(frame, condition.column)
        mask &= (_by_number if _is_number(column) else _by_text)(column, condition)
    return frame[mask].reset_index(drop=True)


def ordered(frame: pd.DataFrame, by: str | None) -> pd.DataFrame:
    """Sort by a column, largest first where its name has a minus; missing values come last.

    Rows that are equal keep their order; None keeps it for all. Raises `UnknownNameError` for a
    column that is not there.
    """
    if by is None:
        return frame
    name = by.strip()
    falling = name.startswith("-")
    column = _column(frame, name.removeprefix("-"))
    return frame.sort_values(
        str(column.name),
        ascending=not falling,
        kind="stable",
        na_position="last",
        ignore_index=True,
    )


def _column(frame: pd.DataFrame, name: str) -> "pd.Series[Any]":
    if name not in frame.columns:
        raise unknown_name("column", name, [str(column) for column in frame.columns])
    return frame[name]


def _is_number(column: "pd.Series[Any]") -> bool:
    return pd.api.types.is_numeric_dtype(column)


def _by_number(column: "pd.Series[Any]", condition: _Condition) -> Any:
    values = column.to_numpy(np.float64, na_value=np.nan)
    missing = np.isnan(values)
    if not condition.value and condition.operator in {"=", "!="}:
        return missing if condition.operator == "=" else ~missing
    number = _number(condition)
    close = np.isclose(values, number, rtol=1e-9, atol=0)
    if condition.operator == "=":
        return close
    if condition.operator == "!=":
        return ~close & ~missing
    if condition.operator == "~":
        raise ConfigError(f"~ looks in text, and {condition.column} holds numbers; use = or <=")
    found = _COMPARE[condition.operator](values, number)
    return (found | close) if "=" in condition.operator else (found & ~close)


def _number(condition: _Condition) -> float:
    try:
        return float(Fraction(condition.value))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ConfigError(
            f"{condition.column} holds numbers; compare it with one such as 0.4 or 8/255, found "
            f"{condition.value!r}"
        ) from None


def _by_text(column: "pd.Series[Any]", condition: _Condition) -> Any:
    texts, value = [str(one) for one in column], condition.value
    if condition.operator == "~":
        return np.array([value.casefold() in text.casefold() for text in texts], dtype=bool)
    if condition.operator in _COMPARE:
        compare = _COMPARE[condition.operator]
        return np.array([compare(text, value) for text in texts], dtype=bool)
    same = np.array([text == value for text in texts], dtype=bool)
    return same if condition.operator == "=" else ~same

"""Conditions and order for a table: `head=etf`, `robust>=0.4`, `model~trades`; `-robust`.

>>> frame = pd.DataFrame({"model": ["a", "b", "c"], "robust": [0.1, 0.5, 0.4]})
>>> ordered(kept(frame, ["robust>=0.4"]), "-robust")["model"].tolist()
['b', 'c']
"""

import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

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


def kept(frame: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """Return the rows for which all conditions hold, in their order.

    Columns of numbers compare as numbers (`eps=8/255` is one), others as text; `~` looks for text
    in text, whatever its case. A missing number meets no condition but `column=`, which asks for
    it. Raises `UnknownNameError` for a column that is not there, and `ConfigError` for a value that
    is no number where one is needed.
    """
    mask = np.ones(len(frame), dtype=bool)
    for text in where:
        found = _FORM.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"--where takes a column, one of = != < <= > >= ~, and a value, found {text!r}"
            )
        name, sign, value = found.groups()
        column = _column(frame, name)
        meets = _by_number if pd.api.types.is_numeric_dtype(column) else _by_text
        mask &= meets(column, sign.replace("==", "="), value.strip())
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


def _by_number(column: "pd.Series[Any]", sign: str, value: str) -> Any:
    values = column.to_numpy(np.float64, na_value=np.nan)
    missing = np.isnan(values)
    if not value and sign in {"=", "!="}:
        return missing if sign == "=" else ~missing
    try:
        number = float(Fraction(value))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ConfigError(
            f"{column.name} holds numbers; compare it with one such as 0.4 or 8/255, found "
            f"{value!r}"
        ) from None
    close = np.isclose(values, number, rtol=1e-9, atol=0)
    if sign == "=":
        return close
    if sign == "!=":
        return ~close & ~missing
    if sign == "~":
        raise ConfigError(f"~ looks in text, and {column.name} holds numbers; use = or <=")
    found = _COMPARE[sign](values, number)
    return (found | close) if "=" in sign else (found & ~close)


def _by_text(column: "pd.Series[Any]", sign: str, value: str) -> Any:
    texts = [str(one) for one in column]
    if sign == "~":
        return np.array([value.casefold() in text.casefold() for text in texts], dtype=bool)
    if sign in _COMPARE:
        return np.array([_COMPARE[sign](text, value) for text in texts], dtype=bool)
    same = np.array([text == value for text in texts], dtype=bool)
    return same if sign == "=" else ~same

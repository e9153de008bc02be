"""Finding the one row of a cell that a quantity is read from.

>>> from robust_nc.record.schema import tidy
>>> rows = tidy([{"tap": "output", "measure": "accuracy", "value": 0.5, "n": 10}])
>>> one_row(rows, {"measure": "accuracy", "tap": "output"}).value
0.5
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import pandas as pd

from robust_nc.exceptions import RecordError

Attacked = Literal[
    "attacked",
    "cyclic",
    "random",
    "nearest",
    "farthest",
    "hierarchy",
    "severest",
    "gaussian",
    "sign",
]
Condition = Literal["clean", Attacked]
Feature = Literal["gap", "flatten"]
Grouping = Literal["true", "predicted", "target", "landed"]
Split = Literal["train", "test"]


class UndefinedError(RecordError):
    """A quantity that was measured and has no value; the sentence is the reason."""


class Row(NamedTuple):
    """The value of one row, and what it was measured on and with."""

    value: float
    n: int
    attack: str
    note: str


def positive(rows: pd.DataFrame, where: Mapping[str, str]) -> float:
    """Return the one value that matches, or raise `UndefinedError` where it has no logarithm."""
    value = one_row(rows, where).value
    if value <= 0:
        raise UndefinedError(f"{where['measure']} is {value:g}, which has no logarithm")
    return value


def difference(first: Row, second: Row) -> float:
    """Return first less second, which must be over as many examples."""
    if first.n != second.n:
        raise RecordError(
            f"values over {first.n} and over {second.n} examples cannot be compared; "
            "measure both on the same"
        )
    return first.value - second.value


def one_row(rows: pd.DataFrame, where: Mapping[str, str]) -> Row:
    """Return the one value that matches; copies of it under several features are one."""
    found = matching(rows, where).drop_duplicates(["value", "n", "attack"])
    stated = ", ".join(f"{column} {value!r}" for column, value in where.items())
    if len(found) == 0:
        taps = sorted(set(rows["tap"]) - {"", "none"})
        raise RecordError(f"no row has {stated}; taps that were measured: {', '.join(taps)}")
    if len(found) > 1:
        attacks = sorted(set(found["attack"]))
        raise RecordError(f"{len(found)} different rows have {stated}; attacks: {attacks}")
    one: Any = found.iloc[0]
    if pd.isna(one["value"]):
        raise UndefinedError(f"{where['measure']}: {one['note'] or 'no value, without a reason'}")
    return Row(float(one["value"]), int(one["n"]), str(one["attack"]), str(one["note"]))


def matching(rows: pd.DataFrame, where: Mapping[str, str]) -> pd.DataFrame:
    """Return the scalar rows of the finished weights with these columns."""
    chosen = (rows["epoch"] == -1) & (rows["i"] == -1) & (rows["j"] == -1)
    for column, value in where.items():
        # An accuracy has no groups; whoever wrote it may have left the column empty.
        chosen &= rows[column].isin(["none", ""]) if value == "none" else rows[column] == value
    return rows[chosen]

"""The fields of RobustBench's files of models: numbers as text, and several ways to leave them out.

>>> share_of({"clean_acc": "88.5"}, "clean_acc", "Ours.json"), radius_of({"eps": "null"}, "eps", "")
(0.885, None)
>>> share_of({"clean_acc": "88.5 %"}, "clean_acc", "Ours.json")
Traceback (most recent call last):
...
robust_nc.exceptions.RecordError: Ours.json: clean_acc must be percent in 0..100 such as '57.20', \
found '88.5 %'
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from robust_nc.exceptions import RecordError
from robust_nc.io.text import one_line
from robust_nc.threat import parse_eps

_PERCENT = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?")
_EPS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,18})?(/[1-9][0-9]{0,3})?")
_UNSTATED = frozenset({"", "null", "None", "N/A"})

Fields = Mapping[str, Any]


def as_share(percent: str) -> float:
    """Return percent in text as the nearest float64 share."""
    return float(Decimal(percent) / 100)


def share_of(fields: Fields, name: str, what: str, *, most: int = 100) -> float | None:
    """Read percent in 0..most as a share; None where it is not stated."""
    text = _stated(fields, name)
    if text is None:
        return None
    if not _PERCENT.fullmatch(text) or float(text) > most:
        raise RecordError(
            f"{what}: {name} must be percent in 0..{most} such as '57.20', found {text[:40]!r}"
        )
    return as_share(text)


def radius_of(fields: Fields, name: str, what: str) -> float | None:
    """Read a radius such as "8/255"; None where it is not stated."""
    text = _stated(fields, name)
    if text is None:
        return None
    if not _EPS.fullmatch(text) or not parse_eps(text) > 0:
        raise RecordError(
            f"{what}: {name} must be a radius such as '8/255' or '0.5', found {text[:40]!r}"
        )
    return parse_eps(text)


def text_of(fields: Fields, name: str, what: str) -> str:
    """Read text as one bounded line, "" where it is not stated."""
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RecordError(f"{what}: {name} must be text, found {_shown(value)}")
    return one_line(value)


def flag_of(fields: Fields, name: str, what: str) -> bool | None:
    """Read true or false; None where it is not stated."""
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise RecordError(f"{what}: {name} must be true or false, found {_shown(value)}")


def count_of(fields: Fields, name: str, what: str) -> int:
    """Read a count in 1..10,000; 1 where it is not stated."""
    value = fields.get(name, 1)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10_000:
        return value
    raise RecordError(f"{what}: {name} must be a whole number in 1..10000, found {_shown(value)}")


def _stated(fields: Fields, name: str) -> str | None:
    """Text of a number, or of what stands in its place."""
    value = fields.get(name)
    text = value.strip() if isinstance(value, str) else _shown(value)
    return None if value is None or text in _UNSTATED else text


def _shown(value: object) -> str:
    return repr(value)[:40]

"""Reading what strangers wrote: JSON that is bounded and strict, names that stay in their folder.

>>> parse_json('{"a": 1, "a": 2}', what="card.json")
Traceback (most recent call last):
...
robust_nc.exceptions.RecordError: card.json has the key 'a' twice
>>> parse_json('{"a": NaN}', what="card.json")
Traceback (most recent call last):
...
robust_nc.exceptions.RecordError: card.json holds NaN, which is no JSON
"""

import json
import re
from pathlib import Path
from typing import Any

from robust_nc.exceptions import RecordError

MAX_BYTES = 8 * 2**20
MAX_DEPTH = 32

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,119}")


def read_json(path: Path, *, limit: int = MAX_BYTES) -> Any:
    """Read a JSON file of at most `limit` bytes; raises `RecordError` as `parse_json` does."""
    content = read_bounded(path, limit=limit)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8 text: {error}") from None
    return parse_json(text, what=str(path))


def read_bounded(path: Path, *, limit: int) -> bytes:
    """Read a file of at most `limit` bytes; raises `RecordError` for others and for no file."""
    try:
        if not path.is_file():
            raise RecordError(f"{path} is not there, or no file")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > limit:
        raise RecordError(f"{path} is larger than {limit:,} bytes, the most that is read")
    return content


def parse_json(text: str, *, what: str) -> Any:
    """Parse JSON strictly: no NaN, no number beyond 64 bits, no key twice, bounded nesting.

    Raises `RecordError` that names `what` and says what is wrong.
    """

    def refuse(constant: str) -> float:
        raise RecordError(f"{what} holds {constant}, which is no JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise RecordError(f"{what} has the key {key[:60]!r} twice")
            found[key] = value
        return found

    def finite(digits: str) -> float:
        value = float(digits)
        if value - value != 0:  # 1e999 would become an infinity
            raise RecordError(f"{what} holds {digits[:40]}, which no float64 can")
        return value

    def whole(digits: str) -> int:
        value = int(digits)
        if not -(2**63) <= value < 2**63:  # arithmetic with floats and arrays would overflow
            raise RecordError(f"{what} holds {digits[:40]}, which no int64 can")
        return value

    _check_depth(text, what)
    try:
        return json.loads(
            text,
            parse_constant=refuse,
            object_pairs_hook=once,
            parse_float=finite,
            parse_int=whole,
        )
    except ValueError as error:
        raise RecordError(f"{what} is not JSON: {error}") from None


def _check_depth(text: str, what: str) -> None:
    """Refuse deep nesting before the parser recurses into it."""
    deepest = depth = 0
    # A string that does not end is one token too: from each quote of it anew would never be done.
    for token in re.finditer(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', text, re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise RecordError(f"{what} is nested {deepest} deep; at most {MAX_DEPTH} is read")


def file_name(name: str, *, what: str) -> str:
    """Return a name that is a plain file name, or raise `RecordError`: no path, no hidden file.

    >>> file_name("../../etc/passwd", what="rows")
    Traceback (most recent call last):
    ...
    robust_nc.exceptions.RecordError: rows must be a plain file name, found '../../etc/passwd'
    """
    if not _NAME.fullmatch(name):
        raise RecordError(f"{what} must be a plain file name, found {name[:80]!r}")
    return name

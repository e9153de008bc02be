"""Where a record stands: what receipts say was checked, and what challenges took from it.

Beside `<cell>.json` may lie `<cell>.receipt` (left by `verify --save`) and any number of
`<cell>.<digest>.challenge` (left by `challenge`), JSON all of them.

>>> best_badge(("schema ok", "audited 300"))
'audited 300'
"""

import glob
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from robust_nc.config import configuration, read
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.files import sha256_of
from robust_nc.io.untrusted import read_json
from robust_nc.record.schema import Stored, unpack_flags

SCHEMA_OK, PROVEN = "schema ok", "upper bound proven"
_DIGITS = 16  # of the SHA-256 of its evidence, in the name of a challenge
_BADGE = re.compile(rf"{SCHEMA_OK}|{PROVEN}|audited [1-9][0-9]{{0,8}}")


@configuration
class Receipt:
    """What `verify` found of a record: badges, for the file with this SHA-256 and its evidence.

    `proven`, `tolerated` count broken examples; `overclaim` is the upper end of the 95 % bound on
    the share of robust examples that the audit's protocol would break, by `audited` examples.
    """

    record: str
    evidence: str | None
    badges: tuple[str, ...]
    proven: int = 0
    tolerated: int = 0
    audited: int = 0
    overclaim: float | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    created: str


@configuration
class Challenge:
    """Examples (their rows in the record) that were claimed robust and are broken after all."""

    cell: str
    evidence: str
    broken: tuple[int, ...]
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    created: str


class Standing(NamedTuple):
    """Flags `(N,)` that are left after all challenges, and the badges that a receipt gives."""

    robust: npt.NDArray[np.bool_]
    challenged: int
    badges: tuple[str, ...]


def receipt_path(record: Path) -> Path:
    """Path of the receipt of a record."""
    return record.with_suffix(".receipt")


def challenge_path(record: Path, evidence: str) -> Path:
    """Path of a challenge of a record by evidence with this SHA-256."""
    return record.with_name(f"{record.stem}.{evidence[:_DIGITS]}.challenge")


def challenges_of(record: Path) -> list[Path]:
    """Return the challenges that lie beside a record, sorted.

    A record `a.json` has nothing to do with the challenges of a record `a.b.json`.
    """
    digest = "[0-9a-f]" * _DIGITS
    return sorted(record.parent.glob(f"{glob.escape(record.stem)}.{digest}.challenge"))


def standing(stored: Stored) -> Standing:
    """Return where a record stands; raises `RecordError` for a receipt or challenge that is none.

    A receipt of another state of the record gives no badge.
    """
    robust = unpack_flags(stored.record.verdict.robust)
    claimed = int(robust.sum())
    for path in challenges_of(stored.path):
        found = _read(Challenge, path)
        if found.cell != stored.record.cell:
            raise RecordError(f"{path} challenges the cell {found.cell[:40]!r}, not this one")
        rows = np.array(found.broken, dtype=np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(robust):
            raise RecordError(f"{path} names rows outside 0..{len(robust) - 1}")
        robust[rows] = False
    return Standing(robust, claimed - int(robust.sum()), _badges(stored))


def best_badge(badges: Iterable[str]) -> str:
    """Return the badge that says most, "" where there is none."""
    return max(badges, key=_strength, default="")


def weakest_badge(badges: Iterable[str]) -> str:
    """Return what can be said of several records: the weakest of their badges.

    >>> weakest_badge(["audited 300", "audited 50"]), weakest_badge(["schema ok", ""])
    ('audited 50', '')
    """
    return min(badges, key=_strength, default="")


def _strength(badge: str) -> tuple[int, int]:
    order = ("", SCHEMA_OK, PROVEN)
    return (order.index(badge), 0) if badge in order else (len(order), int(badge.split()[-1]))


def _badges(stored: Stored) -> tuple[str, ...]:
    path = receipt_path(stored.path)
    if not path.is_file():
        return ()
    receipt = _read(Receipt, path)
    most = stored.record.data.examples  # none is audited twice
    if not all(_BADGE.fullmatch(badge) and _strength(badge)[1] <= most for badge in receipt.badges):
        raise RecordError(f"{path} holds a badge that there is not")
    evidence = stored.record.evidence
    same = receipt.record == sha256_of(stored.path)
    same &= receipt.evidence == (None if evidence is None else evidence.sha256)
    return receipt.badges if same else ()


def _read(kind: Any, path: Path) -> Any:
    try:
        return read(kind, read_json(path), source=str(path))
    except ConfigError as error:
        raise RecordError(str(error)) from None

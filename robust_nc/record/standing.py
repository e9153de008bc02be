"""Where a record stands: how far it was checked, and what challenges and audits took from it.

Beside `<cell>.json` may lie `<cell>.receipt`, left by `verify --sign`, and any number of
`<cell>.<digest>.challenge`, left by `challenge`: JSON all of them, a receipt with a signature of
OpenSSH behind it. A receipt counts if a key of `allowed_signers` in the folder of results signed
it, for the record as it lies there; a challenge, if such a receipt says that it holds.

>>> weakest_state([REPRODUCED, CLAIMED])
'claimed'
"""

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from robust_nc.config import configuration, read
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.files import sha256_of
from robust_nc.io.untrusted import parse_json, read_bounded, read_json
from robust_nc.record.schema import Stored, unpack_flags
from robust_nc.record.signing import SIGNERS, is_signed_by, split

State = Literal["claimed", "checked", "reproduced"]
CLAIMED: State = "claimed"
CHECKED: State = "checked"
REPRODUCED: State = "reproduced"
_STATES = (CLAIMED, CHECKED, REPRODUCED)
_DIGITS = 16  # of the SHA-256 of its evidence, in the name of a challenge
_MOST_RECEIPT = 2**20  # bytes


@configuration
class Receipt:
    """What `signer` found of the record with this SHA-256 and its evidence.

    `proven`, `tolerated` count broken examples. An audit attacked `audited` of the robust examples,
    drawn by `seed`, and broke the rows `broke`; with 95 % confidence at most the share `bound` of
    all examples would break beside these. `isolated`: no code of strangers ran beside the judge's.
    `challenges` are the SHA-256 of those that hold.
    """

    record: str
    evidence: str | None
    state: State
    signer: str
    proven: int = 0
    tolerated: int = 0
    audited: int = 0
    broke: tuple[int, ...] = ()
    bound: float | None = None
    seed: int | None = None
    isolated: bool = False
    challenges: tuple[str, ...] = ()
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
    """Flags `(N,)` that are left of a record, and why.

    `challenged` examples were taken by challenges and audits, `pending` challenges were judged by
    nobody yet, and take nothing; `receipt` is one that counts, or None.
    """

    robust: npt.NDArray[np.bool_]
    challenged: int
    pending: int
    receipt: Receipt | None

    @property
    def state(self) -> State:
        """How far the record was checked."""
        return CLAIMED if self.receipt is None else self.receipt.state


def receipt_path(record: Path) -> Path:
    """Path of the receipt of a record."""
    return record.with_suffix(".receipt")


def signers_path(record: Path) -> Path:
    """Path of the keys whose receipts count, for a record `<results>/<suite>/<model>/<cell>.json`.

    >>> signers_path(Path("/results/evaluated/net/00ff.json")).as_posix()
    '/results/allowed_signers'
    """
    return record.absolute().parents[2] / SIGNERS


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
    """Return where a record stands; raises `RecordError` for a challenge that is none.

    A receipt of another state of the record counts for nothing.
    """
    robust = unpack_flags(stored.record.verdict.robust)
    claimed, receipt = int(robust.sum()), counted_receipt(stored)
    held = () if receipt is None else receipt.challenges
    paths = challenges_of(stored.path)
    rows = [row for path in paths for row in _broken(stored, path) if sha256_of(path) in held]
    rows += () if receipt is None else receipt.broke
    robust[_rows(rows, len(robust), stored.path)] = False
    pending = sum(sha256_of(path) not in held for path in paths)
    return Standing(robust, claimed - int(robust.sum()), pending, receipt)


def counted_receipt(stored: Stored) -> Receipt | None:
    """Return the receipt beside a record if it counts; raises `RecordError` for one that is none.

    That is only asked of what an allowed key signed: all else is nobody's.
    """
    path = receipt_path(stored.path)
    if not path.is_file():
        return None
    signed = split(read_bounded(path, limit=_MOST_RECEIPT).decode(errors="replace"))
    if signed is None:
        return None
    try:
        values = parse_json(signed.text, what=str(path))
        name = str(values["signer"])
    except (RecordError, KeyError, TypeError):
        return None
    if not is_signed_by(signed, name, signers_path(stored.path)):
        return None
    receipt: Receipt = _as(Receipt, values, path)
    evidence = stored.record.evidence
    same = receipt.record == sha256_of(stored.path)
    same &= receipt.evidence == (None if evidence is None else evidence.sha256)
    return receipt if same else None


def challenge_evidence(path: Path) -> Path | None:
    """Return the evidence beside a challenge, None where there is none."""
    copies = (path.with_suffix(ending) for ending in (".npz", ".evidence"))
    return next((each for each in copies if each.is_file()), None)


def read_challenge(path: Path) -> Challenge:
    """Read a challenge, or raise `RecordError` that names the file."""
    found: Challenge = _as(Challenge, read_json(path), path)
    return found


def _broken(stored: Stored, path: Path) -> tuple[int, ...]:
    """Return the rows that a challenge takes, or raise `RecordError` that names the file."""
    found = read_challenge(path)
    if found.cell != stored.record.cell:
        raise RecordError(f"{path} challenges the cell {found.cell[:40]!r}, not this one")
    evidence = challenge_evidence(path)
    if evidence is None or sha256_of(evidence) != found.evidence:
        raise RecordError(f"{path} has no evidence beside it, or another than it names")
    _rows(found.broken, stored.record.data.examples, path)
    return found.broken


def _rows(rows: Iterable[int], count: int, path: Path) -> npt.NDArray[np.int64]:
    found = np.array(sorted(set(rows)), dtype=np.int64)
    if len(found) and not 0 <= found[0] <= found[-1] < count:
        raise RecordError(f"{path} names rows outside 0..{count - 1}")
    return found


def weakest_state(states: Iterable[State]) -> State:
    """Return what can be said of several records: the weakest of their states."""
    return min(states, key=_STATES.index)


def _as(kind: Any, values: object, path: Path) -> Any:
    try:
        return read(kind, values, source=str(path))
    except ConfigError as error:
        raise RecordError(str(error)) from None

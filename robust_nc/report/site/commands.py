"""What a reader runs to get a row again, or to check it; made from a stranger's configuration.

>>> _argument("a b"), _argument("--out=/etc"), _argument("a\\nb")
("'a b'", '', '')
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from robust_nc.record.schema import Record, Stored
from robust_nc.report.board.gather import identity

APPRAISED = "evaluated"  # `Record.suite` of a model that came finished
AUDITED = 300
_MOST = 300  # characters of an argument


def _argument(text: str) -> str:
    """Quote an argument for a shell; "" for one that no reader should paste."""
    fine = 0 < len(text) <= _MOST and text.isprintable() and text.isascii()
    return shlex.quote(text) if fine and not text.startswith("-") else ""


def how_to_reproduce(record: Record) -> str:
    """Return the command that makes the row again, or "" where it cannot be told safely."""
    if record.suite != APPRAISED:
        suite = _argument(record.suite)
        return f"robust-nc run {suite}" if suite else ""
    told = identity(record)
    asked = {
        "--dataset": _dataset(record),
        "--norm": told.norm,
        "--eps": told.ball.removeprefix(f"{told.norm} "),
        "--protocol": record.protocol,
        "--n": str(record.data.examples),
        "--seed": str(record.seed),
    }
    attack = _at(record.config, "evaluation", "attack", "name")
    asked |= {} if attack is None else {"--attack": str(attack)}
    words = [_argument(_reference(record)), *map(_argument, asked.values())]
    if not all(words):
        return ""
    options = [f"{name} {word}" for name, word in zip(asked, words[1:], strict=True)]
    if not record.config.get("measure"):
        return " ".join(["robust-nc evaluate", words[0], *options, "--no-geometry"])
    named = _at(record.config, "measure", "taps")
    taps = [_argument(str(tap)) for tap in named] if isinstance(named, list) else []
    if not all(taps):
        return ""
    return " ".join(
        ["robust-nc evaluate", words[0], *options, *(["--taps", *taps] if taps else [])]
    )


def _dataset(record: Record) -> str:
    """Return the data set with its options, as `--dataset` takes them: `npz?path=mine.npz`."""
    options = _at(record.config, "data", "dataset", "options")
    query = urlencode(options, safe="/") if isinstance(options, Mapping) else ""
    return f"{record.data.dataset}?{query}" if query else record.data.dataset


def _at(values: object, *keys: str) -> Any:
    """Return what lies at a path of keys, None where a stranger's configuration has no such."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def how_to_verify(stored: Stored, root: Path) -> str:
    """Return the command that checks the record, in the folder `root`; "" as `how_to_reproduce`."""
    path = _argument(os.path.relpath(stored.path, root))
    if not path:
        return ""
    model = _argument(_reference(stored.record))
    checked = f" --model {model} --audit {AUDITED}" if model and stored.record.evidence else ""
    return f"robust-nc verify {path}{checked}"


def _reference(record: Record) -> str:
    """Return what a finished model was asked for as; "" for one of a suite."""
    found = _at(record.config, "model", "reference")
    return found if isinstance(found, str) else ""


def common_root(records: Sequence[Stored]) -> Path:
    """Return the folder that all records lie in."""
    return Path(os.path.commonpath([stored.path.parent.resolve() for stored in records]))

"""The log of a training: one JSON object per line and epoch.

>>> import pathlib, tempfile
>>> path = pathlib.Path(tempfile.mkdtemp()) / "log.jsonl"
>>> start_log(path, [{"epoch": 1}])
>>> append_log(path, {"epoch": 2})
>>> read_log(path)
[{'epoch': 1}, {'epoch': 2}]
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from robust_nc.exceptions import RecordError, StorageError
from robust_nc.io import files

Row = dict[str, Any]


def start_log(path: Path, rows: list[Row]) -> None:
    """Write the log of the epochs that a resumed training keeps (none for a new one).

    A log that says so already is left alone: a finished training may lie where nothing is written.
    """
    with contextlib.suppress(RecordError):
        if read_log(path) == rows:
            return
    files.write_text(path, "".join(_line(row) for row in rows))


def append_log(path: Path, row: Row) -> None:
    """Add one epoch, or no part of it: raises `StorageError` where it cannot be written."""
    size = None
    try:
        size = path.stat().st_size if path.exists() else 0
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
    except OSError as error:
        with contextlib.suppress(OSError):
            if size is not None:
                os.truncate(path, size)
        raise StorageError(f"cannot write {path}: {error.strerror}; free some space") from error


def read_log(path: Path) -> list[Row]:
    """Read all epochs. Raises `RecordError` for a damaged line."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read the log {path}: {error}") from error


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"

"""What lies in a results folder, without reading it: each record and a signature of its files.

A signature changes with the size and the times of a record, its rows, its receipt and its
challenges. The time of the last change of status is among them, which no archive can set.

>>> import tempfile
>>> scan(Path(tempfile.mkdtemp()))
Scan(found={}, state='e3b0c44298fc1c149afbf4c8996fb924')
"""

import hashlib
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from robust_nc.record.folder import is_record_name, record_folders

_CHECKED = (".receipt", ".challenge")
_KEPT = (".json", ".parquet", *_CHECKED)
_DIGITS = 32


class Found(NamedTuple):
    """Where a record lies, its signature, and whether receipts or challenges lie beside it."""

    path: Path
    signature: str
    checked: bool


class Scan(NamedTuple):
    """Records by their path from the root, sorted; `state` is the digest of all signatures."""

    found: dict[str, Found]
    state: str


def scan(root: Path) -> Scan:
    """Look at all records under a folder (or at the one record that `root` is).

    Raises `RecordError` as `store.record_folders` does.
    """
    single = root.is_file()
    base = root.parent if single else root
    found = {}
    for folder, names in record_folders(root):
        beside = _by_stem([path.name for path in folder.iterdir()] if single else names)
        for name in names:
            if single or is_record_name(name):
                path = folder / name
                found[_text(path.relative_to(base))] = _look(path, beside)
    found = dict(sorted(found.items()))
    return Scan(found, _digest([f"{path} {one.signature}" for path, one in found.items()]))


def _text(path: Path) -> str:
    """Write a path as text, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _by_stem(names: list[str]) -> dict[str, list[str]]:
    """Gather names up to their first dot, so that a large folder is not searched per record."""
    found = defaultdict(list)
    for name in names:
        if name.endswith(_KEPT):
            found[name.partition(".")[0]].append(name)
    return found


def _look(path: Path, beside: dict[str, list[str]]) -> Found:
    names = beside.get(path.name.partition(".")[0], [])
    own = {path.name, *(one for one in names if one.startswith(f"{path.stem}."))}
    folder, stats = str(path.parent), []
    for name in sorted(own):
        try:
            status = os.stat(f"{folder}/{name}")  # noqa: PTH116 (20,000 of them: `Path` is slow)
        except FileNotFoundError:  # gone since it was listed
            continue
        times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
        stats.append(f"{name} {status.st_size} {times}")
    return Found(path, _digest(stats), any(name.endswith(_CHECKED) for name in own))


def _digest(lines: list[str]) -> str:
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:_DIGITS]

"""What lies in the folder of an appraisal already: it holds one record, and never another's.

>>> finished(Path("no/such/folder"), "00ff") is None
True
"""

import dataclasses
from pathlib import Path

from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.files import sha256_of
from robust_nc.record.folder import evidence_path
from robust_nc.record.schema import Card, Stored, read_record, write_record
from robust_nc.record.seals import sealed


def check_folder(out: Path, cell: str) -> None:
    """Refuse a folder with another record in it."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose a folder with --out")
    for path in sorted(out.glob("*.json")):
        if path.stem != cell and not path.name.startswith("."):
            raise ConfigError(
                f"{out} holds {_told(path)} already, and a folder holds one record; choose "
                f"another, such as --out {out}-{cell[:6]}"
            )


def finished(out: Path, cell: str) -> Stored | None:
    """Return the whole record of this appraisal, or None where it is missing or damaged."""
    path = out / f"{cell}.json"
    if not path.is_file():
        return None
    try:
        stored = read_record(path)
        stored.rows()
    except RecordError:
        return None
    evidence, beside = stored.record.evidence, evidence_path(path)
    if evidence is None or not beside.is_file() or sha256_of(beside) != evidence.sha256:
        return None
    return stored


def with_card(stored: Stored, card: Card | None, name: str) -> Stored:
    """Give a finished record another card, where one was handed in, and return it."""
    if card is None or card == stored.record.card:
        return stored
    record = sealed(dataclasses.replace(stored.record, card=card, model=name))
    write_record(stored.path, record)
    return Stored(record, stored.path)


def _told(path: Path) -> str:
    try:
        record = read_record(path).record
    except RecordError:
        return path.name
    threat = record.config.get("threat")
    eps = f", eps {threat.get('eps')}" if isinstance(threat, dict) else ""
    return f"{path.name} ({record.model} on {record.data.dataset}{eps}, {record.protocol})"

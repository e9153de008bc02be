"""The files that belong to a record, checked: what may be submitted, or pushed to the Hub.

>>> LARGEST_ROWS
1048576
"""

from pathlib import Path

from robust_nc.exceptions import RecordError
from robust_nc.io.files import sha256_of
from robust_nc.io.text import one_line
from robust_nc.io.untrusted import file_name, read_json
from robust_nc.record.schema import Stored, broken_seals
from robust_nc.record.standing import challenges_of

LARGEST_ROWS = 2**20
CHALLENGING = (".evidence", ".npz")  # what the evidence of a challenge may be


def check_whole(stored: Stored) -> None:
    """Raise `RecordError` for a record that is not sealed, or not as it was sealed."""
    values = read_json(stored.path)
    if not values.get("seals"):
        raise RecordError(
            f"{stored.path} has no seals, so a change of it would go unseen; evaluate the model "
            "again with this version"
        )
    broken = broken_seals(values)
    if broken:
        named = one_line(", ".join(broken), limit=200)
        raise RecordError(
            f"{stored.path} was changed after it was written, in {named}; "
            "submit the record as evaluate left it"
        )


def rows_file(stored: Stored) -> Path:
    """Return the path of a record's rows, which is the file that it names."""
    named = stored.record.rows
    path = stored.path.with_name(file_name(named.path, what=f"rows of {stored.path}"))
    _check_named(stored, path, "rows", (named.sha256,))
    if path.stat().st_size > LARGEST_ROWS:
        raise RecordError(f"{path} is larger than {LARGEST_ROWS:,} bytes, the most that is taken")
    return path


def evidence_file(stored: Stored) -> Path:
    """Return the path of a record's evidence, which is the file that it names (cut, or in full)."""
    named = stored.record.evidence
    if named is None:
        raise RecordError(
            f"{stored.path} carries no evidence, without which nobody can check it; "
            "`robust-nc evaluate` leaves it, also for a checkpoint of a run"
        )
    path = stored.path.with_name(file_name(named.name, what=f"evidence of {stored.path}"))
    _check_named(stored, path, "evidence", (named.sha256, named.full))
    return path


def challenge_files(stored: Stored) -> list[Path]:
    """Return the paths of all challenges of a record and of their evidence, sorted.

    Raises `RecordError` for evidence that is not what the challenge is named by.
    """
    found = challenges_of(stored.path)
    beside = [path.with_suffix(ending) for path in found for ending in CHALLENGING]
    beside = [path for path in beside if path.is_file()]
    for path in beside:
        if not sha256_of(path).startswith(path.stem.rpartition(".")[2]):
            raise RecordError(f"{path} is not the evidence that its challenge is named by")
    return sorted([*found, *beside])


def _check_named(stored: Stored, path: Path, what: str, digests: tuple[str | None, ...]) -> None:
    if not path.is_file():
        raise RecordError(
            f"{stored.path} names the {what} {path.name}, which must lie beside it and does not"
        )
    if sha256_of(path) not in digests:
        raise RecordError(f"{path} is not the file that {stored.path.name} was written with")

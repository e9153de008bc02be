"""Where records lie: `<out>/<model>/<cell>.json`, beside their rows.

>>> import tempfile, pathlib
>>> read_all(pathlib.Path(tempfile.mkdtemp()))
[]
"""

import shutil
from pathlib import Path

from robust_nc.exceptions import RecordError, StorageError
from robust_nc.record import Stored, read_record

# Under these folders lie files that are no records.
NOT_RECORDS = frozenset({"answers", "cache", "checkpoints"})


def record_path(out: Path, model: str, cell: str) -> Path:
    """Path of a cell's record."""
    return out / model / f"{cell}.json"


def rows_path(out: Path, model: str, cell: str) -> Path:
    """Path of a cell's tidy rows."""
    return out / model / f"{cell}.parquet"


def checkpoint_folder(out: Path, cell: str) -> Path:
    """Folder of a cell's checkpoints and training log."""
    return out / "checkpoints" / cell


def verdict_log(out: Path, cell: str, which: str) -> Path:
    """Path of the log of an unfinished verdict on a cell: `best`, `last` or `beside`."""
    return out / "cache" / f"{cell}-{which}.jsonl"


def read_all(root: Path) -> list[Stored]:
    """Read every record under a folder (or the one record that `root` is), sorted by path.

    Raises `RecordError` if the folder is missing, or a record is damaged.
    """
    if root.is_file():
        return [read_record(root)]
    if not root.is_dir():
        raise RecordError(f"there is no results folder {root}; run a suite first: robust-nc run")
    paths = sorted(
        path
        for path in root.rglob("*.json")
        if not NOT_RECORDS & set(path.relative_to(root).parts[:-1])
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    return [read_record(path) for path in paths]


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it, if it is there."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StorageError(f"cannot remove {folder}: {error.strerror or error}") from error


def remove_file(path: Path) -> None:
    """Remove a file, if it is there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {path}: {error.strerror or error}") from error


def remove_unfinished(root: Path) -> None:
    """Remove what writers that were killed left behind (see `files.atomic`)."""
    for path in root.rglob(".*.part"):
        remove_file(path)

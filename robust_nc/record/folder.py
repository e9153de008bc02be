"""Where records lie: `<out>/<model>/<cell>.json`, beside their rows.

>>> import tempfile, pathlib
>>> read_all(pathlib.Path(tempfile.mkdtemp()))
[]
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from robust_nc.exceptions import RecordError
from robust_nc.io.files import remove_file

if TYPE_CHECKING:
    from robust_nc.record.schema import Stored

# Under these folders lie files that are no records.
NOT_RECORDS = frozenset({"answers", "cache", "checkpoints", "logs"})


def record_path(out: Path, model: str, cell: str) -> Path:
    """Path of a cell's record."""
    return out / model / f"{cell}.json"


def rows_path(out: Path, model: str, cell: str) -> Path:
    """Path of a cell's tidy rows."""
    return out / model / f"{cell}.parquet"


def evidence_path(record: Path) -> Path:
    """Path of the evidence that lies beside a record.

    >>> evidence_path(Path("out/net/00ff.json")).name
    '00ff.evidence'
    """
    return record.with_suffix(".evidence")


def checkpoint_folder(out: Path, cell: str) -> Path:
    """Folder of a cell's checkpoints and training log."""
    return out / "checkpoints" / cell


def log_folder(out: Path, model: str, seed: int, training: str) -> Path:
    """Folder of the logs of a training that were asked for, such as TensorBoard's."""
    return out / "logs" / model / f"seed{seed}-{training[:8]}"


def verdict_log(out: Path, cell: str, which: str) -> Path:
    """Path of the log of an unfinished verdict on a cell: `best`, `last` or `beside`."""
    return out / "cache" / f"{cell}-{which}.jsonl"


def part_log(out: Path, cell: str, which: str, start: int, stop: int) -> Path:
    """Path of the log of a verdict on test images `start` to `stop` alone."""
    return out / "cache" / f"{cell}-{which}-{start}-{stop}.jsonl"


def part_logs(out: Path, cell: str, which: str) -> dict[tuple[int, int], Path]:
    """Find the logs of parts of a verdict, by their first image and the one behind their last.

    >>> part_logs(Path("nowhere"), "00ff", "best")
    {}
    """
    found = {}
    for path in (out / "cache").glob(f"{cell}-{which}-*-*.jsonl"):
        start, stop = path.stem.split("-")[-2:]
        if start.isdecimal() and stop.isdecimal():
            found[int(start), int(stop)] = path
    return dict(sorted(found.items()))


def geometry_path(out: Path, cell: str, epoch: int | None = None) -> Path:
    """Path of a cell's geometry (or that of one epoch) until the record is written."""
    return out / "cache" / f"{cell}-geometry{'' if epoch is None else f'-{epoch}'}.parquet"


def seconds_path(out: Path, cell: str) -> Path:
    """Path of the note on how long a cell's training took, until the record is written."""
    return out / "cache" / f"{cell}-train.json"


def caches(out: Path, cell: str) -> tuple[Path, ...]:
    """Find what the stages of a cell have left for the record."""
    found = (out / "cache").glob(f"{cell}-*")
    return tuple(sorted(path for path in found if path.suffix in (".jsonl", ".json", ".parquet")))


def remove_caches(out: Path, cell: str) -> None:
    """Remove what the stages of a cell left, damaged ends of logs as well."""
    for path in [*caches(out, cell), *(out / "cache").glob(f"{cell}-*.damaged")]:
        remove_file(path)


def read_all(root: Path) -> "list[Stored]":
    """Read every record under a folder (or the one record that `root` is), sorted by path.

    Raises `RecordError` if the folder is missing, or a record is damaged.
    """
    # Here: who only lists files need not wait for torch.
    from robust_nc.record.schema import read_record

    return [read_record(path) for path in record_files(root)]


def record_files(root: Path) -> list[Path]:
    """Return the files of all records under a folder (or `root`, if it is a file), sorted.

    Hidden files and folders, and `NOT_RECORDS`, are left out. Raises `RecordError` if `root` is
    missing, or a folder may not be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # one that has gone meanwhile holds nothing
            raise RecordError(f"{error.filename} cannot be read: {error.strerror or error}")

    if root.is_file():
        return [root]
    if not root.is_dir():
        raise RecordError(f"there is no results folder {root}; run a suite first: robust-nc run")
    found: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [n for n in folders if not n.startswith(".") and n not in NOT_RECORDS]
        found += [Path(folder, n) for n in names if n.endswith(".json") and not n.startswith(".")]
    return sorted(found)

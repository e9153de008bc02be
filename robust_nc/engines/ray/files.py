"""What travels between machines without a shared disk: files, and messages of those at work.

A bundle holds contents by path below the suite's folder. What is written is whole or not there;
JSON comes last, since it names the other files of a checkpoint.

>>> import pathlib, tempfile
>>> here, there = (pathlib.Path(tempfile.mkdtemp()) for _ in "ab")
>>> write_bytes(here / "cache" / "a.jsonl", b"done")
>>> write_bundle(read_bundle(here, ["cache"]), there)
>>> (there / "cache" / "a.jsonl").read_bytes()
b'done'

Messages wait in an actor without resources. Should it be lost, it starts another life, empty; who
hears of another life than before sends again what may have lain in it.

>>> queue = MessageQueue()
>>> queue.put(Message("cell", 1, None, None)).stop, [message.task for message in queue.drain()]
(False, ['cell'])
>>> queue.drain()
[]
"""

import uuid
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from robust_nc.exceptions import StorageError
from robust_nc.io.files import remove_file, write_bytes
from robust_nc.runtime.progress import Event

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


class Message(NamedTuple):
    """From the `attempt`-th try of a task: an event to show, the files that changed, or both.

    `life` is that in which the files before these were sent; None where these are all.
    """

    task: str
    attempt: int
    event: Event | None
    bundle: FileBundle | None
    life: str | None = None


class Reply(NamedTuple):
    """Whether the work shall stop, and in which life of the queue this was said."""

    stop: bool
    life: str


class MessageQueue:
    """Keeps messages until the driver fetches them; `stop` is told to whoever writes."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._reply = Reply(False, uuid.uuid4().hex)

    def put(self, message: Message) -> Reply:
        """Take a message, but not files that build upon some that may have been lost."""
        if message.life in (None, self._reply.life):
            self._messages.append(message)
        return self._reply

    def drain(self) -> list[Message]:
        """Hand over all messages, oldest first."""
        messages, self._messages = self._messages, []
        return messages

    def stop(self) -> None:
        """Ask all work to save its state and stop."""
        self._reply = self._reply._replace(stop=True)

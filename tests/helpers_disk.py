"""A disk that fills up, or cannot be written, for what is below one folder of this process.

Python tells an audit hook of every file that it opens to write, makes, renames or cuts, before it
does; the hook raises instead. Syncs are caught by a patch. What compiled code writes on its own
(the rows of a record) goes through, and fails when it is synced.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from robust_nc.engines import local as launch
from robust_nc.engines import run_suite as runner
from robust_nc.engines.local import Finished, Task

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
_GROWS = ("os.mkdir", "os.rename", "os.truncate")
_CHANGES = (*_GROWS, "os.remove", "os.rmdir", "os.chmod", "os.utime", "os.link", "os.symlink")


class Disk:
    """Counts the writes below `folder`; from number `full_at` on (from 0) they fail.

    `only_once`: that one alone fails. `number` is the error; all but ENOSPC forbid removing too.
    """

    def __init__(
        self,
        folder: Path,
        *,
        full_at: int | None = None,
        only_once: bool = False,
        number: int = errno.ENOSPC,
    ) -> None:
        self.seen: list[str] = []
        self._folder = str(folder)
        self._full_at = full_at
        self._only_once = only_once
        self._number = number
        self._events = _GROWS if number == errno.ENOSPC else _CHANGES

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take note of what is about to be done, and refuse it when the disk is full."""
        writes = event in self._events
        if event == "open":
            writes = isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
        if not writes or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        path = os.fsdecode(arguments[0])
        if path == self._folder or path.startswith(f"{self._folder}/"):
            self.write(event, path)

    def write(self, event: str, path: str) -> None:
        """Count a write, and fail it when its number has come."""
        place = len(self.seen)
        self.seen.append(f"{event} {path.removeprefix(self._folder)}")
        if self._full_at is not None and (
            place == self._full_at or (place > self._full_at and not self._only_once)
        ):
            raise OSError(self._number, os.strerror(self._number), path)


_disks: list[Disk] = []
_hooked: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _disks and (event == "open" or event in _CHANGES):
        _disks[-1].hear(event, arguments)


@contextlib.contextmanager
def using(disk: Disk) -> Iterator[Disk]:
    """Let this process write to a disk that may fill up."""
    if not _hooked:  # once: a hook can never be taken away
        sys.addaudithook(_hook)
        _hooked.append(True)
    sync = os.fsync

    def fsync(handle: Any) -> None:
        number = handle if isinstance(handle, int) else handle.fileno()
        path = str(Path(f"/proc/self/fd/{number}").readlink())
        if path.startswith(disk._folder):
            disk.write("fsync", path)
        sync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        _disks.append(disk)
        try:
            yield disk
        finally:
            _disks.pop()


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Let the runner do its tasks in this process, where the disk fills up."""

    def here(
        chains: Sequence[Sequence[Task]], *, on_event: Callable[[Any], None], **_: Any
    ) -> Generator[Finished, None, None]:
        for chain in chains:
            for task in chain:
                yield launch._done(task, on_event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_tasks", here)
        yield

"""What a run left after a fault, processes to be killed, and disks that fill up, fail or die.

Python tells an audit hook of every file that it opens to write, makes, renames or cuts, before it
does; the hook of `using` raises instead. Syncs are caught by a patch. What compiled code writes on
its own (the rows of a record) goes through, and fails when it is synced.
"""

import contextlib
import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers_runner import living

from robust_nc.config import plain
from robust_nc.engines import local as launch
from robust_nc.engines import run_suite as runner
from robust_nc.engines.local import Finished, Task
from robust_nc.exceptions import StorageError
from robust_nc.record.folder import read_all
from robust_nc.training.progress import read_log

# What a record says of when and how long it was made, and the seals over that.
_OF_THE_TIME = ("created", "seconds", "seals")


class Left(NamedTuple):
    """What a run left: records without times, bytes of rows and evidence, and logs of trainings."""

    records: dict[str, dict[str, Any]]
    files: dict[str, bytes]
    trainings: dict[str, list[int]]


def left_by(out: Path) -> Left:
    """Read what lies in a suite's folder, with paths from there; what is half raises."""
    found: dict[str, dict[str, Any]] = {}
    for stored in read_all(out) if out.is_dir() else ():
        assert len(stored.rows())
        values = plain(stored.record)
        for name in _OF_THE_TIME:
            values.pop(name)
        found[str(stored.path.relative_to(out))] = json.loads(json.dumps(values))
    kinds = ("*/*.parquet", "*/*.evidence")
    paths = [path for kind in kinds for path in out.glob(kind)]
    logs = out.glob("checkpoints/*/log.jsonl")
    return Left(
        found,
        {str(path.relative_to(out)): path.read_bytes() for path in paths},
        {path.parent.name: [row["epoch"] for row in read_log(path)] for path in logs},
    )


def assert_same(found: Left, wanted: Left) -> None:
    """Compare all that two runs left, and say which part differs."""
    assert found.records == wanted.records
    assert found.files.keys() == wanted.files.keys()
    assert [path for path in wanted.files if found.files[path] != wanted.files[path]] == []
    assert found.trainings == wanted.trainings


def assert_tidy(out: Path) -> None:
    """No half file, no log of what is finished, no tensors that no checkpoint names."""
    assert list(out.rglob("*.part")) == []
    assert [path.name for path in out.rglob("*.jsonl") if path.name != "log.jsonl"] == []
    for folder in out.glob("checkpoints/*"):
        named = "".join(path.read_text() for path in folder.glob("*.json"))
        assert [p.name for p in folder.glob("*.safetensors") if p.name not in named] == []


def workers_of(driver: int) -> list[int]:
    """Worker processes of a driver, from /proc."""
    found = []
    for process in living():
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            command = Path(f"/proc/{process}/cmdline").read_text()
            if parent == driver and "spawn_main" in command:
                found.append(process)
    return sorted(found)


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


WRITES = ("write", "sync", "rename")
ALL = (*WRITES, "create", "remove")


class Killed(BaseException):
    """Stands for a kill: nothing that would follow is done."""


class Operations:
    """Counts operations; from the `until`-th on (from 0) it asks `fail` what to raise."""

    def __init__(self, until: int, fail: Callable[[], BaseException], *, forever: bool) -> None:
        self.left = until
        self.fail = fail
        self.forever = forever
        self.failed = False

    def __call__(self, half: Callable[[], Any] = lambda: None) -> None:
        if self.left == 0 or (self.failed and self.forever):
            if not self.failed:
                half()
            self.failed = True
            self.left = -1
            raise self.fail()
        self.left -= 1


@contextlib.contextmanager
def failing_at(kinds: tuple[str, ...], operations: Operations) -> Iterator[Operations]:
    """Count operations of these kinds, wherever they are asked for in this block."""
    whole_write = Path.write_bytes

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            operations()
            return call(*args, **options)

        return counted

    def write(path: Path, content: bytes) -> int:
        operations(lambda: whole_write(path, content[: len(content) // 2]))
        return whole_write(path, content)

    with pytest.MonkeyPatch.context() as patch:
        if "write" in kinds:
            patch.setattr(Path, "write_bytes", write)
        if "sync" in kinds:
            patch.setattr(os, "fsync", wrap(os.fsync))
        if "rename" in kinds:
            patch.setattr(Path, "replace", wrap(Path.replace))
        if "create" in kinds:
            patch.setattr(tempfile, "mkstemp", wrap(tempfile.mkstemp))
        if "remove" in kinds:
            patch.setattr(Path, "unlink", wrap(Path.unlink))
        yield operations


@contextlib.contextmanager
def killed_at(until: int) -> Iterator[Operations]:
    """Kill at an operation, half done if it is a write; the block ends quietly there."""
    operations = Operations(until, Killed, forever=True)
    with contextlib.suppress(Killed), failing_at(ALL, operations):
        yield operations


@contextlib.contextmanager
def full_at(until: int) -> Iterator[Operations]:
    """Let the disk be full at one write, sync or rename."""
    operations = Operations(until, lambda: OSError(errno.ENOSPC, "No space left"), forever=False)
    with failing_at(WRITES, operations):
        yield operations


@contextlib.contextmanager
def told() -> Iterator[None]:
    """End quietly at a `StorageError` that says what is wrong."""
    try:
        yield
    except StorageError as error:
        if "No space left" not in str(error):
            raise

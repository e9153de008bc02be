"""A file system that fails, or dies, at a given operation."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robust_nc.exceptions import StorageError

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

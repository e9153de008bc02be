"""A wish to stop, which long work heeds at its next safe point, with its state saved.

Whoever starts work turns a scheduler's SIGTERM into the wish (`on_sigterm`); the work calls `heed`
where nothing is half done, or asks `wished` and saves first.

>>> wished()
False
>>> wish()
>>> try:
...     heed()
... except StoppedError as error:
...     print(error)
... finally:
...     clear()
stopped as asked; what was finished is saved, and the same command goes on from there
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

from robust_nc.exceptions import StoppedError

SECONDS = 10.0  # what a scheduler leaves between SIGTERM and SIGKILL

_wished = threading.Event()


def wish() -> None:
    """Ask the work of this process to stop."""
    _wished.set()


def wished() -> bool:
    """Whether it was asked to stop."""
    return _wished.is_set()


def clear() -> None:
    """Take the wish back."""
    _wished.clear()


def heed() -> None:
    """Raise `StoppedError` if the work was asked to stop."""
    if _wished.is_set():
        raise StoppedError


@contextlib.contextmanager
def on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into the wish, for this block; in the main thread only."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: wish())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        clear()

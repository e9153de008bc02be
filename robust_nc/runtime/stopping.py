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
import time
from collections.abc import Iterator
from types import FrameType

from robust_nc.exceptions import StoppedError

SECONDS = 10.0  # what a scheduler leaves between SIGTERM and SIGKILL

_MARGIN = 0.5  # seconds of them for the way out
_TWICE = 1.0  # seconds in which a second SIGTERM is still the first: some senders send it twice

_RINGS = hasattr(signal, "setitimer")
_wishes: list[None] = []  # no `Event`: its lock would catch a handler that interrupts another


def wish() -> None:
    """Ask the work of this process to stop."""
    _wishes.append(None)


def wished() -> bool:
    """Whether it was asked to stop."""
    return bool(_wishes)


def clear() -> None:
    """Take the wish back."""
    _wishes.clear()


def heed() -> None:
    """Raise `StoppedError` if the work was asked to stop."""
    if _wishes:
        raise StoppedError


def _ring(seconds: float) -> None:
    """Let SIGALRM come in so many seconds; 0 calls it off."""
    if _RINGS:
        signal.setitimer(signal.ITIMER_REAL, seconds)


@contextlib.contextmanager
def on_sigterm(*, seconds: float | None = None) -> Iterator[None]:
    """Turn SIGTERM, and the end of so many seconds, into the wish, for this block.

    In the main thread only. Work that has not heeded it when `SECONDS` are over gets a
    `KeyboardInterrupt`, and so it does on a second SIGTERM. Where the system has no timers that
    interrupt (Windows), the end of the seconds is a wish that is waited for.
    """
    terms: list[float] = []
    begun: list[None] = []

    def asked(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            terms.append(time.monotonic())
        twice = number == signal.SIGTERM and terms[-1] - terms[0] > _TWICE
        if twice or (number == signal.SIGALRM and begun):
            raise KeyboardInterrupt
        if not begun:
            begun.append(None)
            _ring(SECONDS - _MARGIN)
        wish()

    numbers = [signal.SIGTERM, *([signal.SIGALRM] if _RINGS else [])]
    before = [(number, signal.signal(number, asked)) for number in numbers]
    waiting = threading.Timer(seconds or 0, wish)
    try:
        if seconds is not None:
            _ring(seconds) if _RINGS else waiting.start()
        yield
    finally:
        waiting.cancel()
        _ring(0)
        for number, handler in before:
            signal.signal(number, handler)
        clear()

"""Running a stranger's code that its user named: what it may do to us, and for how long.

>>> with strangers_code("mine.py:net"):
...     raise SystemExit(3)
Traceback (most recent call last):
...
robust_nc.exceptions.ConfigError: mine.py:net failed: SystemExit: 3
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import torch

from robust_nc.exceptions import ConfigError, RobustNCError
from robust_nc.plugins import told

Tell = Callable[[str], None]

NOTICE_SECONDS = 30.0  # until the user is told that something is waited for
LIMIT_SECONDS = 600.0  # until it is given up


class _TimeUp(BaseException):
    """Not an Exception, so that a stranger's code does not catch it by accident."""


@contextlib.contextmanager
def strangers_code(what: str, tell: Tell | None = None) -> Iterator[None]:
    """Run a stranger's code: whatever it raises becomes a `ConfigError` that names `what`.

    An exit too; Ctrl-C passes. What it prints goes to stderr. Its draws are seeded, and the
    generator, the argument list, the working folder and torch's defaults are as before afterwards.
    In the main thread, `tell` is called after `NOTICE_SECONDS`, and after `LIMIT_SECONDS` it is
    given up.
    """
    try:
        with _time_limit(what, tell), to_stderr(), _as_before():
            yield
    except _TimeUp:
        raise ConfigError(
            f"{what} was not done after {LIMIT_SECONDS:g} s and was given up; build the model "
            "without training it or waiting for anything"
        ) from None
    except RobustNCError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise ConfigError(f"{what} failed: {told(error)}") from error


@contextlib.contextmanager
def to_stderr() -> Iterator[None]:
    """Send all that is printed to stderr, also what libraries and child processes print."""
    with contextlib.redirect_stdout(sys.stderr):
        saved = _aimed_at_stderr()
        try:
            yield
        finally:
            if saved is not None:
                os.dup2(saved, 1)
                os.close(saved)


def _aimed_at_stderr() -> int | None:
    """Aim file descriptor 1 at stderr and return a copy of the old one; None without either."""
    try:
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()  # what was printed before is no part of it
        saved = os.dup(1)
    except (OSError, ValueError):
        return None
    try:
        os.dup2(2, 1)
    except OSError:
        os.close(saved)
        return None
    return saved


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Seed the draws, hide our own arguments, and put back what code may have changed."""
    arguments, folder = sys.argv, Path.cwd()
    dtype, device, grad = torch.get_default_dtype(), _device(), torch.is_grad_enabled()
    sys.argv = arguments[:1]  # a file that parses arguments would answer ours with an exit
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        sys.argv = arguments
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if _device() != device:
            torch.set_default_device(None if device == "cpu" else device)


def _device() -> str:
    return str(torch.get_default_device())


@contextlib.contextmanager
def _time_limit(what: str, tell: Tell | None) -> Iterator[None]:
    """Raise `_TimeUp` in the code inside when its time is up."""
    if (
        threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "setitimer")
        or signal.getitimer(signal.ITIMER_REAL)[0] > 0  # someone else holds the only timer
    ):
        yield
        return
    rang = 0

    def ring(_number: int, _frame: FrameType | None) -> None:
        nonlocal rang
        rang += 1
        if rang > 1:
            raise _TimeUp
        # Afterwards again and again, as the code may swallow the first.
        signal.setitimer(signal.ITIMER_REAL, max(LIMIT_SECONDS - NOTICE_SECONDS, 1e-3), 1.0)
        if tell is not None:
            tell(
                f"{what} has been running for {NOTICE_SECONDS:g} s; it is given up after "
                f"{LIMIT_SECONDS:g} s"
            )

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, NOTICE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if previous is None else previous)

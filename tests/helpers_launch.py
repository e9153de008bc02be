"""Tasks for workers, in a module that is quick to import."""

import os
import time
from collections.abc import Callable
from typing import Any

from robust_nc.exceptions import InputError


def double(number: int, *, report: Callable[[Any], None]) -> int:
    report(("doubling", number))
    return 2 * number


def process_id(*, report: Callable[[Any], None]) -> int:
    return os.getpid()


def refuse(sentence: str, *, report: Callable[[Any], None]) -> None:
    raise InputError(sentence)


def break_down(*, report: Callable[[Any], None]) -> None:
    raise ZeroDivisionError("nobody expects this")


def run_out_of_memory(*, report: Callable[[Any], None]) -> None:
    raise MemoryError


def kill_itself(number: int, *, report: Callable[[Any], None]) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(*, report: Callable[[Any], None]) -> None:
    os._exit(3)


def sleep_long(*, report: Callable[[Any], None]) -> None:
    report(os.getpid())
    time.sleep(300)

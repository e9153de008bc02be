"""Tasks for workers, in a module that is quick to import."""

import os
import time
from pathlib import Path

from robust_nc.exceptions import InputError, StoppedError
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Report


def double(number: int, *, report: Report) -> int:
    report(0.5, f"doubling {number}")
    return 2 * number


def process_id(*, report: Report) -> int:
    return os.getpid()


def refuse(sentence: str, *, report: Report) -> None:
    raise InputError(sentence)


def break_down(*, report: Report) -> None:
    raise ZeroDivisionError("nobody expects this")


def run_out_of_memory(*, report: Report) -> None:
    raise MemoryError


def kill_itself(number: int, *, report: Report) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(*, report: Report) -> None:
    os._exit(3)


def sleep_long(*_: object, report: Report) -> None:
    """Work on, whatever is asked."""
    report(0.0, str(os.getpid()))
    time.sleep(300)


def die_at_first(number: int, times: int, note: Path, *, report: Report) -> int:
    """End its own process with a signal, `times` times; later say how often it was begun."""
    with note.open("a") as file:
        file.write("begun\n")
    begun = len(note.read_text().splitlines())
    if begun <= times:
        os.kill(os.getpid(), number)
        time.sleep(60)
    return begun


def work_until_told(note: Path, *, report: Report) -> None:
    """Work until a wish to stop is heeded, and leave a note as what was saved."""
    report(0.0, str(os.getpid()))
    try:
        while True:
            stopping.heed()
            time.sleep(0.01)
    except StoppedError:
        time.sleep(0.3)  # saving takes a while: nobody may be ended meanwhile
        note.write_text("saved")
        raise


def told_once(note: Path, *, report: Report) -> str:
    """Work until told to stop, the first time; the second time go on from the note."""
    if note.exists():
        return note.read_text()
    work_until_told(note, report=report)
    return "never"

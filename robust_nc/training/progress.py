"""What training says while it runs, and bars that show it.

A report is any function of a `TrainEvent`. Bars go to stderr, and only if that is a terminal.

>>> event = TrainEvent(epoch=1, epochs=2, step=5, steps=10, loss=0.7)
>>> with Bars() as bars:
...     bars.show("digits/pgd", event)
>>> event.share
0.5
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from robust_nc.exceptions import RecordError, StorageError
from robust_nc.io import files

_REPORT_SECONDS = 0.5


class TrainEvent(NamedTuple):
    """Where a training stands: accuracies in [0, 1], None where unknown; `step` over all epochs.

    `note` is what else should be known of this session, such as a damaged checkpoint.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None = None
    clean: float | None = None
    attacked: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    note: str | None = None

    @property
    def share(self) -> float:
        """Share of the training that is done."""
        return self.step / self.steps if self.steps else 1.0


Report = Callable[[TrainEvent], None]


class Pace:
    """When to report again, and how long the rest will take; `step` is where the work begins."""

    def __init__(self, step: int) -> None:
        self._first_step = step
        self._started = self._reported = time.monotonic()

    def due(self) -> bool:
        """Whether the last report is long enough ago; if so, count this as one."""
        now = time.monotonic()
        if now - self._reported < _REPORT_SECONDS:
            return False
        self._reported = now
        return True

    def left(self, step: int, steps: int) -> float:
        """Seconds that the steps to come will take, at the mean pace so far."""
        done = max(step - self._first_step, 1)
        return (time.monotonic() - self._started) / done * (steps - step)


class Bars:
    """One bar per training on stderr; nothing where stderr is not a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, name: str, event: TrainEvent) -> None:
        """Draw the bar called `name` where `event` says; its first event makes it."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=1.0, status="")
        self._progress.update(
            self._tasks[name], completed=event.share, status=describe_event(event)
        )


def describe_event(event: TrainEvent) -> str:
    """Write an event as one line.

    >>> describe_event(TrainEvent(3, 20, 30, 200, 0.5, None, 0.25, 1234.0, 75.0))
    'epoch 3/20  loss 0.500  attacked 25.0 %  1,234 img/s  1:15 left'
    """
    parts = [f"epoch {event.epoch}/{event.epochs}"]
    if event.loss is not None:
        parts.append(f"loss {event.loss:.3f}")
    if event.clean is not None:
        parts.append(f"clean {event.clean:.1%}".replace("%", " %"))
    if event.attacked is not None:
        parts.append(f"attacked {event.attacked:.1%}".replace("%", " %"))
    if event.images_per_second is not None:
        parts.append(f"{event.images_per_second:,.0f} img/s")
    if event.seconds_left is not None:
        minutes, seconds = divmod(round(event.seconds_left), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    if event.note is not None:
        parts.append(event.note)
    return "  ".join(parts)


Row = dict[str, Any]


def start_log(path: Path, rows: list[Row]) -> None:
    """Write the log of the epochs that a resumed training keeps (none for a new one).

    A log that says so already is left alone: a finished training may lie where nothing is written.
    """
    with contextlib.suppress(RecordError):
        if read_log(path) == rows:
            return
    files.write_text(path, "".join(_line(row) for row in rows))


def append_log(path: Path, row: Row) -> None:
    """Add one epoch, or no part of it: raises `StorageError` where it cannot be written."""
    size = None
    try:
        size = path.stat().st_size if path.exists() else 0
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
    except OSError as error:
        with contextlib.suppress(OSError):
            if size is not None:
                os.truncate(path, size)
        raise StorageError(f"cannot write {path}: {error.strerror}; free some space") from error


def read_log(path: Path) -> list[Row]:
    """Read all epochs. Raises `RecordError` for a damaged line."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read the log {path}: {error}") from error


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"

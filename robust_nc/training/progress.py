"""What a training says while it runs, and its log: a row of JSON per epoch.

>>> print(TrainEvent(3, 20, 30, 200, 0.5, None, 0.25, 1234.0, 75.0))
epoch 3/20  loss 0.500  attacked 25.0 %  1,234 img/s  1:15 left
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch}/{self.epochs}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.clean is not None:
            parts.append(f"clean {self.clean:.1%}".replace("%", " %"))
        if self.attacked is not None:
            parts.append(f"attacked {self.attacked:.1%}".replace("%", " %"))
        if self.images_per_second is not None:
            parts.append(f"{self.images_per_second:,.0f} img/s")
        if self.seconds_left is not None:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            parts.append(f"{minutes}:{seconds:02d} left")
        if self.note is not None:
            parts.append(self.note)
        return "  ".join(parts)


TrainReport = Callable[[TrainEvent], None]


class StepPace:
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


EpochRow = dict[str, Any]


def start_log(path: Path, rows: list[EpochRow]) -> None:
    """Write the log of the epochs that a resumed training keeps (none for a new one).

    A log that says so already is left alone: a finished training may lie where nothing is written.
    """
    with contextlib.suppress(RecordError):
        if read_log(path) == rows:
            return
    files.write_text(path, "".join(_line(row) for row in rows))


def append_log(path: Path, row: EpochRow) -> None:
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


def read_log(path: Path) -> list[EpochRow]:
    """Read all epochs. Raises `RecordError` for a damaged line."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read the log {path}: {error}") from error


def _line(row: EpochRow) -> str:
    return json.dumps(row, allow_nan=False) + "\n"

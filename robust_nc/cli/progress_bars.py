"""The bars of long work: on a terminal only; elsewhere whoever shows them says lines instead.

>>> bars(Console(force_terminal=False)).disable
True
"""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from robust_nc.pipeline.appraise import Event

_SECONDS = 15.0  # between two lines where there is no terminal


def bars(console: Console) -> Progress:
    """Return a display of tasks, each with a description and a field `status`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class Screen:
    """A bar for the current stage on a terminal; a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._progress = bars(console)
        self._console = console
        self._task: TaskID | None = None
        self._stage = ""
        self._said = -_SECONDS

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def event(self, event: Event) -> None:
        """Show where the current stage stands."""
        fresh = event.stage != self._stage
        self._stage = event.stage
        if not self._console.is_terminal:
            if fresh or time.monotonic() - self._said >= _SECONDS:
                self._said = time.monotonic()
                self.line(f"{event.stage}: {event.status}")
            return
        if fresh and self._task is not None:
            self._progress.remove_task(self._task)
        if fresh or self._task is None:
            self._task = self._progress.add_task(event.stage, total=1.0, status="")
        self._progress.update(self._task, completed=event.share, status=event.status)

    def line(self, text: str) -> None:
        """Say one thing to the user."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

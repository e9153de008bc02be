"""The screen of long work: bars on a terminal; elsewhere lines.

>>> import sys
>>> with Screen(Console(file=sys.stdout)) as screen:
...     screen.event(Event("attack", 0.5, "half of it"))
attack: half of it
"""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from robust_nc.runtime.progress import Event, Report

_SECONDS = 15.0  # between two lines where there is no terminal


class Screen:
    """Shows tasks under way: one after the other, or `side_by_side`.

    One after the other: a bar for the current one; without a terminal a line for each, and every
    15 s. Side by side: a bar for each until it is dropped; without a terminal nothing of them.
    """

    def __init__(self, console: Console, *, side_by_side: bool = False) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._terminal = console.is_terminal
        self._side_by_side = side_by_side
        self._tasks: dict[str, TaskID] = {}
        self._said = -_SECONDS

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def event(self, event: Event) -> None:
        """Show where a task stands."""
        fresh = event.task not in self._tasks
        if fresh and not self._side_by_side:
            for task in list(self._tasks):
                self.drop(task)
        if fresh:
            self._tasks[event.task] = self._progress.add_task(event.task, total=1.0, status="")
        self._progress.update(self._tasks[event.task], completed=event.share, status=event.status)
        due = fresh or time.monotonic() - self._said >= _SECONDS
        if due and not self._terminal and not self._side_by_side:
            self._said = time.monotonic()
            self.line(f"{event.task}: {event.status}")

    def report(self, task: str) -> Report:
        """Return what shows the reports of a task."""
        return lambda share, status: self.event(Event(task, share, status))

    def drop(self, task: str) -> None:
        """Take the bar of a task away, if it has one."""
        if task in self._tasks:
            self._progress.remove_task(self._tasks.pop(task))

    def line(self, text: str) -> None:
        """Say one thing to the user."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

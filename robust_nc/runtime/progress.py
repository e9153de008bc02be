"""How long work gets on: what it reports, and the seconds of its stages.

A piece of work tells a share that is done and a line (`Report`); whoever runs several shows what
each tells as an `Event`. A verdict on a model tells more, a `Progress`:

>>> print(Progress("apgd-t", 2, 4, 130, 325, 324, 500, 1.2e6, 60.0, 240.0))
attack 2 of 4 (apgd-t): 130 of 325, robust at most 64.8%, 20,000 passes/s, 4 min left
"""

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

_SECONDS = 0.5  # between two reports

Report = Callable[[float, str], None]
"""Told how far a piece of work is: a share in [0, 1] and a line."""


def no_report(share: float, status: str) -> None:
    """Report to nobody."""


def sub_report(report: Report, done: int, total: int, *, size: int = 1) -> Report:
    """Report a share of `size` parts, `done` of `total` parts being through, as one of the whole.

    >>> sub_report(lambda share, status: print(share, status), 1, 4)(0.5, "half")
    0.375 half
    """
    return lambda share, status: report((done + share * size) / total, status)


class Event(NamedTuple):
    """Where one of several pieces of work stands, for whoever shows them.

    `task` is the id of a cell, or the stage of an evaluation; `status` a line to show.
    """

    task: str
    share: float
    status: str


class _Standing(Protocol):
    @property
    def share(self) -> float: ...


def throttled(call: Callable[[], None]) -> Callable[[], None]:
    """Return what passes a call on, at most twice a second."""
    said = -float("inf")

    def tick() -> None:
        nonlocal said
        if time.monotonic() - said >= _SECONDS:
            said = time.monotonic()
            call()

    return tick


def progress_report(report: Report, *, place: str = "") -> Callable[[_Standing], None]:
    """Report what says by its `share` and as text where it stands, such as a `Progress`.

    >>> progress_report(print, place="images 0 to 9: ")(Progress("pgd", 1, 1, 1, 4, 1, 4, 8, 2, 6))
    0.25 images 0 to 9: attack 1 of 1 (pgd): 1 of 4, robust at most 25.0%, 4 passes/s, 6 s left
    """
    return lambda standing: report(standing.share, f"{place}{standing}")


class Clock:
    """Seconds per stage of a piece of work.

    >>> clock = Clock()
    >>> clock.stage("train")
    >>> list(clock.seconds)
    ['train']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def stage(self, name: str) -> None:
        """Note what passed since the last stage as that of `name`."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._began, 3)
        self._began = now


class Progress(NamedTuple):
    """Where an evaluation stands: `done` of `total` examples of this turn, `robust` of `examples`.

    `spent` is the share of this turn's passes that were made, where the attack says its cost: it
    moves while a batch is under way.

    `passes` are forward and backward passes of this run in `seconds`; `seconds_left` is for an
    evaluation in which nothing breaks any more, or None where an attack does not say its cost.
    `note` is what else there is to know of this run, such as a log that was damaged.
    """

    attack: str
    turn: int
    turns: int
    done: int
    total: int
    robust: int
    examples: int
    passes: float
    seconds: float
    seconds_left: float | None
    note: str = ""
    spent: float = 0.0

    @property
    def share(self) -> float:
        """Share of the whole that is done, by turns."""
        return (self.turn - 1 + max(self._finished, self.spent)) / self.turns

    @property
    def _finished(self) -> float:
        return self.done / self.total if self.total else 1.0

    def __str__(self) -> str:
        robust = self.robust / self.examples if self.examples else 0.0
        under_way = f" ({self.spent:.0%} of the passes)" if self.spent > self._finished else ""
        parts = [
            f"attack {self.turn} of {self.turns} ({self.attack}): "
            f"{self.done} of {self.total}{under_way}",
            f"robust at most {robust:.1%}",
            f"{self.passes / self.seconds if self.seconds else 0.0:,.0f} passes/s",
        ]
        if self.seconds_left is not None:
            parts.append(f"{_duration(self.seconds_left)} left")
        return "; ".join([", ".join(parts), *([self.note] if self.note else [])])


class PassCounter:
    """Counts passes and reports now and then."""

    def __init__(self, report: Callable[[Progress], None] | None, *, note: str = "") -> None:
        self._report = report
        self._planned: list[int | None] = []
        self._began = time.monotonic()
        self._said = -float("inf")
        self._passes = 0
        self._now = Progress("", 0, 0, 0, 0, 0, 0, 0.0, 0.0, None, note)
        self._before = 0

    def plan(self, costs: list[int | None]) -> None:
        """Plan more turns, by what each costs per example."""
        self._planned += costs
        self._now = self._now._replace(turns=len(self._planned))

    def turn(self, attack: str, total: int, robust: int, examples: int) -> None:
        """Begin the next turn, over `total` examples."""
        now = self._now._replace(attack=attack, turn=self._now.turn + 1, done=0, total=total)
        self._now = now._replace(robust=robust, examples=examples)
        self._before = self._passes

    def tick(self, passes: int) -> None:
        """Take note of passes."""
        self._passes += passes
        if self._report is not None and time.monotonic() - self._said >= _SECONDS:
            self.say()

    def done(self, rows: int, robust: int, examples: int) -> None:
        """Take note of examples that this turn has finished."""
        now = self._now
        self._now = now._replace(done=now.done + rows, robust=robust, examples=examples)
        if self._report is not None and time.monotonic() - self._said >= _SECONDS:
            self.say()

    def say(self) -> None:
        """Report where things stand."""
        if self._report is None:
            return
        self._said = time.monotonic()
        self._report(
            self._now._replace(
                passes=float(self._passes),
                seconds=self._said - self._began,
                seconds_left=self.seconds_left(),
                spent=self._spent(),
            )
        )

    def seconds_left(self) -> float | None:
        """Time that is left at the speed so far if nothing breaks any more, or None."""
        left, seconds = self._units_left(), time.monotonic() - self._began
        return None if left is None or not self._passes else left * seconds / self._passes

    def _spent(self) -> float:
        """Return the share of this turn's passes that were made, 0 where nobody says how many."""
        turn, total = self._now.turn, self._now.total
        each = self._planned[turn - 1] if turn else None
        made = self._passes - self._before
        return min(1.0, made / (each * total)) if each and total else 0.0

    def _units_left(self) -> float | None:
        now, ahead = self._now, self._planned[self._now.turn :]
        here = self._planned[now.turn - 1] if now.turn else 0
        if here is None or None in ahead:
            return None
        standing = max(now.total - now.done, 0)
        spent = self._passes - self._before - now.done * here
        later = sum(cost for cost in ahead if cost is not None)
        return max(standing * here - max(spent, 0), 0) + later * min(now.total, now.robust)


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size * 1.5:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

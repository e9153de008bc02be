"""Timing by short runs: medians of repeated calls, and how the time grows with the batch.

>>> watch = Stopwatch(seconds=0.0)
>>> watch.median(lambda: sum(range(1000))) > 0
True
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from robust_nc.planning.speeds import Rate

_ROUNDS = 25
_SMALL = 4  # images of the small batch

Work = Callable[[], object]


@dataclass(frozen=True)
class Stopwatch:
    """Times calls for about `seconds` each; `clock` may be `time.process_time` instead."""

    seconds: float = 0.3
    clock: Callable[[], float] = time.perf_counter

    def once(self, work: Work) -> float:
        """Seconds of one call, with what it has set going on the device."""
        _wait()
        began = self.clock()
        work()
        _wait()
        return self.clock() - began

    def median(self, work: Work) -> float:
        """Median seconds of a call, after one that sets things up; a long one is timed once."""
        warm = self.once(work)
        if warm > 4 * self.seconds > 0:
            return warm
        times = [self.once(work)]
        while sum(times) < self.seconds and len(times) < _ROUNDS:
            times.append(self.once(work))
        return statistics.median(times)

    def largest(self, small: float, batch: int) -> int:
        """How many images, at most `batch`, a call may take to be over in time.

        `small` is what a call on the small batch took.
        """
        each = small / min(_SMALL, batch)
        fitting = int(4 * self.seconds / each) if each > 0 else batch
        return max(min(batch, fitting), min(2 * _SMALL, batch))

    def rate(self, work_on: Callable[[int], Work], batch: int) -> Rate:
        """Time calls on a small batch and on one of up to `batch`; `work_on` prepares them."""
        least = min(_SMALL, batch)
        small = self.median(work_on(least))
        most = self.largest(small, batch)
        if most == least:
            return Rate(fixed=0.0, each=small / least)
        return line(least, small, most, self.median(work_on(most)))


def line(small: int, first: float, large: int, second: float) -> Rate:
    """Return the rate through two timings; never one that falls with the batch.

    >>> line(2, 1.0, 4, 1.5)
    Rate(fixed=0.5, each=0.25, nbytes=0.0)
    """
    each = max(second - first, 0.0) / (large - small)
    if each * large > second:  # the small batch was no faster by chance only
        return Rate(fixed=0.0, each=second / large)
    return Rate(fixed=max(second - each * large, 0.0), each=each)


def slope(watch: Stopwatch, work_of: Callable[[int], Work], *, first: int = 1, more: int) -> float:
    """Seconds of one more step: calls of `first` steps and of `more` beyond, in turn."""
    few, many = work_of(first), work_of(first + more)
    warm = watch.once(few), watch.once(many)
    differences = [warm[1] - warm[0]] if sum(warm) > 8 * watch.seconds > 0 else []
    spent = 0.0
    while len(differences) < 3 or (spent < watch.seconds and len(differences) < _ROUNDS):
        if differences and sum(warm) > 8 * watch.seconds > 0:
            break
        one, other = watch.once(few), watch.once(many)
        differences.append(other - one)
        spent += one + other
    return max(statistics.median(differences), 1e-9) / more


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

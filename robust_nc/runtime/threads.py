"""How many threads of a CPU a piece of work gets: measured, where enough of it lies ahead.

>>> with kept_threads():
...     count = fastest_threads(lambda: torch.ones(4).sum(), ahead=10_000)
>>> 1 <= count <= torch.get_num_threads()
True
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_EFFORT = 0.01  # share of the calls ahead that the measuring may take
_SECONDS = 0.25  # and, beyond one round, so long for each step
_ROUNDS = 4
_GAIN = 0.03  # what fewer threads must gain


@contextmanager
def kept_threads() -> Iterator[None]:
    """Give torch back the number of threads that it had before this block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        _set(before)


def fastest_threads(call: Callable[[], object], *, ahead: int) -> int:
    """Go on with the number of threads at which a call takes the least time, and return it.

    Begins with the number that is set, and halves it as long as that gains 3 %: the threads of a
    small operation wait for each other longer than they work, the more so on a busy machine.
    `ahead` is how many calls there will be; nothing is measured where they are too few for it. What
    the call raises comes through, with the number as it was.
    """
    before = best = torch.get_num_threads()
    try:
        while best > 1 and _EFFORT * ahead >= 4 and _gains(call, best, best // 2):
            best //= 2
    except BaseException:
        best = before
        raise
    finally:
        _set(best)
    return best


def _gains(call: Callable[[], object], many: int, few: int) -> bool:
    """Whether a call is faster with few threads: by sums, since stalls are rare and long."""
    seconds = dict.fromkeys((many, few), 0.0)
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        for count in seconds:
            _set(count)
            call()  # the first one starts and ends threads
            start = time.perf_counter()
            call()
            seconds[count] += time.perf_counter() - start
        if time.perf_counter() - began > _SECONDS:
            break
    return seconds[few] <= (1 - _GAIN) * seconds[many]


def _set(count: int) -> None:
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)

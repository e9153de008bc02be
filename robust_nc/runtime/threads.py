"""How many threads of a CPU a piece of work gets, and how they wait for each other meanwhile.

>>> with kept_threads(), brief_waits():
...     count = fastest_threads(lambda: torch.ones(4).sum(), ahead=10_000)
>>> 1 <= count <= torch.get_num_threads()
True
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from robust_nc.runtime.waiting import wait_policy

try:
    import resource
except ImportError:  # on Windows, where OpenMP is not GNU's
    resource = None  # type: ignore[assignment]

_EFFORT = 0.01  # share of the calls ahead that the measuring may take
_SECONDS = 0.25  # and, beyond one round, so long for each step
_ROUNDS = 4
_GAIN = 0.03  # what fewer threads must gain
_SHARE = 2**15  # numbers that torch gives one thread at least
_LOOK = 0.1  # seconds between two looks at
_OFTEN = 5  # times that cores were taken away: 0 to 3 on an idle machine, 10 to 30 beside others


@contextmanager
def kept_threads() -> Iterator[None]:
    """Give torch back the number of threads that it had before this block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        _set(before)


@contextmanager
def brief_waits() -> Iterator[None]:
    """Let threads wait briefly for each other in this block, once others take their cores away.

    For who has torch loaded already, and could not set how (`waiting`); no number changes by it.
    GNU's OpenMP waits briefly when more of its threads live than there are cores: those of a second
    thread of ours, which sleeps, from when the system has taken cores away. Of other libraries
    nothing changes.
    """
    if torch.get_num_threads() == 1 or wait_policy() or resource is None:
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(over,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(over: threading.Event) -> None:
    """Wait for cores to be taken away; then keep threads of one's own until all is over."""
    before = _taken_away()
    while not over.wait(_LOOK):
        now = _taken_away()
        if now - before >= _OFTEN:
            torch.empty(torch.get_num_threads() * _SHARE).fill_(1.0)  # starts them
            over.wait()
        before = now


def _taken_away() -> int:
    """How often the system has taken a core away from a thread of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


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

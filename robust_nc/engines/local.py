"""Run tasks in worker processes; workers never outlive the one who started them.

A task is a function of this package with picklable arguments and a `report` for its progress.
Tasks of one chain run one after the other in one worker, chains side by side. An error of a task
costs that task only. A task whose worker was killed is tried again, since it goes on from what it
saved. A wish to stop (`robust_nc.runtime.stopping`) is passed on to the workers, which get the
time that a scheduler leaves.

>>> list(run_tasks([], workers=2, threads=1, on_event=print))
[]
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, NamedTuple

import torch

from robust_nc.exceptions import RobustNCError, StoppedError
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Event
from robust_nc.runtime.torch_state import ran_out

TRIES = 3  # of a task whose worker is killed

_OUT_OF_MEMORY = "out of memory; make the batch sizes smaller, or run with fewer --workers"
_LATE = f"ended by force: it did not stop within {stopping.SECONDS:.0f} s"
_LOOK = 0.2  # seconds between two looks whether to stop
_MARGIN = 1.0  # seconds of `stopping.SECONDS` that the driver keeps for itself


class Finished(NamedTuple):
    """A task that ended: its key, and its result or its error (a sentence).

    `stopped`: it was asked to stop before its end, and goes on from its last save.
    """

    key: str
    result: Any
    error: str | None
    stopped: bool = False


class Task(NamedTuple):
    """What to call, and under which key to report."""

    key: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]


OnRetry = Callable[[str, str], None]
"""Hears the key of a task that is tried again, and why (a sentence)."""


def ignore_retry(key: str, why: str) -> None:
    """Tell nobody of a task that is tried again."""


def run_tasks(
    chains: Sequence[Sequence[Task]],
    *,
    workers: int,
    threads: int,
    on_event: Callable[[Event], None],
    on_retry: OnRetry = ignore_retry,
) -> Generator[Finished, None, None]:
    """Yield tasks as they end, from at most `workers` processes of `threads` threads each.

    What a task reports comes to `on_event`. A task whose worker was ended by a signal is tried
    again, up to `TRIES` times in all, and `on_retry` told so. Once this process is asked to stop
    (`stopping.wish`), the tasks under way are too: they come as `stopped` (or finished) within
    `stopping.SECONDS`, and no other is begun. On an interrupt, and when the caller stops, the
    workers are ended at once.
    """
    pool = _Pool(chains, max(1, workers), threads, on_event, on_retry)
    try:
        while pool.fill():
            yield from pool.listen(_LOOK)
        pool.ask_to_stop()
        end = time.monotonic() + stopping.SECONDS - _MARGIN
        while pool.workers and time.monotonic() < end:
            yield from pool.listen(_LOOK)
        late = [worker.task.key for worker in pool.workers]
        pool.end()
        yield from (Finished(key, None, _LATE, stopped=True) for key in late)
    finally:
        pool.end()


class _Pool:
    """The workers, each at a task, and the chains that wait for one."""

    def __init__(
        self,
        chains: Sequence[Sequence[Task]],
        size: int,
        threads: int,
        on_event: Callable[[Event], None],
        on_retry: OnRetry,
    ) -> None:
        self.workers: list[_Worker] = []
        self._waiting = deque(deque(chain) for chain in chains if chain)
        self._size = size
        self._threads = threads
        self._cut_off: dict[str, int] = {}  # by task: how often a signal ended its worker
        self._on_event = on_event
        self._on_retry = on_retry

    def fill(self) -> bool:
        """Start workers for chains that wait; returns whether there is anything to wait for."""
        if stopping.wished():
            return False
        while self._waiting and len(self.workers) < self._size:
            taken = {worker.place for worker in self.workers}
            place = next(place for place in range(self._size) if place not in taken)
            self.workers.append(_Worker(place, self._threads))
            self.workers[-1].begin(self._waiting.popleft())
        return bool(self.workers)

    def listen(self, seconds: float) -> Iterator[Finished]:
        """Wait for word from workers, for `seconds` at most, and give the tasks that ended."""
        ready = connection.wait([worker.pipe for worker in self.workers], seconds)
        for worker in [worker for worker in self.workers if worker.pipe in ready]:
            message = worker.receive()
            if isinstance(message, Finished):
                yield from self._ended(worker, message)
            else:
                self._on_event(message)

    def _ended(self, worker: "_Worker", ended: Finished) -> Iterator[Finished]:
        """Give a task that ended, or put it back where its worker, and no one else, was ended."""
        cut_off = ended.stopped or worker.killed
        if cut_off and not stopping.wished():
            tried = self._cut_off[ended.key] = self._cut_off.get(ended.key, 0) + 1
            if tried < TRIES:
                worker.chain.appendleft(worker.task)
                self._go_on(worker, done_for=True)
                why = f"{ended.error}; it is tried again ({tried + 1} of {TRIES})"
                self._on_retry(ended.key, why)
                return
            often = f", {tried} times" if tried > 1 else ""
            ended = ended._replace(error=f"{ended.error}{often}; run again")
        elif worker.dead:
            ended = ended._replace(error=f"{ended.error}; run again")
        self._go_on(worker, done_for=cut_off or worker.dead)
        yield ended._replace(stopped=cut_off and stopping.wished())

    def _go_on(self, worker: "_Worker", *, done_for: bool) -> None:
        """Give a worker what is next, or let it go; who was ended leaves its chain to another."""
        ahead = (worker.chain or self._waiting) and not stopping.wished()
        if ahead and not done_for:
            worker.begin(worker.chain or self._waiting.popleft())
            return
        self.workers.remove(worker)
        if worker.chain:
            self._waiting.appendleft(worker.chain)
        worker.close()

    def ask_to_stop(self) -> None:
        """Pass the wish on; a scheduler may have told the workers already."""
        for worker in self.workers:
            worker.process.terminate()

    def end(self) -> None:
        """End all at once: what was not yet saved is lost."""
        for worker in self.workers:
            worker.process.kill()  # SIGTERM would only ask
        while self.workers:
            self.workers.pop().close()


class _Worker:
    """A worker process at a `task`; `chain` are those that it still has to do after it.

    Its `place` among the workers chooses its GPU, where there are several.
    """

    def __init__(self, place: int, threads: int) -> None:
        self.place = place
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, place, threads))
        with _without_script():
            self.process.start()
        theirs.close()  # the worker holds the only other end: its death ends the pipe
        self.chain: deque[Task] = deque()
        self.task = Task("", print, ())
        self.dead = False

    @property
    def killed(self) -> bool:
        """Whether it was ended by a signal."""
        return self.dead and (self.process.exitcode or 0) < 0

    def begin(self, chain: deque[Task]) -> None:
        """Give it the first task of a chain."""
        self.chain, self.task = chain, chain.popleft()
        with contextlib.suppress(OSError):  # it died already: `receive` says so
            self.pipe.send(self.task)

    def receive(self) -> Any:
        """Return what the task reports, or `Finished` when it or its worker ended."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.dead = True
            self.process.join()
            return Finished(self.task.key, None, _cause_of_death(self.process.exitcode))

    def close(self) -> None:
        """Let an idle or dead worker go."""
        self.pipe.close()
        self.process.join()


def _cause_of_death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its worker process ended with exit code {code}"
    hint = ", perhaps for want of memory (fewer --workers need less)"
    name = f"{-code} ({signal.strsignal(-code)})"
    return f"its worker process was ended by signal {name}{hint * (-code == signal.SIGKILL)}"


_working: list[None] = []


def is_worker() -> bool:
    """Whether this process is a worker that `run_tasks` started."""
    return bool(_working)


@contextlib.contextmanager
def _without_script() -> Iterator[None]:
    """Start processes that do not begin with running the user's script, as they would else."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _work(pipe: Connection, place: int, threads: int) -> None:
    """Do tasks until the pipe ends."""
    _working.append(None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends its workers
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.wish())
    torch.set_num_threads(threads)
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(place % torch.cuda.device_count())
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def send(message: Any) -> None:
        try:
            pipe.send(message)
        except OSError:
            os._exit(1)  # nobody listens any more

    while True:
        try:
            task: Task = pipe.recv()
        except (EOFError, OSError):
            return
        send(_done(task, send))


def _done(task: Task, send: Callable[[Any], None]) -> Finished:
    def report(share: float, status: str) -> None:
        send(Event(task.key, share, status))

    try:
        return Finished(task.key, task.call(*task.arguments, report=report), None)
    except Exception as error:  # a defect of one task must not cost the others
        return failed(task.key, error)


def failed(key: str, error: Exception) -> Finished:
    """Say in a sentence why a task failed; a defect of ours comes with its traceback.

    >>> failed("cell", StoppedError()).stopped
    True
    """
    if isinstance(error, StoppedError):
        return Finished(key, None, "its worker process was told to stop", stopped=True)
    if isinstance(error, RobustNCError):
        return Finished(key, None, str(error))
    if ran_out(error):
        return Finished(key, None, _OUT_OF_MEMORY)
    where = "".join(traceback.format_exception(error))
    told = f"unexpected {type(error).__name__}, please report it:\n{where}"
    return Finished(key, None, told)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)

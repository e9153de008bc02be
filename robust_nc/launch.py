"""Run tasks in worker processes; workers never outlive the one who started them.

A task is a function of this package with picklable arguments and a `report` callable for progress.
Tasks of one chain run one after the other in one worker, chains side by side. An error of a task,
or the death of its worker, costs that task only.
"""

import contextlib
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from robust_nc.exceptions import RobustNCError

_OUT_OF_MEMORY = "out of memory; make the batch sizes smaller, or run with fewer --workers"


class Finished(NamedTuple):
    """A task that ended: its key, and its result or its error (a sentence)."""

    key: str
    result: Any
    error: str | None


class Task(NamedTuple):
    """What to call, and under which key to report."""

    key: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]


def run_tasks(
    chains: Sequence[Sequence[Task]],
    *,
    workers: int,
    threads: int,
    on_event: Callable[[Any], None],
) -> Generator[Finished, None, None]:
    """Yield tasks as they end, from at most `workers` processes of `threads` threads each.

    What a task reports is passed to `on_event`. On an interrupt, and when the caller stops, the
    workers are ended at once.
    """
    waiting = deque(deque(chain) for chain in chains if chain)
    crew: list[_Worker] = []
    try:
        while waiting or crew:
            while waiting and len(crew) < max(1, workers):
                crew.append(_Worker(threads))
                crew[-1].begin(waiting.popleft())
            ready = connection.wait([worker.pipe for worker in crew])
            for worker in [worker for worker in crew if worker.pipe in ready]:
                message = worker.receive()
                if not isinstance(message, Finished):
                    on_event(message)
                    continue
                if worker.dead or not (worker.chain or waiting):
                    crew.remove(worker)
                    waiting.extendleft([worker.chain] if worker.chain else [])
                    worker.dismiss()
                else:
                    worker.begin(worker.chain or waiting.popleft())
                yield message
    finally:
        _end(crew)


class _Worker:
    """A worker process: `chain` are the tasks that it still has to do after the current one."""

    def __init__(self, threads: int) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, threads))
        self.process.start()
        theirs.close()  # the worker holds the only other end: its death ends the pipe
        self.chain: deque[Task] = deque()
        self.dead = False
        self._current = ""

    def begin(self, chain: deque[Task]) -> None:
        """Give it the first task of a chain."""
        self.chain = chain
        task = chain.popleft()
        self._current = task.key
        with contextlib.suppress(OSError):  # it died already: `receive` says so
            self.pipe.send(task)

    def receive(self) -> Any:
        """Return what the task reports, or `Finished` when it or its worker ended."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.dead = True
            self.process.join()
            return Finished(self._current, None, _cause_of_death(self.process.exitcode))

    def dismiss(self) -> None:
        """Let an idle or dead worker go."""
        self.pipe.close()
        self.process.join()


def _cause_of_death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its worker process ended with exit code {code}; run again"
    hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
    name = signal.strsignal(-code)
    return f"its worker process was ended by signal {-code} ({name}){hint}; run again"


def _end(crew: list[_Worker]) -> None:
    """Stop at once: what a worker had not yet written, its checkpoint has up to the last save."""
    for worker in crew:
        worker.process.terminate()
    for worker in crew:
        worker.dismiss()


def _work(pipe: Connection, threads: int) -> None:
    """Do tasks until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends its workers
    torch.set_num_threads(threads)
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


def _done(task: Task, report: Callable[[Any], None]) -> Finished:
    try:
        return Finished(task.key, task.call(*task.arguments, report=report), None)
    except RobustNCError as error:
        return Finished(task.key, None, str(error))
    except (MemoryError, torch.OutOfMemoryError):
        return Finished(task.key, None, _OUT_OF_MEMORY)
    except Exception as error:  # a defect of one task must not cost the others
        where = "".join(traceback.format_exception(error))
        told = f"unexpected {type(error).__name__}, please report it:\n{where}"
        return Finished(task.key, None, told)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)

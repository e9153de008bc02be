"""Run tasks in worker processes of one thread each; workers never outlive the one who started them.

A task is a function of this package with picklable arguments and a `report` callable for progress.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, NamedTuple

import torch

from robust_nc.exceptions import RobustNCError

_REPORTS: Any = None  # in a worker: the queue to the driver


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
    tasks: list[Task], *, workers: int, threads: int, on_event: Callable[[Any], None]
) -> Iterator[Finished]:
    """Yield tasks as they end, at most `workers` at a time, passing their events to `on_event`.

    An error of one task does not stop the others. On an interrupt, and when the caller stops, the
    workers are ended at once.
    """
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    pool = ProcessPoolExecutor(
        max_workers=max(1, min(workers, len(tasks))),
        mp_context=context,
        initializer=_begin_worker,
        initargs=(reports, threads),
    )
    try:
        keys = {pool.submit(_call, task): task.key for task in tasks}
        waiting: set[Future[Any]] = set(keys)
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            _drain(reports, on_event)
            for future in done:
                yield _finished(keys[future], future)
    finally:
        _end(pool)


def _finished(key: str, future: Future[Any]) -> Finished:
    try:
        return Finished(key, future.result(), None)
    except RobustNCError as error:
        return Finished(key, None, str(error))
    except BrokenProcessPool:
        return Finished(key, None, "its worker process was killed (out of memory?); run again")
    except Exception as error:  # a defect of one cell must not cost the others
        where = "".join(traceback.format_exception(error))
        return Finished(key, None, f"unexpected {type(error).__name__}, please report it:\n{where}")


def _call(task: Task) -> Any:
    return task.call(*task.arguments, report=_REPORTS.put)


def _begin_worker(reports: Any, threads: int) -> None:
    global _REPORTS
    _REPORTS = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends its workers
    torch.set_num_threads(threads)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _drain(reports: Any, on_event: Callable[[Any], None]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            on_event(reports.get_nowait())


def _end(pool: ProcessPoolExecutor) -> None:
    """Stop at once: what a worker had not yet written, its checkpoint has up to the last epoch."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()

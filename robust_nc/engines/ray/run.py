"""Drive the cells of a suite over a cluster: each stage a task, lost ones done again.

The driver holds the only copy that counts, in the suite's folder: when it dies, the next one goes
on from there. A cell is trained, then judged and measured in parts side by side, then recorded.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from robust_nc.engines.local import Finished, OnRetry, failed, ignore_retry
from robust_nc.engines.ray.cell_tasks import CellTasks
from robust_nc.engines.ray.inbox import Inbox
from robust_nc.engines.ray.start import Cluster, ClusterSettings, join_cluster
from robust_nc.pipeline.suite import Cell
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Event

_LOOK = 0.2  # seconds between two looks into the queue
_MARGIN = 2.0  # seconds of `stopping.SECONDS` that the driver keeps for itself
_LATE = f"its tasks did not stop within {stopping.SECONDS:.0f} s; they go on from what came"
_LEAST = 16  # cells under way, so that a cluster that grows sees what waits
_AHEAD = 2  # cells under way per slot, so that none stands idle between two stages


def run_on_ray(
    groups: Sequence[Sequence[Cell]],
    suite: str,
    out: Path,
    root: Path | None,
    settings: ClusterSettings,
    *,
    on_event: Callable[[Event], None],
    on_retry: OnRetry = ignore_retry,
    logs: tuple[str, ...] = (),
) -> Generator[Finished, None, None]:
    """Yield cells as they end; those of a group, which share weights, one after the other.

    `on_retry` hears of tasks that were lost and are done again. A wish to stop is passed on: tasks
    save their state, and it is brought here. Raises `ConfigError` or `ClusterError` where there is
    no cluster for it, `StorageError` where `out` cannot be written.
    """
    if not groups:
        return
    with join_cluster(settings, out / "cluster.log") as cluster:
        run = _Run(cluster, groups, suite, out, root, logs)
        try:
            yield from run.results(on_event, on_retry)
        finally:
            run.end()


class _Run:
    """One run: threads that each see groups through, and the inbox that they share."""

    def __init__(
        self,
        cluster: Cluster,
        groups: Sequence[Sequence[Cell]],
        suite: str,
        out: Path,
        root: Path | None,
        logs: tuple[str, ...],
    ) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._losses: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._over = cluster.over
        self._inbox = Inbox(out, self._events.put)
        self._waiting = deque(groups)
        self._under_way: set[str] = set()
        self._cell_tasks = CellTasks(
            cluster=cluster,
            inbox=self._inbox,
            suite=suite,
            out=out,
            root=root,
            width=cluster.settings.shards or -(-cluster.slots // len(groups)),
            on_event=self._events.put,
            on_retry=lambda cell, why: self._losses.put((cell, why)),
            logs=logs,
        )
        count = min(len(groups), max(_AHEAD * cluster.slots, _LEAST))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def results(
        self, on_event: Callable[[Event], None], on_retry: OnRetry
    ) -> Generator[Finished, None, None]:
        """Yield cells as they end, and pass on what is told meanwhile."""
        end = float("inf")
        while time.monotonic() < end and any(thread.is_alive() for thread in self._threads):
            self._inbox.collect()
            while not self._events.empty():
                on_event(self._events.get())
            while not self._losses.empty():
                on_retry(*self._losses.get())
            if stopping.wished():
                end = min(end, time.monotonic() + stopping.SECONDS - _MARGIN)
                self._inbox.ask_to_stop()  # again and again: the queue may start anew
            with contextlib.suppress(queue.Empty):
                yield self._ended.get(timeout=_LOOK)
        late = set(self._under_way)
        while not self._ended.empty():
            found = self._ended.get()
            late.discard(found.key)
            yield found
        yield from (Finished(key, None, _LATE, stopped=True) for key in sorted(late))

    def end(self) -> None:
        """Let the threads go: they leave what they wait for."""
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=_MARGIN)

    def _work(self) -> None:
        """See groups through, until none is left or the run shall stop."""
        while True:
            try:
                group = self._waiting.popleft()
            except IndexError:
                return
            for cell in group:
                if self._over.is_set() or stopping.wished():
                    return
                self._under_way.add(cell.id)
                try:
                    found = self._cell_tasks.run(cell)
                except Exception as error:  # whatever it is, the other cells go on
                    found = failed(cell.id, error)
                self._under_way.discard(cell.id)
                self._ended.put(found)

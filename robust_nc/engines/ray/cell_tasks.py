"""See one cell through on a cluster: train, judge and measure in parts, record.

Every stage is done by a task that gets the files it needs and returns those that it left; a task
that is lost is tried again from the newest state that came. Parts of a geometry are tasks, too;
values that many of them take lie in Ray's object store.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray

from robust_nc.engines.local import Finished
from robust_nc.engines.ray.files import read_bundle
from robust_nc.engines.ray.inbox import Inbox
from robust_nc.engines.ray.start import Cluster
from robust_nc.engines.ray.worker import StageResult, StageTask, do_part, do_stage
from robust_nc.exceptions import ClusterError, RobustNCError
from robust_nc.pipeline.stages import Stage, measure_stage, needs, verdict_parts
from robust_nc.pipeline.suite import Cell
from robust_nc.pipeline.verdict_parts import VerdictPart
from robust_nc.record.folder import remove_caches
from robust_nc.runtime.executor import PartCall, Parts
from robust_nc.runtime.progress import Event, Report, no_report

_LOSSES = {
    "NodeDiedError": "its machine died",
    "WorkerCrashedError": "its worker process died",
    "OutOfMemoryError": "its machine ran out of memory",
    "ObjectLostError": "what it needs was lost with a machine",
}


class CellTasks(NamedTuple):
    """What all cells of a run share; `width` is how many parts one of them is cut into.

    `on_event` hears events, `on_retry` that a task of a cell was lost and is done again.
    """

    cluster: Cluster
    inbox: Inbox
    suite: str
    out: Path
    root: Path | None
    width: int
    on_event: Callable[[Event], None]
    on_retry: Callable[[str, str], None]
    logs: tuple[str, ...] = ()

    def run(self, cell: Cell) -> Finished:
        """Do all that is missing of a cell; raises what ends it."""
        steps = (
            partial(self.stage, cell, "train"),
            partial(self._judge_and_measure, cell),
            partial(self.stage, cell, "record"),
        )
        for step in steps:
            ended = step()
            if ended.error is not None:
                return ended
        remove_caches(self.out, cell.id)
        return ended

    def _judge_and_measure(self, cell: Cell) -> Finished:
        """Judge all parts and measure the geometry, side by side."""
        parts = verdict_parts(cell, self.out, self.root, width=self.width)
        calls = [partial(self.stage, cell, "judge", part) for part in parts]
        calls.append(partial(self._measure, cell))
        count = min(len(calls), self.cluster.slots + 1)  # each task carries the weights
        with ThreadPoolExecutor(max_workers=count) as pool:
            ended = [found.result() for found in [pool.submit(call) for call in calls]]
        return next((each for each in ended if each.error is not None), ended[-1])

    def _measure(self, cell: Cell) -> Finished:
        """Measure in one task, or, where there is room for several, cut over the cluster."""
        if self.width == 1:
            return self.stage(cell, "measure")

        def report(share: float, status: str) -> None:
            self.on_event(Event(cell.id, share, status))

        executor = RayExecutor(self.cluster, cell.id, width=self.width, queue=self.inbox.queue)
        measure_stage(cell, self.out, self.root, executor=executor, report=report)
        return Finished(cell.id, None, None)

    def stage(self, cell: Cell, stage: Stage, part: VerdictPart | None = None) -> Finished:
        """Have a stage done, again and again as long as it is lost and had got on."""
        name = "-".join([cell.id, stage, *map(str, part or ())])
        lost = 0
        while True:
            attempt = self.inbox.open(name)
            try:
                done = self._submit(name, attempt, cell, stage, part)
            except ray.exceptions.RayTaskError:  # a defect of ours: it came from outside the work
                raise
            except ray.exceptions.LocalRayletDiedError as error:
                raise ClusterError(
                    "Ray on the machine of this run has died; start it again, and the same command "
                    "goes on"
                ) from error
            except ray.exceptions.RayError as error:
                self.inbox.collect()  # what it handed over before it was lost
                lost = 0 if self.inbox.advanced(name) else lost + 1
                self._note_loss(cell, stage, error, lost)
                continue
            self.inbox.close(name, done.bundle)
            return done.ended

    def _submit(
        self, name: str, attempt: int, cell: Cell, stage: Stage, part: VerdictPart | None
    ) -> StageResult:
        task = StageTask(
            name=name,
            attempt=attempt,
            stage=stage,
            cell=cell,
            suite=self.suite,
            root=self.root,
            part=part,
            threads=self.cluster.threads,
            sync_seconds=self.cluster.settings.sync_seconds,
            logs=self.logs,
        )
        needed = needs(cell, stage, self.out, part=part)
        places = [path.relative_to(self.out).as_posix() for path in needed]
        bundle = read_bundle(self.out, places)
        call = self.cluster.task(do_stage, retries=0)
        done: StageResult = self.cluster.get([call.remote(task, bundle, self.inbox.queue)])[0]
        return done

    def _note_loss(self, cell: Cell, stage: Stage, error: Exception, lost: int) -> None:
        """Say that a task was lost, and give up on one that is lost time and again."""
        kind = _LOSSES.get(type(error).__name__, type(error).__name__)
        if lost > self.cluster.settings.retries:
            raise ClusterError(
                f"its task was lost {lost} times in a row without getting on ({kind}); perhaps "
                "it needs more memory than its machine has; run again to go on"
            ) from error
        self.on_retry(cell.id, f"its task to {stage} was lost ({kind}); it is tried again")


class RayExecutor:
    """Does the parts of one cell on the cluster; Ray itself does again what was lost.

    `width` is how many parts a piece of work of this cell is cut into.
    """

    def __init__(self, cluster: Cluster, cell: str, *, width: int, queue: Any) -> None:
        self.width = width
        self._cluster = cluster
        self._cell = cell
        self._queue = queue

    def keep(self, value: Any) -> Any:
        """Put a value into the object store."""
        return ray.put(value)

    def map(self, call: PartCall, parts: Parts, *, report: Report = no_report) -> list[Any]:
        """Start a task per part; returns at once. Progress goes to the driver's inbox."""
        remote = self._cluster.task(do_part, retries=self._cluster.settings.retries)
        given = (self._cell, self._cluster.threads, self._queue, call)
        return [remote.remote(*given, *part) for part in parts]

    def get(self, handles: Sequence[Any]) -> list[Any]:
        """Wait for values; an error of a part is raised as it was raised there.

        Parts keep no state: asked to stop, this raises `StoppedError` and leaves them.
        """
        try:
            return self._cluster.get(list(handles), saved=False)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RobustNCError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"a part was lost {self._cluster.settings.retries + 1} times "
                f"({type(error).__name__}); run again to go on"
            ) from error

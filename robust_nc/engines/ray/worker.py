"""What runs on the machines of a cluster: a stage of a cell in a folder of its own, or a part.

A stage gets the files that it needs, works in a temporary folder, hands its state to the queue
now and then, and returns the files that it left. Nothing here needs a disk that machines share.
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robust_nc.engines.local import Finished, failed
from robust_nc.engines.ray.files import (
    FileBundle,
    Message,
    Reply,
    Stamp,
    read_bundle,
    stamps,
    write_bundle,
)
from robust_nc.exceptions import RobustNCError
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.stages import Stage, judge_stage, measure_stage, train_stage
from robust_nc.pipeline.suite import Cell
from robust_nc.pipeline.verdict_parts import VerdictPart
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Event

_TOLD = 0.5  # seconds between two events of one task
_ASKED = 1.0  # seconds between two looks whether to stop


class StageTask(NamedTuple):
    """A stage of a cell: "train", "judge" (a part), "measure" or "record"."""

    name: str
    attempt: int
    stage: Stage
    cell: Cell
    suite: str
    root: Path | None
    part: VerdictPart | None
    threads: int
    sync_seconds: float
    logs: tuple[str, ...] = ()


class StageResult(NamedTuple):
    """What a stage left: the files that are new, and how it ended."""

    bundle: FileBundle
    ended: Finished


class DriverLink:
    """Sends messages to the driver, and hears from it whether to stop.

    Without an `attempt` it is a part's, which has no state to hand over.

    `queue` is the actor's handle; that it cannot be reached is no reason to give up the work.
    """

    def __init__(self, queue: Any, cell: str, *, task: str = "", attempt: int = 0) -> None:
        self._queue = queue
        self._cell = cell
        self._task = task
        self._attempt = attempt
        self._told = 0.0

    def report(self, share: float, status: str) -> None:
        """Tell where the task stands, at most twice a second."""
        now = time.monotonic()
        if now - self._told >= _TOLD:
            self._told = now
            event = Event(self._cell, share, status)
            self._queue.put.remote(Message(self._task, self._attempt, event, None))

    def state(self, bundle: FileBundle | None, life: str | None = None) -> str | None:
        """Hand over files that changed, hear whether to stop; returns the life of the queue.

        `life` is that in which what the files build upon was sent. None where it cannot be reached.
        """
        import ray

        message = Message(self._task, self._attempt, None, bundle, life)
        try:
            reply: Reply = ray.get(self._queue.put.remote(message), timeout=30)
        except ray.exceptions.RayError:
            return None
        if reply.stop:
            stopping.wish()
        return reply.life


def do_stage(task: StageTask, bundle: FileBundle, queue: Any) -> StageResult:
    """Do a stage from the files of a bundle; an error of the work is part of what is returned."""
    stopping.clear()
    torch.set_num_threads(task.threads)
    with tempfile.TemporaryDirectory(prefix="robust_nc-") as name:
        out = Path(name)
        write_bundle(bundle, out)
        link = DriverLink(queue, task.cell.id, task=task.name, attempt=task.attempt)
        given = stamps(out, _all(out))
        with _handing_over(out, link, given, task.sync_seconds):
            ended = _attempt(task, out, link)
        left = read_bundle(out, _all(out), known=given)
        return StageResult(left._replace(folders=_mirrored(out)), ended)


def _all(out: Path) -> list[str]:
    return [path.name for path in sorted(out.iterdir())]


def _mirrored(out: Path) -> tuple[str, ...]:
    """Folders of checkpoints: what is not there any more has been replaced."""
    return tuple(path.relative_to(out).as_posix() for path in out.glob("checkpoints/*"))


def _attempt(task: StageTask, out: Path, link: DriverLink) -> Finished:
    cell, root, result = task.cell, task.root, None
    try:
        if task.stage == "train":
            train_stage(cell, out, root, report=link.report, logs=task.logs)
        elif task.stage == "judge":
            assert task.part is not None
            judge_stage(cell, task.part, out, root, report=link.report)
        elif task.stage == "measure":
            measure_stage(cell, out, root, report=link.report)
        else:
            result = run_cell(cell, task.suite, out, root, report=link.report, logs=task.logs)
    except Exception as error:  # what the stage finished before goes home all the same
        return failed(cell.id, error)
    return Finished(cell.id, result, None)


@contextlib.contextmanager
def _handing_over(
    out: Path, link: DriverLink, given: dict[str, Stamp], seconds: float
) -> Iterator[None]:
    """Hand over the state every so often, in a thread, while the block works."""
    ended = threading.Event()

    def run() -> None:
        known, handed, life = dict(given), time.monotonic(), link.state(None)
        while not ended.wait(min(_ASKED, seconds)):
            bundle = None
            if time.monotonic() - handed >= seconds:
                bundle, known = _changed(out, known)
                handed = time.monotonic()
            now = link.state(bundle, life)
            if now != life:  # what was sent before may be lost with it
                life, known = now, dict(given)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _changed(out: Path, known: dict[str, Stamp]) -> tuple[FileBundle | None, dict[str, Stamp]]:
    """Pack what is new; nothing where files did not hold still (then the next time)."""
    places = [name for name in ("checkpoints", "cache") if (out / name).is_dir()]
    before = stamps(out, places)
    try:
        bundle = read_bundle(out, places, known=known)
    except RobustNCError:
        return None, known
    if not bundle.files:
        return None, known
    return bundle._replace(folders=_mirrored(out)), before


def do_part(cell: str, threads: int, queue: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of an executor; handles among the arguments have arrived as values."""
    stopping.clear()
    torch.set_num_threads(threads)
    return call(*arguments, report=DriverLink(queue, cell).report)

"""What runs on the machines of a cluster: a stage of a cell in a folder of its own, or a part.

A stage gets the files that it needs, works in a temporary folder, hands its state to the mailbox
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
from robust_nc.engines.ray.files import Parcel, Stamp, pack, stamps, unpack
from robust_nc.engines.ray.mailbox import Letter, Reply
from robust_nc.exceptions import RobustNCError
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.stages import (
    CellEvent,
    CellResult,
    Stage,
    judge_stage,
    measure_stage,
    train_stage,
)
from robust_nc.pipeline.suite import Cell
from robust_nc.pipeline.verdict_parts import VerdictPart
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Report

_TOLD = 0.5  # seconds between two events of one task
_ASKED = 1.0  # seconds between two looks whether to stop


class Job(NamedTuple):
    """A stage of a cell: "train", "judge" (a part), "measure" or "record"."""

    task: str
    attempt: int
    stage: Stage
    cell: Cell
    suite: str
    root: Path | None
    part: VerdictPart | None
    threads: int
    sync_seconds: float


class Done(NamedTuple):
    """What a stage left: the files that are new, and how it ended."""

    parcel: Parcel
    ended: Finished


class Post:
    """Writes to the mailbox of the driver, and hears from it whether to stop.

    `mailbox` is the actor's handle; that it cannot be reached is no reason to give up the work.
    """

    def __init__(self, mailbox: Any, task: str, attempt: int) -> None:
        self._mailbox = mailbox
        self._task = task
        self._attempt = attempt
        self._told = 0.0

    def event(self, event: CellEvent) -> None:
        """Tell where the task stands, at most twice a second."""
        now = time.monotonic()
        if now - self._told >= _TOLD:
            self._told = now
            self._mailbox.put.remote(Letter(self._task, self._attempt, event, None))

    def state(self, parcel: Parcel | None, life: str | None = None) -> str | None:
        """Hand over files that changed, hear whether to stop; returns the life of the mailbox.

        `life` is that in which what the files build upon was sent. None where it cannot be reached.
        """
        import ray

        letter = Letter(self._task, self._attempt, None, parcel, life)
        try:
            reply: Reply = ray.get(self._mailbox.put.remote(letter), timeout=30)
        except ray.exceptions.RayError:
            return None
        if reply.stop:
            stopping.wish()
        return reply.life


def do_stage(job: Job, parcel: Parcel, mailbox: Any) -> Done:
    """Do a stage from the files of a parcel; an error of the work is part of what is returned."""
    stopping.clear()
    torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory(prefix="robust_nc-") as name:
        out = Path(name)
        unpack(parcel, out)
        post = Post(mailbox, job.task, job.attempt)
        given = stamps(out, _all(out))
        with _courier(out, post, given, job.sync_seconds):
            ended = _attempt(job, out, post)
        left = pack(out, _all(out), known=given)
        return Done(left._replace(folders=_mirrored(out)), ended)


def _all(out: Path) -> list[str]:
    return [path.name for path in sorted(out.iterdir())]


def _mirrored(out: Path) -> tuple[str, ...]:
    """Folders of checkpoints: what is not there any more has been replaced."""
    return tuple(path.relative_to(out).as_posix() for path in out.glob("checkpoints/*"))


def _attempt(job: Job, out: Path, post: Post) -> Finished:
    try:
        return Finished(job.cell.id, _stage(job, out, post), None)
    except Exception as error:  # what the stage finished before goes home all the same
        return failed(job.cell.id, error)


def _stage(job: Job, out: Path, post: Post) -> CellResult | None:
    if job.stage == "train":
        train_stage(job.cell, out, job.root, report=post.event)
    elif job.stage == "judge":
        assert job.part is not None
        judge_stage(job.cell, job.part, out, job.root, report=post.event)
    elif job.stage == "measure":
        measure_stage(job.cell, out, job.root, report=post.event)
    else:
        return run_cell(job.cell, job.suite, out, job.root, report=post.event)
    return None


@contextlib.contextmanager
def _courier(out: Path, post: Post, given: dict[str, Stamp], seconds: float) -> Iterator[None]:
    """Hand over the state every so often, in a thread, while the block works."""
    ended = threading.Event()

    def run() -> None:
        known, handed, life = dict(given), time.monotonic(), post.state(None)
        while not ended.wait(min(_ASKED, seconds)):
            parcel = None
            if time.monotonic() - handed >= seconds:
                parcel, known = _changed(out, known)
                handed = time.monotonic()
            now = post.state(parcel, life)
            if now != life:  # what was sent before may be lost with it
                life, known = now, dict(given)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _changed(out: Path, known: dict[str, Stamp]) -> tuple[Parcel | None, dict[str, Stamp]]:
    """Pack what is new; nothing where files did not hold still (then the next time)."""
    places = [name for name in ("checkpoints", "cache") if (out / name).is_dir()]
    before = stamps(out, places)
    try:
        parcel = pack(out, places, known=known)
    except RobustNCError:
        return None, known
    if not parcel.files:
        return None, known
    return parcel._replace(folders=_mirrored(out)), before


def do_part(
    task: str,
    attempt: int,
    cell: str,
    threads: int,
    mailbox: Any,
    call: Callable[..., Any],
    *arguments: Any,
) -> Any:
    """Call a function of an executor; handles among the arguments have arrived as values."""
    stopping.clear()
    torch.set_num_threads(threads)
    post = Post(mailbox, task, attempt)

    def report(share: float, text: str) -> None:
        post.event(CellEvent(cell, share, text))

    told: Report = report
    return call(*arguments, report=told)

"""The processes that `torchrun` starts: how they find each other, train together, and end.

The first one alone reads and writes the suite's folder, and does its cells one after the other; the
others wait while it judges, measures and records.
"""

import contextlib
import datetime
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from robust_nc.config import RunConfig
from robust_nc.engines.local import Finished, failed
from robust_nc.exceptions import ClusterError, ConfigError
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.stages import CellResult, is_trained, train_stage
from robust_nc.pipeline.suite import Cell
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Event, Report
from robust_nc.runtime.torch_state import default_device
from robust_nc.training.data_parallel import together
from robust_nc.training.objectives import ClosedForm
from robust_nc.training.run import build_objective, train_cell

_STEP = datetime.timedelta(minutes=30)  # the longest that processes wait for one in a training
_ALONE = datetime.timedelta(days=7)  # ... that the others wait while the first works alone
_ENDING = datetime.timedelta(seconds=60)  # ... that one that failed waits for the others to fail
_LOOK = 0.5  # seconds between two looks whether any process was asked to stop
_LOST = (
    "a process of this run ended or could not be reached any more, so all ended; what was saved is "
    "kept, and the same command goes on from there"
)
_LOSSES = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl", "timed out")


class ProcessGroup:
    """The processes of a run: the first one calls `train`, the others `follow`."""

    def __init__(self, store: Any) -> None:
        self.rank = dist.get_rank()
        self.busy = False  # whether the others wait for this process amid something
        self._store = store
        self._trainings = 0
        # The first may work alone for long, for which no training would wait.
        self._orders = dist.new_group(backend="gloo", timeout=_ALONE)

    def train(self, call: Callable[[], object], config: RunConfig, *, root: Path | None) -> None:
        """Train one model: the first process by `call()`, the others by its configuration.

        An error that all of them meet is raised. What ends one alone leaves the others amid an
        exchange: then `busy` stays true, and the run has to end.
        """
        self._broadcast((config, root))
        self._together(call)

    def follow(self) -> int:
        """Train what the first process trains, until it says that all is done; returns 0."""
        while (order := self._broadcast(None)) is not None:
            config, root = order
            call = partial(train_cell, config, root=root, device=default_device())
            try:
                self._together(call)
            except Exception:  # the first process met it too, and says so
                if self.busy:
                    raise
        return 0

    def end(self) -> None:
        """Tell the others that all is done."""
        self._broadcast(None)

    def is_first_to_end(self) -> bool:
        """Whether this process is the first to end the run, and so has to say why."""
        try:
            return bool(self._store.add("told", 1) == 1)
        except Exception:  # who kept the store has gone
            return True

    def _together(self, call: Callable[[], object]) -> None:
        self._trainings += 1
        self.busy = True
        world = dist.get_world_size()
        keys = [f"ended-{self._trainings}-{rank}" for rank in range(world)]
        try:
            with together():
                call()
        except Exception as error:
            lost = isinstance(error, RuntimeError) and any(
                word in str(error).lower() for word in _LOSSES
            )
            if lost or isinstance(error, dist.DistError):
                raise ClusterError(_LOST) from error
            self._store.set(keys[self.rank], "")
            with contextlib.suppress(dist.DistError, RuntimeError):
                self._store.wait(keys, _ENDING)
                self.busy = False
            raise
        self._store.set(keys[self.rank], "")
        self.busy = False

    def _broadcast(self, order: object) -> Any:
        """Return what the first process gives."""
        content = [order]
        try:
            dist.broadcast_object_list(content, group=self._orders)
        except (dist.DistError, RuntimeError) as error:
            self.busy = True
            raise ClusterError(_LOST) from error
        return content[0]


@contextlib.contextmanager
def join_processes() -> Iterator[ProcessGroup]:
    """Join the processes that `torchrun` started; the first must drive, the others `follow`.

    A process that fails while others wait for it ends all of them: the first to know raises what
    happened, the others leave in silence with exit code 1. Raises `ConfigError` for more processes
    than GPUs, `ClusterError` where the others cannot be reached.
    """
    store = _meet()
    processes, ended = ProcessGroup(store), threading.Event()
    watch = threading.Thread(target=_watch, args=(store.clone(), ended), daemon=True)
    watch.start()
    try:
        yield processes
    except BaseException:
        if (processes.busy or processes.rank) and not processes.is_first_to_end():
            raise SystemExit(1) from None
        raise
    finally:
        ended.set()
        watch.join()  # or it would look into a store that is gone
        if not processes.busy:
            if processes.rank == 0:
                processes.end()
            dist.destroy_process_group()
        else:  # it could wait for ever; what the driver made of an interrupt is said already
            processes.is_first_to_end()


def _meet() -> Any:
    """Join the group, each process with its own GPU if there are any; returns the store."""
    gpus, place = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus and place >= gpus:
        raise ConfigError(
            f"there are {gpus} GPUs and process {place + 1} of this machine has none; start "
            f"torchrun with --nproc-per-node {gpus}"
        )
    try:
        store, rank, world = next(rendezvous("env://", timeout=_STEP))
        if gpus:
            torch.cuda.set_device(place)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=dist.PrefixStore("group", store),  # type: ignore[attr-defined]
            rank=rank,
            world_size=world,
            timeout=_STEP,
        )
    except (dist.DistError, RuntimeError, OSError, ValueError) as error:
        raise ClusterError(f"the processes of this run do not find each other: {error}") from error
    return dist.PrefixStore("run", store)  # type: ignore[attr-defined]


def _watch(store: Any, ended: threading.Event) -> None:
    """Pass a wish to stop from any process to all of them."""
    with contextlib.suppress(Exception):  # the store has gone, and with it the run
        while not ended.wait(_LOOK):
            if stopping.wished():
                store.set("stop", "")
            elif store.check(["stop"]):
                stopping.wish()


def run_under_torchrun(
    processes: ProcessGroup,
    groups: Sequence[Sequence[Cell]],
    suite: str,
    out: Path,
    root: Path | None,
    *,
    on_event: Callable[[Event], None],
    logs: Sequence[str] = (),
) -> Generator[Finished, None, None]:
    """Do cells in the first process, with the others' help, and yield each as it ends.

    `root` is where data sets lie, on every machine. Raises what ends one process alone, and
    `ClusterError` where one cannot be reached any more: the run has to end then.
    """
    for cell in [cell for group in groups for cell in group]:

        def report(share: float, status: str, cell: str = cell.id) -> None:
            on_event(Event(cell, share, status))

        if stopping.wished():
            return
        try:
            ended = Finished(
                cell.id, _run_cell(processes, cell, suite, out, root, report, logs), None
            )
        except Exception as error:
            if processes.busy:
                raise
            ended = failed(cell.id, error)
        yield ended


def _run_cell(
    processes: ProcessGroup,
    cell: Cell,
    suite: str,
    out: Path,
    root: Path | None,
    report: Report,
    logs: Sequence[str],
) -> CellResult:
    # What is fitted in closed form the first process does alone.
    in_steps = not isinstance(build_objective(cell.config), ClosedForm)
    if in_steps and not is_trained(cell, out):
        call = partial(train_stage, cell, out, root, report=report, logs=logs)
        processes.train(call, cell.config, root=root)
    return run_cell(cell, suite, out, root, report=report, logs=logs)

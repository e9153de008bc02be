"""Where the driver receives what tasks send: events to show, and states to keep.

A task that was lost is tried again from the newest state that came; what an older try still has on
its way is then refused, and so is what comes after a task has ended.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from robust_nc.engines.ray.files import Parcel, unpack
from robust_nc.engines.ray.mailbox import Letter, Mailbox
from robust_nc.exceptions import ClusterError
from robust_nc.pipeline.stages import CellEvent

_PATIENCE = 1.0  # seconds that one look waits for the mailbox


class Desk:
    """Receives for all tasks of a run into the folder `out`; safe to use from several threads.

    `tell` gets the events.
    """

    def __init__(self, out: Path, tell: Callable[[CellEvent], None]) -> None:
        self._out = out
        self._tell = tell
        self._lock = threading.Lock()
        self._attempts: dict[str, int] = {}
        self._advanced: dict[str, bool] = {}
        self._asked: Any = None
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        self.mailbox: Any = (
            ray.remote(Mailbox)
            .options(num_cpus=0, max_restarts=-1, max_task_retries=0, scheduling_strategy=here)
            .remote()
        )

    def open(self, task: str) -> int:
        """Begin another try of a task; returns its number."""
        with self._lock:
            self._attempts[task] = self._attempts.get(task, 0) + 1
            self._advanced[task] = False
            return self._attempts[task]

    def advanced(self, task: str) -> bool:
        """Whether the current try has handed over any state."""
        return self._advanced[task]

    def close(self, task: str, parcel: Parcel) -> None:
        """Take what a task left, and nothing of it after that."""
        with self._lock:
            self._attempts[task] += 1
            unpack(parcel, self._out)

    def collect(self) -> None:
        """Fetch the letters: keep states, tell events. Raises `StorageError`."""
        with self._lock:
            if self._asked is None:
                self._asked = self.mailbox.drain.remote()
            try:
                letters: list[Letter] = ray.get(self._asked, timeout=_PATIENCE)
            except ray.exceptions.GetTimeoutError:  # its answer is waited for the next time
                return
            except ray.exceptions.RayActorError:  # it starts again
                self._asked = None
                return
            except ray.exceptions.RayError as error:
                raise ClusterError(
                    f"the cluster cannot be reached any more ({type(error).__name__}); what came "
                    "is kept, and the same command goes on"
                ) from error
            self._asked = None
            for letter in letters:
                self._receive(letter)

    def ask_to_stop(self) -> None:
        """Ask all tasks to save their state and stop."""
        self.mailbox.stop.remote()

    def _receive(self, letter: Letter) -> None:
        # Parts of an executor are tried again by Ray; they have no state, and number 0.
        if letter.attempt and letter.attempt != self._attempts.get(letter.task):
            return
        if letter.parcel is not None:
            unpack(letter.parcel, self._out)
            self._advanced[letter.task] = True
        if letter.event is not None:
            self._tell(letter.event)

"""Where the driver receives what tasks send: events to show, and states to keep.

A task that was lost is tried again from the newest state that came; what an older try still has on
its way is then refused, and so is what comes after a task has ended.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from robust_nc.engines.ray.files import FileBundle, Message, MessageQueue, write_bundle
from robust_nc.exceptions import ClusterError
from robust_nc.runtime.progress import Event

_PATIENCE = 1.0  # seconds that one look waits for messages


class Inbox:
    """Receives for all tasks of a run into the folder `out`; safe to use from several threads.

    `on_event` gets the events.
    """

    def __init__(self, out: Path, on_event: Callable[[Event], None]) -> None:
        self._out = out
        self._on_event = on_event
        self._lock = threading.Lock()
        self._attempts: dict[str, int] = {}
        self._advanced: dict[str, bool] = {}
        self._asked: Any = None
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        self.queue: Any = (
            ray.remote(MessageQueue)
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

    def close(self, task: str, bundle: FileBundle) -> None:
        """Take what a task left, and nothing of it after that."""
        with self._lock:
            self._attempts[task] += 1
            write_bundle(bundle, self._out)

    def collect(self) -> None:
        """Fetch the messages: keep states, pass events on. Raises `StorageError`."""
        with self._lock:
            if self._asked is None:
                self._asked = self.queue.drain.remote()
            try:
                messages: list[Message] = ray.get(self._asked, timeout=_PATIENCE)
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
            for message in messages:
                self._receive(message)

    def ask_to_stop(self) -> None:
        """Ask all tasks to save their state and stop."""
        self.queue.stop.remote()

    def _receive(self, message: Message) -> None:
        # Parts of a geometry are tried again by Ray; they have no state, and number 0.
        if message.attempt and message.attempt != self._attempts.get(message.task):
            return
        if message.bundle is not None:
            write_bundle(message.bundle, self._out)
            self._advanced[message.task] = True
        if message.event is not None:
            self._on_event(message.event)

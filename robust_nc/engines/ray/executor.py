"""The executor of a Ray cluster: parts are tasks, values that many take lie in its object store."""

from collections.abc import Callable, Sequence
from typing import Any

import ray

from robust_nc.engines.ray.start import Cluster
from robust_nc.engines.ray.worker import do_part
from robust_nc.exceptions import ClusterError, RobustNCError
from robust_nc.runtime.progress import Report, no_report


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

    def map(
        self,
        call: Callable[..., Any],
        parts: Sequence[tuple[Any, ...]],
        *,
        report: Report = no_report,
    ) -> list[Any]:
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

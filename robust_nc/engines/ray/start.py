"""Join a Ray cluster, or start one on this machine, and know what a task gets there.

>>> ClusterSettings(gpus=0.5).shards is None
True
"""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from robust_nc.exceptions import ClusterError, ConfigError, StoppedError
from robust_nc.runtime import stopping

_PATIENCE = 1.0  # seconds between two looks whether the run is over
_KNOCK = 10.0  # seconds in which the head of a cluster must answer


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """What the driver asks of Ray.

    `address`: of a running cluster ("auto": the one of this machine, or that of RAY_ADDRESS; None:
    that of RAY_ADDRESS, else a cluster of this machine alone is started). `slots`: how many tasks
    run at a time, on a cluster that is started here or that grows (None: as it has room). `gpus`
    per task, fractions too (None: one where there are any), `cpus` per task. `shards`: parts that
    one verdict or geometry is cut into (None: as many as keep the cluster busy). `retries`: how
    often in a row a task may be lost without having got on. `sync_seconds`: how often a worker
    hands over its state.
    """

    address: str | None = None
    slots: int | None = None
    gpus: float | None = None
    cpus: float = 1.0
    shards: int | None = None
    retries: int = 5
    sync_seconds: float = 15.0

    def __post_init__(self) -> None:
        """Refuse what Ray would refuse later, or wait for without an end."""
        if self.address is not None and self.address.startswith("ray://"):
            raise ConfigError(
                f"address {self.address!r} is of Ray's client, which loses its tasks with the "
                "connection; start the driver on the head, or with 'ray job submit'"
            )
        for name in ("slots", "shards"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, found {value}")
        shares = self.gpus is None or 0 <= self.gpus <= 1 or (self.gpus > 1 and self.gpus % 1 == 0)
        if not shares:
            raise ConfigError(
                f"gpus per task must be a share of one such as 0.5, or a whole number, found "
                f"{self.gpus:g}"
            )
        if self.cpus <= 0 or self.retries < 0 or self.sync_seconds <= 0:
            raise ConfigError(
                "cpus and sync_seconds must be above 0 and retries at least 0, found "
                f"{self.cpus:g}, {self.sync_seconds:g} and {self.retries}"
            )


class Cluster(NamedTuple):
    """A cluster that was joined: what a task gets, and how many can run at a time.

    `over` is set when the run ends: whoever still waits for a task then gives up.
    """

    settings: ClusterSettings
    gpus: float
    slots: int
    over: threading.Event

    @property
    def threads(self) -> int:
        """Threads of torch in a task."""
        return max(1, int(self.settings.cpus))

    def task(self, call: Callable[..., Any], *, retries: int) -> Any:
        """Return a function as a task of Ray, which tries it again so often if it is lost."""
        import ray

        self._heed()
        return ray.remote(call).options(
            num_cpus=self.settings.cpus, num_gpus=self.gpus, max_retries=retries
        )

    def get(self, handles: list[Any], *, saved: bool = True) -> list[Any]:
        """Wait for values. Raises `StoppedError` when the run is over, and what Ray raises.

        What is not `saved` when it is asked to stop is not waited for once that is wished.
        """
        import ray

        while True:
            self._heed()
            if not saved:
                stopping.heed()
            try:
                found: list[Any] = ray.get(handles, timeout=_PATIENCE)
            except ray.exceptions.GetTimeoutError:
                continue
            return found

    def _heed(self) -> None:
        if self.over.is_set():
            raise StoppedError


@contextlib.contextmanager
def join_cluster(settings: ClusterSettings, log: Path) -> Iterator[Cluster]:
    """Join a cluster for this block; what Ray says goes to `log`, not among our results.

    Raises `ConfigError` where no task would ever fit, `ClusterError` where the cluster cannot be
    reached.
    """
    import ray

    log.parent.mkdir(parents=True, exist_ok=True)
    already = ray.is_initialized()
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        try:
            with _handled(file):
                if not already:
                    _connect(settings)
                resources: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
                yield _measured(settings, resources)
        finally:
            if not already:
                ray.shutdown()


@contextlib.contextmanager
def _handled(file: TextIO) -> Iterator[None]:
    """Send Ray's own log lines to the file: of its parts, since it clears its own handlers."""
    handler = logging.StreamHandler(file)
    loggers = [logging.getLogger(name) for name in ("ray._private", "ray._common")]
    before = [(logger, list(logger.handlers), logger.propagate) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


def _connect(settings: ClusterSettings) -> None:
    import ray

    address = settings.address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # what comes late must not start another cluster
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray puts a handler of its own in its place
    try:
        if address is None:
            # A driver inside a started cluster would else join it by a file that it left.
            options |= {"address": "local", "include_dashboard": False}
            options |= {"num_cpus": settings.slots and settings.slots * settings.cpus}
            ray.init(**options)
        else:
            _knock(address)
            ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClusterError(
            f"cannot join the Ray cluster at {address or 'this machine'}: {why}; start one with "
            "'ray start --head', export RAY_AUTH_MODE=token if it asks for a token, or leave "
            "--address out to use this machine alone"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


def _knock(address: str) -> None:
    """Raise `OSError` where nobody answers: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK).close()


def _measured(settings: ClusterSettings, resources: dict[str, float]) -> Cluster:
    """Work out how many tasks fit; raises `ConfigError` where none would ever."""
    there = resources.get("GPU", 0.0)
    gpus = settings.gpus if settings.gpus is not None else float(there > 0)
    slots = int(resources.get("CPU", 0.0) / settings.cpus)
    if gpus:
        # A task uses one device or whole ones: shares do not add up over devices.
        fitting = there // 1 * (1 // gpus) if gpus <= 1 else there // gpus
        slots = min(slots, int(fitting))
    slots = settings.slots or slots
    if slots < 1:
        raise ConfigError(
            f"a task needs {settings.cpus:g} CPU cores and {gpus:g} GPUs, and the cluster has "
            f"{resources.get('CPU', 0.0):g} and {there:g}; lower --gpus, add nodes, or say with "
            "--workers how many tasks a cluster that grows will do at a time"
        )
    return Cluster(settings, gpus, slots, threading.Event())

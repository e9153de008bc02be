"""How a suite runs on a cluster: where it is, what a task gets, how often a lost one is redone.

>>> ClusterSettings(gpus=0.5).shards is None
True
"""

import math
from dataclasses import dataclass

from robust_nc.exceptions import ConfigError


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
        if self.gpus is not None and not _is_share(self.gpus):
            raise ConfigError(
                f"gpus per task must be a share of one such as 0.5, or a whole number, found "
                f"{self.gpus:g}"
            )
        if self.cpus <= 0 or self.retries < 0 or self.sync_seconds <= 0:
            raise ConfigError(
                "cpus and sync_seconds must be above 0 and retries at least 0, found "
                f"{self.cpus:g}, {self.sync_seconds:g} and {self.retries}"
            )


def _is_share(gpus: float) -> bool:
    """Whether Ray takes so many GPUs: a share of one, or whole ones."""
    return math.isfinite(gpus) and gpus >= 0 and (gpus <= 1 or gpus % 1 == 0)

"""What `robust-nc run` may be asked: one class, from the command line to the engine.

>>> RunOptions("quickstart", cells=(0, 3), minutes=9).check()
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from robust_nc.engines.ray.start import ClusterSettings
from robust_nc.exceptions import ConfigError

Overwrite = Literal["never", "always", "only-missing", "only-cache"]
_OF_A_CLUSTER = ("address", "gpus", "shards")
_OF_A_PLAN = ("price", "speeds")
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class RunOptions:
    """Train, attack, measure and record every cell of a suite; run again to go on."""

    suite: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SUITE")]
    """Name of a suite that comes with the package, `claims` (runs what the claims of the
    literature are decided on, and answers them), or a path that ends with .toml."""
    out: Path | None = None
    """Folder for records, checkpoints and logs (default: out/<suite>)."""
    cells: tuple[int, ...] = ()
    """Only the cells of these numbers, counted from 0 in the order of the suite's grid; --plan and
    every line about a cell show them (default: all)."""
    where: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only cells whose configuration has KEY=VALUE, such as train.objective=pgd or seed=0; once per
    condition, all must hold."""
    changes: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set")] = ()
    """Change a setting in a copy of the suite: KEY=VALUE, such as train.epochs=5 or
    model.backbone.width=32; once per setting. A list, seed=[0,1], is a cell for each value, where
    the key itself takes no list."""
    log: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Tell of every epoch of a training: csv, tensorboard, wandb, mlflow, or your own file.py:Name;
    once for each. Files lie in <out>/logs."""
    minutes: float | None = None
    """Stop after so many minutes, with the state saved and exit code 143; the same command goes on
    from there."""
    overwrite: Overwrite = "only-missing"
    """never: keep every cell that has a record; only-missing: also redo damaged ones; always: start
    over; only-cache: compute nothing, say what is missing."""
    workers: int | None = None
    """Cells at a time (default: one per core on a CPU, one on an accelerator); with --engine ray,
    tasks at a time on a cluster that is started here."""
    root: Path | None = None
    """Folder of data sets (default: $ROBUST_NC_DATA, else ~/.cache/robust_nc)."""
    engine: Literal["local", "ray"] = "local"
    """local: processes of this machine; ray: a Ray cluster, stages and parts as tasks. Under
    torchrun, without this: all its processes train each model, the first one does the rest."""
    address: str | None = None
    """The cluster to join (default: $RAY_ADDRESS, else one is started here; auto: the one that runs
    on this machine)."""
    gpus: float | None = None
    """GPUs of a task, shares such as 0.5 too (default: one, where the cluster has any)."""
    shards: int | None = None
    """Parts that a verdict and a geometry are cut into (default: what fills the cluster)."""
    plan: bool = False
    """Run nothing; say how many cells, hours of a device, and how much disk it will take."""
    price: float | None = None
    """With --plan: dollars for an hour of a device; says what it will cost."""
    speeds: Path | None = None
    """With --plan: a file of measured speeds, read if it is there, else written; so that what a GPU
    will take can be said elsewhere."""

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot be, or that do not go together."""
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers must be at least 1, found {self.workers}")
        if self.minutes is not None and not (0 < self.minutes < math.inf):
            raise ConfigError(f"--minutes must be a number above 0, found {self.minutes:g}")
        if self.engine == "ray":
            self.cluster()
        given = [name for name in _OF_A_CLUSTER if getattr(self, name) is not None]
        if given and self.engine != "ray":
            raise ConfigError(f"--{given[0]} is for a cluster; add --engine ray, or leave it out")
        if not self.plan and any(getattr(self, name) is not None for name in _OF_A_PLAN):
            raise ConfigError("--price and --speeds are for a plan; add --plan, or leave them out")
        if under_torchrun() and (self.engine == "ray" or self.workers is not None):
            raise ConfigError(
                "torchrun says how many processes there are; leave out --engine and --workers"
            )

    def refuse_selection(self) -> None:
        """Raise `ConfigError` where cells are chosen, or changed: claims need all of theirs."""
        if self.cells or self.where or self.changes:
            raise ConfigError(
                "--cells, --where and --set choose and change cells of a suite, and claims need "
                "all of theirs as they are; leave them out, or run one of the suites"
            )

    def cluster(self) -> ClusterSettings:
        """Return what is asked of Ray; raises `ConfigError` for what cannot be."""
        return ClusterSettings(
            address=self.address, slots=self.workers, gpus=self.gpus, shards=self.shards
        )


def under_torchrun() -> bool:
    """Whether `torchrun` started this process as one of several.

    Raises `ConfigError` where the environment does not say how many there are.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal():
        raise ConfigError(
            f"the environment variable WORLD_SIZE must be a whole number, found {size!r}; unset "
            "it, or start the command with torchrun, which sets it"
        )
    return int(size) > 1 and all(name in os.environ for name in _TORCHRUN)

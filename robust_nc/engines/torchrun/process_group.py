"""How the processes that `torchrun` starts find each other, and how they end together."""

import contextlib
import datetime
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from robust_nc.engines.torchrun.executor import Ranks
from robust_nc.exceptions import ClusterError, ConfigError
from robust_nc.runtime import stopping

_STEP = datetime.timedelta(minutes=30)  # the longest that processes wait for one in a training
_LOOK = 0.5  # seconds between two looks whether any process was asked to stop


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that `torchrun` started; the first must drive, the others `follow`.

    A process that fails while others wait for it ends all of them: the first to know raises what
    happened, the others leave in silence with exit code 1. Raises `ConfigError` for more processes
    than GPUs, `ClusterError` where the others cannot be reached.
    """
    store = _meet()
    ranks, ended = Ranks(store), threading.Event()
    watch = threading.Thread(target=_watch, args=(store.clone(), ended), daemon=True)
    watch.start()
    try:
        yield ranks
    except BaseException:
        if (ranks.busy or ranks.rank) and not ranks.speaks():
            raise SystemExit(1) from None
        raise
    finally:
        ended.set()
        watch.join()  # or it would look into a store that is gone
        if not ranks.busy:
            if ranks.rank == 0:
                ranks.end()
            dist.destroy_process_group()
        else:  # it could wait for ever; what the driver made of an interrupt is said already
            ranks.speaks()


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

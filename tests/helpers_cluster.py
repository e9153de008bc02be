"""A Ray cluster of this machine, whose nodes, workers and drivers can be killed."""

import gc
import logging
import os
import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}


class Nodes:
    """A cluster with a head that does no work, and nodes of one slot each."""

    def __init__(self, count: int) -> None:
        self.cluster: Any = Cluster(
            initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "resources": {"head": 1}}
        )
        self.workers = [self.cluster.add_node(**NODE) for _ in range(count)]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def kill_node(self, choice: random.Random) -> None:
        """Kill a node with all that runs there, and let another one join."""
        node = self.workers.pop(choice.randrange(len(self.workers)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.workers.append(self.cluster.add_node(**NODE))

    def kill_worker(self, choice: random.Random) -> bool:
        """Kill a process that does a task; returns whether there was one."""
        busy = self.busy()
        if busy:
            os.kill(choice.choice(busy), signal.SIGKILL)
        return bool(busy)

    def busy(self, what: str = "do_") -> list[int]:
        """Processes that do a task of ours: any, `do_stage` or `do_part`."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self.workers}
        return [pid for pid, name, parent in _processes() if parent in raylets and what in name]


def _processes() -> Iterator[tuple[int, str, int]]:
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            name = (path / "cmdline").read_text().split("\0")[0]
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if name.startswith("ray::"):
            yield int(path.name), name, parent


@contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    """Start a cluster for this block."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    started = Nodes(count)
    try:
        yield started
    finally:
        ray.shutdown()
        started.cluster.shutdown()
        with warnings.catch_warnings():  # it leaves files of its processes open
            warnings.simplefilter("ignore", ResourceWarning)
            del started
            gc.collect()

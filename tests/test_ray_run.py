"""A suite on a Ray cluster leaves the records of one machine, whatever is killed meanwhile.

And the driver's inbox: states of the try that counts, whatever comes late or is lost on its way.
"""

import gc
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers_faults import Left, assert_same, left_by
from helpers_runner import cli, records, start, wait_for, write_suite
from ray.cluster_utils import Cluster

from robust_nc.engines.ray.files import FileBundle, Message, Reply
from robust_nc.engines.ray.inbox import Inbox
from robust_nc.runtime.progress import Event

pytestmark = pytest.mark.cluster

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

    def busy(self) -> list[int]:
        """Processes that do a task of ours, `do_stage` or `do_part`."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self.workers}
        return [pid for pid, name, parent in _processes() if parent in raylets and "do_" in name]


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


GRID = """
[grid]
"model.head" = ["linear", "etf"]
"train.objective" = ["standard", { name = "pgd", steps = 2 }]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    logging.getLogger("ray").setLevel(logging.ERROR)
    started = Nodes(2)
    try:
        yield started
    finally:
        ray.shutdown()
        started.cluster.shutdown()
        with warnings.catch_warnings():  # it leaves files of its processes open
            warnings.simplefilter("ignore", ResourceWarning)
            del started
            gc.collect()


def with_blocks(path: Path) -> Path:
    text = path.read_text()
    text = text.replace("[base.evaluation]\n", "[base.evaluation]\nblock = 16\n")
    text = text.replace("[base.measure]\n", "[base.measure]\nblock = 25\n")
    path.write_text(text)
    return path


def lasting(out: Path) -> Left:
    """All that a run leaves and that lasts, wherever it was made."""
    left = left_by(out)
    for record in left.records.values():
        record.pop("hardware")
    return left


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The suite in blocks, on one machine without a cluster."""
    folder = tmp_path_factory.mktemp("alone")
    ran = cli("run", with_blocks(write_suite(folder, GRID)), "--out", folder / "out")
    assert ran.code == 0, ran.err
    return folder / "out"


def test_equal_blocks_leave_equal_records_to_the_bit(cluster, alone, tmp_path):
    suite = with_blocks(write_suite(tmp_path, GRID))
    ran = cli(
        *("run", suite, "--out", tmp_path / "out", "--engine", "ray"),
        *("--address", cluster.address, "--shards", 3),
    )
    assert ran.code == 0, ran.err
    assert ran.out.startswith("digits, Linf 0.1, protocol"), "the table and nothing else"
    assert len(re.findall(r"^(\(\d\)|-) +small_cnn", ran.out, re.MULTILINE)) == 4
    assert_same(lasting(tmp_path / "out"), lasting(alone))


def driver(suite: Path, out: Path, cluster: Nodes, *more: object) -> "subprocess.Popen[str]":
    """Start a driver, which tells its errors in a file beside the suite."""
    options = ("--out", out, "--engine", "ray", "--address", cluster.address, *more)
    with errors(suite).open("a") as file:
        return start("run", suite, *options, stdout=subprocess.DEVNULL, stderr=file)


def errors(suite: Path) -> Path:
    return suite.with_suffix(".err")


def disturb(cluster: Nodes, suite: Path, out: Path, choice: random.Random, kills: int) -> int:
    """Kill something, again and again, until the suite is done; returns how often it was hit."""
    hit, running = 0, driver(suite, out, cluster)
    while True:
        try:
            code = running.wait(choice.uniform(0.5, 4.0))
        except subprocess.TimeoutExpired:
            code = None
        if code == 0:
            return hit
        if code is not None and code != -signal.SIGKILL:
            raise AssertionError(f"the driver ended with {code}: {errors(suite).read_text()}")
        if hit < kills and cluster.busy():
            kind = choice.choice(["worker", "worker", "driver", "node"])
            if kind == "driver":
                os.kill(running.pid, signal.SIGKILL)
                running.wait()
                hit += 1
            elif kind == "node":
                cluster.kill_node(choice)
                hit += 1
            else:
                hit += cluster.kill_worker(choice)
        if running.poll() is not None and running.returncode != 0:
            running = driver(suite, out, cluster)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_nothing(cluster, alone, tmp_path, kills):
    """Workers, drivers and whole nodes die; the records are those of an undisturbed run."""
    choice, hit, rounds = random.Random(kills), 0, 0
    while hit < kills:
        rounds += 1
        suite = with_blocks(write_suite(tmp_path / str(rounds), GRID))
        out = tmp_path / str(rounds) / "out"
        hit += disturb(cluster, suite, out, choice, kills - hit)
        assert_same(lasting(out), lasting(alone))


def test_sigterm_brings_the_state_home(cluster, tmp_path):
    suite = write_suite(tmp_path, "")
    suite.write_text(suite.read_text().replace("epochs = 2", "epochs = 4000"))
    running = driver(suite, tmp_path / "out", cluster)
    wait_for(lambda: bool(cluster.busy()))
    time.sleep(2)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=60) == 143, errors(suite).read_text()
    told = errors(suite).read_text()
    assert "stopped as asked with 0 of 1 cells done, 1 under way" in told
    assert "go on with: robust-nc run" in told
    (last,) = (tmp_path / "out" / "checkpoints").glob("*/last.json")
    assert json.loads(last.read_text())["step"] > 0


def test_a_cell_that_fails_costs_itself_alone(cluster, tmp_path):
    suite = write_suite(tmp_path, '[grid]\n"train.lr" = [0.1, 1e30]\n')
    ran = cli(
        "run", suite, "--out", tmp_path / "out", "--engine", "ray", "--address", cluster.address
    )
    assert ran.code == 1
    assert "not finite" in ran.err
    assert "Traceback" not in ran.err
    assert len(records(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "a task needs 1 CPU cores and 1 GPUs, and the cluster has 2 and 0"),
        ("127.0.0.1:1", "cannot join the Ray cluster at 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(cluster, tmp_path, address, said):
    ran = cli(
        *("run", write_suite(tmp_path, ""), "--out", tmp_path / "out", "--gpus", 1),
        *("--engine", "ray", "--address", address or cluster.address),
    )
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_without_an_address_one_is_started_here(tmp_path):
    suite = write_suite(tmp_path, "")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "robust_nc", "run", suite, "--out", tmp_path / "out"]
    command += ["--engine", "ray", "--workers", "1"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert len(records(tmp_path / "out")) == 1


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def inbox(cluster: Nodes, tmp_path: Path, told: list[Event]) -> Iterator[Inbox]:
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    yield Inbox(tmp_path, told.append)
    ray.shutdown()


def post(inbox: Inbox, attempt: int, content: bytes | None, event: Event | None = None) -> Reply:
    bundle = None if content is None else FileBundle({"cache/state": content})
    reply: Reply = ray.get(inbox.queue.put.remote(Message("task", attempt, event, bundle)))
    return reply


def kept(inbox: Inbox, out: Path) -> bytes:
    state = out / "cache" / "state"

    def came() -> bool:  # one look may end without an answer, or find a queue that just died
        inbox.collect()
        return state.exists()

    wait_for(came)
    return state.read_bytes()


def test_only_the_try_that_counts_is_heard_and_only_a_state_is_an_advance(inbox, told, tmp_path):
    first, second = inbox.open("task"), inbox.open("task")
    post(inbox, second, None)
    inbox.collect()
    assert not inbox.advanced("task")
    post(inbox, second, b"new", Event("cell", 0.5, "new"))
    post(inbox, first, b"old", Event("cell", 0.1, "old"))
    post(inbox, 0, None, Event("cell", 0.5, "part"))  # of parts, whatever their number
    assert kept(inbox, tmp_path) == b"new"
    assert [event.status for event in told] == ["new", "part"]
    assert inbox.advanced("task")
    third = inbox.open("task")
    assert not inbox.advanced("task")
    inbox.close("task", FileBundle({"cache/state": b"end"}))
    post(inbox, third, b"late")
    assert kept(inbox, tmp_path) == b"end"


def test_a_mailbox_that_was_killed_starts_another_life(inbox, tmp_path):
    attempt = inbox.open("task")
    before = post(inbox, attempt, None).life
    ray.kill(inbox.queue, no_restart=False)

    def again() -> bool:
        inbox.collect()
        try:
            return post(inbox, attempt, b"2").life != before
        except ray.exceptions.RayActorError:
            return False

    wait_for(again)
    assert kept(inbox, tmp_path) == b"2"

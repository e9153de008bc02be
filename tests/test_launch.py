"""Workers: what one of them suffers costs nobody else, and none outlives its driver."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_launch import (
    break_down,
    double,
    kill_itself,
    leave,
    process_id,
    refuse,
    run_out_of_memory,
    sleep_long,
)
from helpers_runner import group_is_gone, living, wait_for

from robust_nc import exceptions
from robust_nc.engines.local import Finished, Task, run_tasks
from robust_nc.runtime.progress import Event


def task(key: str, call: Callable[..., Any], *arguments: object) -> Task:
    return Task(key, call, arguments)


@pytest.fixture(scope="module")
def mixed() -> tuple[dict[str, Finished], list[Any], list[str]]:
    """Good and bad tasks in chains, by two workers: how they ended, what they reported, order."""
    chains = [
        [
            task("kill", kill_itself, signal.SIGKILL),
            task("after-kill", double, 1),
        ],
        [
            task("first", process_id),
            task("second", process_id),
            task("refuse", refuse, "images reach 255.0; divide by 255"),
            task("break", break_down),
            task("memory", run_out_of_memory),
            task("after-errors", double, 2),
            task("exit", leave),
        ],
        [],
        [task("alone", double, 3)],
    ]
    events: list[Any] = []
    ended = list(run_tasks(chains, workers=2, threads=1, on_event=events.append))
    return {one.key: one for one in ended}, events, [one.key for one in ended]


class TestChains:
    def test_every_task_ends_once(self, mixed):
        ended, _, order = mixed
        assert len(order) == len(set(order)) == len(ended) == 10

    def test_results_and_reports_come_back(self, mixed):
        ended, events, _ = mixed
        results = {key: ended[key].result for key in ("after-kill", "after-errors", "alone")}
        assert results == {"after-kill": 2, "after-errors": 4, "alone": 6}
        assert sorted(events) == [
            ("after-errors", 0.5, "doubling 2"),
            ("after-kill", 0.5, "doubling 1"),
            ("alone", 0.5, "doubling 3"),
        ]

    def test_a_chain_keeps_its_order_and_its_worker(self, mixed):
        ended, _, order = mixed
        chain = ["first", "second", "refuse", "break", "memory", "after-errors", "exit"]
        assert [key for key in order if key in chain] == chain
        assert ended["first"].result == ended["second"].result != os.getpid()

    def test_errors_of_users_cross_as_their_sentence(self, mixed):
        assert mixed[0]["refuse"].error == "images reach 255.0; divide by 255"

    def test_a_defect_comes_with_its_traceback(self, mixed):
        told = mixed[0]["break"].error
        assert told.startswith("unexpected ZeroDivisionError, please report it:\n")
        assert "nobody expects this" in told
        assert "break_down" in told

    def test_a_death_costs_one_task_and_is_one_sentence(self, mixed):
        ended = mixed[0]
        assert ended["kill"].error == (
            "its worker process was ended by signal 9 (Killed), perhaps for want of memory (fewer "
            "--workers need less), 3 times; run again"
        )
        assert ended["exit"].error == "its worker process ended with exit code 3; run again"
        assert ended["memory"].error.startswith("out of memory")
        for key in ("kill", "exit", "memory"):
            assert "\n" not in ended[key].error
        assert ended["after-kill"].error is None


class StoppedError(Exception):
    """Stands for an interrupt while the driver waits."""


def test_workers_are_ended_when_the_driver_stops():
    pids = []

    def stop(event: Event) -> None:
        pids.append(int(event.status))
        raise StoppedError

    with pytest.raises(StoppedError):
        list(run_tasks([[task("long", sleep_long)]], workers=1, threads=1, on_event=stop))
    assert pids[0] not in living()


def test_no_tasks_start_no_worker():
    assert list(run_tasks([], workers=2, threads=1, on_event=print)) == []
    assert list(run_tasks([[]], workers=0, threads=1, on_event=print)) == []


def test_workers_die_with_a_driver_that_is_killed():
    code = (
        "from helpers_launch import sleep_long\n"
        "from robust_nc.engines.local import Task, run_tasks\n"
        "tasks = [[Task('long', sleep_long, ())]]\n"
        "say = lambda event: print(event.status, flush=True)\n"
        "list(run_tasks(tasks, workers=1, threads=1, on_event=say))"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert driver.stdout is not None
    worker = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    driver.stdout.close()
    wait_for(lambda: worker not in living() and group_is_gone(driver.pid), 10)


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(exceptions).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ],
    ids=lambda kind: kind.__name__,
)
def test_errors_survive_pickling(kind):
    told = "found 3; valid: 1, 2"
    copy = pickle.loads(pickle.dumps(kind(told)))
    assert type(copy) is kind
    assert str(copy) == told

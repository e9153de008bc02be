"""Workers of one machine: what one suffers costs nobody else, and none outlives its driver.

A task whose worker is killed is tried again; told to stop, it ends with its state saved. SIGTERM
comes as schedulers send it: to the driver, to a worker, or to the whole process group.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_runner import group_is_gone, living, wait_for
from helpers_tasks import (
    break_down,
    die_at_first,
    double,
    kill_itself,
    leave,
    process_id,
    refuse,
    run_out_of_memory,
    sleep_long,
    told_once,
    work_until_told,
)

from robust_nc import exceptions
from robust_nc.engines.local import Finished, Task, failed, run_tasks
from robust_nc.runtime import stopping
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
    def test_every_task_ends_once_and_results_and_reports_come_back(self, mixed):
        ended, events, order = mixed
        assert len(order) == len(set(order)) == len(ended) == 10
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

    def test_errors_of_users_cross_as_their_sentence_and_defects_with_a_traceback(self, mixed):
        assert mixed[0]["refuse"].error == "images reach 255.0; divide by 255"
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
        run([task("long", sleep_long)], on_event=stop)
    assert pids[0] not in living()


def test_no_tasks_start_no_worker():
    assert run() == run([]) == ({}, [])


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


def run(
    *chains: list[Task], on_event: Callable[[Event], object] = lambda event: None, **options: Any
) -> tuple[dict[str, Finished], list[tuple[str, str]]]:
    """Run chains by two workers: how each task ended, and what was told of those tried again."""
    told: list[tuple[str, str]] = []
    ended = run_tasks(
        chains,
        workers=2,
        threads=1,
        on_event=on_event,
        on_retry=lambda key, why: told.append((key, why)),
        **options,
    )
    return {one.key: one for one in ended}, told


@pytest.fixture(autouse=True)
def no_wish() -> Iterator[None]:
    """No test inherits a wish, or a handler."""
    before = [(n, signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT)]
    stopping.clear()
    yield
    stopping.clear()
    for number, handler in before:
        signal.signal(number, handler)


class TestTryingAgain:
    def test_a_task_whose_worker_is_killed_is_tried_again(self, tmp_path):
        ended, told = run(
            [
                task("memory", die_at_first, signal.SIGKILL, 1, tmp_path / "memory"),
                task("after", double, 2),
            ],
            [task("segment", die_at_first, signal.SIGSEGV, 2, tmp_path / "segment")],
        )
        assert {key: one.result for key, one in ended.items()} == {
            "memory": 2,
            "after": 4,
            "segment": 3,
        }
        assert all(one.error is None and not one.stopped for one in ended.values())
        assert [why for key, why in told if key == "memory"] == [
            "its worker process was ended by signal 9 (Killed), perhaps for want of memory (fewer "
            "--workers need less); it is tried again (2 of 3)"
        ]
        assert [why.partition("; ")[2] for key, why in told if key == "segment"] == [
            "it is tried again (2 of 3)",
            "it is tried again (3 of 3)",
        ]

    def test_only_so_often(self, tmp_path):
        ended, told = run(
            [task("doomed", die_at_first, signal.SIGABRT, 9, tmp_path / "doomed")], tries=2
        )
        assert len(told) == 1
        assert (tmp_path / "doomed").read_text() == "begun\n" * 2
        assert ended["doomed"].error == (
            "its worker process was ended by signal 6 (Aborted), 2 times; run again"
        )
        assert not ended["doomed"].stopped

    def test_an_error_is_not_tried_again(self):
        _, told = run([task("break", break_down)], [task("exit", leave)])
        assert told == []

    def test_a_worker_alone_that_is_told_to_stop_saves_and_its_task_goes_on(self, tmp_path):
        note = tmp_path / "note"
        ended, told = run(
            [task("told", told_once, note), task("after", double, 1)],
            on_event=lambda event: (
                event.task == "told" and os.kill(int(event.status), signal.SIGTERM)
            ),
        )
        assert ended["told"].result == "saved"
        assert ended["after"].result == 2
        ((key, why),) = told
        assert key == "told"
        assert why == "its worker process was told to stop; it is tried again (2 of 3)"


class TestStopping:
    def test_what_is_under_way_ends_with_its_state_saved_and_no_other_is_begun(self, tmp_path):
        notes = [tmp_path / name for name in "ab"]
        pids: list[int] = []

        def wish(event: Event) -> None:
            pids.append(int(event.status))
            if len(pids) == 2:
                stopping.wish()

        ended, told = run(
            [task("a", work_until_told, notes[0]), task("next", double, 1)],
            [task("b", work_until_told, notes[1])],
            [task("later", double, 2)],
            on_event=wish,
        )
        assert ended.keys() == {"a", "b"}
        assert all(one.stopped for one in ended.values())
        assert [note.read_text() for note in notes] == ["saved", "saved"]
        assert told == []
        assert not set(pids) & living().keys()

    def test_what_does_not_heed_is_ended_by_force(self, monkeypatch):
        monkeypatch.setattr(stopping, "SECONDS", 1.2)
        pids: list[int] = []

        def wish(event: Event) -> None:
            pids.append(int(event.status))
            stopping.wish()

        ended, _ = run([task("deaf", sleep_long)], on_event=wish)
        assert ended["deaf"].stopped
        assert "ended by force" in str(ended["deaf"].error)
        assert pids[0] not in living()

    def test_a_wish_from_before_begins_nothing(self):
        stopping.wish()
        assert run([task("never", double, 1)]) == ({}, [])

    def test_what_is_finished_meanwhile_counts(self, tmp_path):
        def wish(event: object) -> None:
            stopping.wish()

        ended, _ = run([task("done", double, 3)], on_event=wish)
        assert ended["done"] == Finished("done", 6, None)


class TestTheHandler:
    def test_sigterm_is_a_wish_and_is_forgotten_after_the_block(self):
        before = signal.getsignal(signal.SIGTERM)
        with stopping.on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(stopping.wished, 5)
        assert not stopping.wished()
        assert signal.getsignal(signal.SIGTERM) == before
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

    def test_one_that_is_sent_twice_at_once_is_one(self):
        with stopping.on_sigterm():
            for _ in range(5):
                os.kill(os.getpid(), signal.SIGTERM)
            wait_for(stopping.wished, 5)

    def test_a_second_one_ends_at_once(self, monkeypatch):
        monkeypatch.setattr(stopping, "_TWICE", 0.05)
        with stopping.on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(stopping.wished, 5)
            time.sleep(0.1)
            with pytest.raises(KeyboardInterrupt):
                self.wait_after(signal.SIGTERM)

    def test_who_does_not_heed_is_interrupted(self, monkeypatch):
        monkeypatch.setattr(stopping, "SECONDS", stopping._MARGIN + 0.1)
        with stopping.on_sigterm(), pytest.raises(KeyboardInterrupt):
            self.wait_after(signal.SIGTERM)

    def wait_after(self, number: int) -> None:
        os.kill(os.getpid(), number)
        time.sleep(30)


DRIVER = """
import sys
from pathlib import Path
import helpers_tasks
from robust_nc.runtime import stopping
from robust_nc.engines.local import Task, run_tasks
work = getattr(helpers_tasks, sys.argv[2])
tasks = [[Task(name, work, (Path(sys.argv[1]) / name,))] for name in "ab"]
say = lambda event: print(event.status, flush=True)
with stopping.on_sigterm():
    ended = list(run_tasks(tasks, workers=2, threads=1, on_event=say))
    print(sorted(one.key for one in ended if one.stopped), flush=True)
"""


@pytest.fixture
def driver(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator["subprocess.Popen[str]"]:
    """A driver whose two workers do a task, in a process group of its own that must end."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), request.param],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    ) as started:
        try:
            assert started.stdout is not None
            for _ in "ab":
                assert started.stdout.readline().strip().isdigit()
            yield started
            started.wait(timeout=60)
            wait_for(lambda: group_is_gone(started.pid), 10)
        finally:
            started.kill()


@pytest.mark.parametrize("driver", ["sleep_long"], indirect=True)
def test_workers_die_with_a_driver_that_is_killed(driver):
    driver.kill()


@pytest.mark.parametrize("driver", ["work_until_told"], indirect=True)
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["driver", "group"])
def test_sigterm_to_the_driver_or_to_all(driver, tmp_path, send):
    send(driver.pid, signal.SIGTERM)
    out, err = driver.communicate(timeout=60)
    assert (out, err, driver.returncode) == ("['a', 'b']\n", "", 0)
    saved = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert saved == {"a": "saved", "b": "saved"}


def test_a_failure_says_what_it_is():
    assert failed("cell", stopping.StoppedError()).stopped
    assert not failed("cell", MemoryError()).stopped

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
from typing import Any, NamedTuple

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
from robust_nc.engines.local import Finished, Task, run_tasks
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Event


def task(key: str, call: Callable[..., Any], *arguments: object) -> Task:
    return Task(key, call, arguments)


def run(
    *chains: list[Task], on_event: Callable[[Event], object] = lambda event: None
) -> tuple[list[Finished], list[tuple[str, str]]]:
    """Run chains by two workers: how each task ended, and what was told of those tried again."""
    told: list[tuple[str, str]] = []
    ended = run_tasks(
        chains,
        workers=2,
        threads=1,
        on_event=on_event,
        on_retry=lambda key, why: told.append((key, why)),
    )
    return list(ended), told


class Mixed(NamedTuple):
    """How good and bad tasks ended, in order, what they reported, and which were tried again."""

    ended: dict[str, Finished]
    events: list[Any]
    told: list[tuple[str, str]]


CHAIN = ["first", "second", "refuse", "break", "memory", "after-errors", "exit"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    notes, events = tmp_path_factory.mktemp("notes"), []

    def hear(event: Event) -> None:
        if event.task == "told":  # to stop, alone
            os.kill(int(event.status), signal.SIGTERM)
        else:
            events.append(event)

    ended, told = run(
        [task("kill", kill_itself, signal.SIGKILL), task("after-kill", double, 1)],
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
        [task("segment", die_at_first, signal.SIGSEGV, 1, notes / "segment")],
        [task("told", told_once, notes / "told"), task("alone", double, 3)],
        on_event=hear,
    )
    assert len({one.key for one in ended}) == len(ended)
    return Mixed({one.key: one for one in ended}, events, told)


class TestChains:
    def test_every_task_ends_once_and_results_and_reports_come_back(self, mixed):
        assert len(mixed.ended) == 12
        results = {key: mixed.ended[key].result for key in ("after-kill", "after-errors", "alone")}
        assert results == {"after-kill": 2, "after-errors": 4, "alone": 6}
        assert sorted(mixed.events) == [
            ("after-errors", 0.5, "doubling 2"),
            ("after-kill", 0.5, "doubling 1"),
            ("alone", 0.5, "doubling 3"),
        ]

    def test_a_chain_keeps_its_order_and_its_worker(self, mixed):
        ended = mixed.ended
        assert [key for key in ended if key in CHAIN] == CHAIN
        assert ended["first"].result == ended["second"].result != os.getpid()

    def test_errors_of_users_cross_as_their_sentence_and_defects_with_a_traceback(self, mixed):
        assert mixed.ended["refuse"].error == "images reach 255.0; divide by 255"
        told = mixed.ended["break"].error
        assert told.startswith("unexpected ZeroDivisionError, please report it:\n")
        assert "nobody expects this" in told
        assert "break_down" in told

    def test_a_death_costs_one_task_and_is_one_sentence(self, mixed):
        ended = mixed.ended
        assert ended["kill"].error == (
            "its worker process was ended by signal 9 (Killed), perhaps for want of memory (fewer "
            "--workers need less), 3 times; run again"
        )
        assert ended["exit"].error == "its worker process ended with exit code 3; run again"
        assert ended["memory"].error.startswith("out of memory")
        for key in ("kill", "exit", "memory"):
            assert "\n" not in ended[key].error
            assert not ended[key].stopped
        assert ended["after-kill"].error is None

    def test_only_a_task_whose_worker_is_ended_is_tried_again(self, mixed):
        assert mixed.ended["segment"].result == 2
        assert mixed.ended["told"].result == "saved"
        told = sorted((key, why.partition("; it is tried again ")) for key, why in mixed.told)
        assert [(key, often) for key, (_, _, often) in told] == [
            ("kill", "(2 of 3)"),
            ("kill", "(3 of 3)"),
            ("segment", "(2 of 3)"),
            ("told", "(2 of 3)"),
        ]
        assert told[2][1][0] == "its worker process was ended by signal 11 (Segmentation fault)"
        assert told[3][1][0] == "its worker process was told to stop"


def test_errors_survive_pickling():
    kinds = [kind for kind in vars(exceptions).values() if isinstance(kind, type)]
    for kind in (kind for kind in kinds if issubclass(kind, Exception)):
        copy = pickle.loads(pickle.dumps(kind("found 3; valid: 1, 2")))
        assert (type(copy), str(copy)) == (kind, "found 3; valid: 1, 2")


@pytest.fixture(autouse=True)
def no_wish() -> Iterator[None]:
    """No test inherits a wish, or a handler."""
    before = [(n, signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT)]
    stopping.clear()
    yield
    stopping.clear()
    for number, handler in before:
        signal.signal(number, handler)


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
        assert {one.key for one in ended} == {"a", "b"}
        assert all(one.stopped for one in ended)
        assert [note.read_text() for note in notes] == ["saved", "saved"]
        assert told == []
        assert not set(pids) & living().keys()

    def test_what_does_not_heed_is_ended_by_force(self, monkeypatch):
        monkeypatch.setattr(stopping, "SECONDS", 1.2)
        pids: list[int] = []

        def wish(event: Event) -> None:
            pids.append(int(event.status))
            stopping.wish()

        ((deaf,), _) = run([task("deaf", sleep_long)], on_event=wish)
        assert deaf.stopped
        assert "ended by force" in str(deaf.error)
        assert pids[0] not in living()

    def test_a_wish_from_before_begins_nothing(self):
        assert run() == run([]) == ([], [])
        stopping.wish()
        assert run([task("never", double, 1)]) == ([], [])

    def test_what_is_finished_meanwhile_counts(self, tmp_path):
        def wish(event: object) -> None:
            stopping.wish()

        ended, _ = run([task("done", double, 3)], on_event=wish)
        assert ended == [Finished("done", 6, None)]


class TestTheHandler:
    def test_sigterm_however_often_at_once_is_a_wish_and_is_forgotten_after_the_block(self):
        before = signal.getsignal(signal.SIGTERM)
        with stopping.on_sigterm():
            for _ in range(5):
                os.kill(os.getpid(), signal.SIGTERM)
            wait_for(stopping.wished, 5)
        assert not stopping.wished()
        assert signal.getsignal(signal.SIGTERM) == before
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

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
tasks = [[Task(name, helpers_tasks.work_until_told, (Path(sys.argv[1]) / name,))] for name in "ab"]
say = lambda event: print(event.status, flush=True)
with stopping.on_sigterm():
    ended = list(run_tasks(tasks, workers=2, threads=1, on_event=say))
    print(sorted(one.key for one in ended if one.stopped), flush=True)
"""


def test_sigterm_to_the_whole_group_ends_all_with_their_state_saved(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    ) as driver:
        try:
            assert driver.stdout is not None
            for _ in "ab":
                assert driver.stdout.readline().strip().isdigit()
            os.killpg(driver.pid, signal.SIGTERM)
            out, err = driver.communicate(timeout=60)
            wait_for(lambda: group_is_gone(driver.pid), 10)
        finally:
            driver.kill()
    assert (out, err, driver.returncode) == ("['a', 'b']\n", "", 0)
    saved = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert saved == {"a": "saved", "b": "saved"}

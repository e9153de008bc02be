"""Threads of the CPU: chosen by measuring where that is asked for, named, and given back."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from robust_nc import Ball, MeasureConfig, RunConfig, evaluate, profile, train
from robust_nc.config import read
from robust_nc.exceptions import InputError
from robust_nc.runtime import threads
from robust_nc.runtime.threads import brief_waits, fastest_threads
from robust_nc.runtime.waiting import wait_policy


@pytest.fixture(autouse=True)
def _four() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Timed(nn.Module):
    """A network that takes seconds by its number of threads, on a clock of its own."""

    def __init__(self, seconds: dict[int, float], *, fails_from: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        self.seconds = seconds
        self.seen: list[int] = []
        self.clock = 0.0
        self.fails_from = fails_from

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(torch.get_num_threads())
        self.clock += self.seconds[self.seen[-1]]
        if 0 < self.fails_from <= len(self.seen):
            raise RuntimeError("no more")
        return self.layers(images)


BUSY, IDLE, HALF = {4: 9.0, 2: 3.0, 1: 1.0}, {4: 1.0, 2: 2.0, 1: 4.0}, {4: 2.0, 2: 1.0, 1: 1.0}


@pytest.fixture
def judge(monkeypatch):
    def judged(model, **options):
        clock = SimpleNamespace(perf_counter=lambda: model.clock)
        monkeypatch.setattr(threads, "time", clock)
        torch.manual_seed(0)
        images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
        return evaluate(model, images, labels, Ball("Linf", 0.01), accelerate=False, **options)

    return judged


@pytest.mark.parametrize(
    ("seconds", "count", "named"),
    [(BUSY, 1, ("1 thread",)), (HALF, 2, ("2 threads",)), (IDLE, 4, ())],
)
def test_attacks_run_at_the_fastest_number(judge, seconds, count, named):
    model = Timed(seconds)
    assert judge(model, protocol="fast", checks=False).accelerated == named
    assert model.seen[-1] == count
    assert torch.get_num_threads() == 4


def test_nothing_is_measured_for_a_few_passes_or_without_tuning(judge):
    for options in ({"protocol": "fgsm"}, {"protocol": "fast", "tune": False}):
        model = Timed(BUSY)
        assert judge(model, **options).accelerated == ()
        assert set(model.seen) == {4}


@pytest.mark.parametrize("call", [5, 60])
def test_threads_come_back_where_the_model_fails(judge, call):
    model = Timed(BUSY, fails_from=call)
    with pytest.raises(InputError, match="no more"):
        judge(model, protocol="fast")
    assert torch.get_num_threads() == 4
    assert 1 in model.seen or call == 5


def test_what_a_call_raises_comes_through_with_the_number_as_it_was():
    def call() -> None:
        if torch.get_num_threads() == 2:
            raise ValueError("not with two")

    with pytest.raises(ValueError, match="not with two"):
        fastest_threads(call, ahead=10_000)
    assert torch.get_num_threads() == 4


@pytest.fixture
def unset(monkeypatch):
    """No variable says how threads wait."""
    for name in wait_policy():
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux tells its threads")
def test_where_cores_are_taken_away_a_team_sleeps_until_the_block_ends(unset):
    def living() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def wait_until(true: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + 60
        while not true() and time.monotonic() < deadline:
            time.sleep(0.001)
        return true()

    def work() -> None:
        with brief_waits():
            assert wait_until(lambda: living() >= before + 4)  # the watch and its three
            raise ValueError("ours")

    taken = itertools.count(0, 100)
    unset.setattr(threads, "_LOOK", 0.001)
    unset.setattr(threads, "_taken_away", lambda: next(taken))
    torch.empty(2**20).fill_(1.0)  # our own team
    before = living()
    with pytest.raises(ValueError, match="ours"):
        work()
    assert wait_until(lambda: living() <= before)


def test_no_one_watches_one_thread_or_where_a_variable_says_how_to_wait(unset):
    running = threading.active_count()
    with brief_waits():
        assert threading.active_count() == running + 1
    unset.setenv("OMP_WAIT_POLICY", "active")
    with brief_waits():
        assert threading.active_count() == running
    unset.delenv("OMP_WAIT_POLICY")
    torch.set_num_threads(1)
    with brief_waits():
        assert threading.active_count() == running


def test_verdicts_trainings_and_profiles_are_watched(unset):
    seen: list[str] = []
    unset.setattr(threads, "_watch", lambda over: seen.append("watched"))
    train(read(RunConfig, {"data": {"train_limit": 60}, "train": {"epochs": 2}}))
    assert len(seen) == 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 2
    evaluate(model, images, labels, Ball("Linf", 0.1), protocol="fgsm")
    assert len(seen) == 3
    profile(model, [(images, labels)], Ball("Linf", 0.1), measure=MeasureConfig(steps=1, radii=()))
    assert len(seen) > 3

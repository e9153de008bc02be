"""kill -9 of the driver and of workers at random moments: the end is that of an undisturbed run."""

import os
import random
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers_faults import Left, assert_same, assert_tidy, left_by, records_are_whole, workers_of
from helpers_runner import Ran, cli, group_is_gone, start, wait_for, write_suite

FEW = '[grid]\n"evaluation.examples" = [40, 30]\n'
MORE = '[grid]\n"model.head" = ["linear", "etf"]\n"train.epochs" = [3]\nseed = [0, 1, 2]\n'


class Story(NamedTuple):
    """What kills came to: whom they hit, what the last run said, and what all left."""

    hit: list[str]
    last: Ran
    out: Path
    wanted: Left


def go(folder: Path, out: str, workers: int) -> Ran:
    return cli("run", folder / "tiny.toml", "--out", folder / out, "--workers", workers)


class Killer:
    """Starts runs into `out` and kills their driver, or a worker, after random moments of work."""

    def __init__(self, folder: Path, seed: int, longest: float, workers: int) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.hit: list[str] = []
        self._draws = random.Random(seed)
        self._longest = longest
        self._workers = workers
        self._driver: subprocess.Popen[str] | None = None

    def round(self) -> bool:
        """Kill somebody; False where the run came to its end before."""
        if self._driver is None:
            arguments = ("--out", self.out, "--workers", self._workers)
            self._driver = start(
                "run", self.folder / "tiny.toml", *arguments, stdout=subprocess.DEVNULL
            )
        driver = self._driver
        wait_for(lambda: driver.poll() is not None or bool(workers_of(driver.pid)))
        try:
            driver.wait(timeout=self._draws.uniform(0, self._longest))
            self._bury()
            return False
        except subprocess.TimeoutExpired:
            self._kill(driver, "driver" if len(self.hit) % 2 else "worker")
        records_are_whole(self.out)
        return True

    def _kill(self, driver: "subprocess.Popen[str]", whom: str) -> None:
        if whom == "driver":
            driver.kill()
            self._bury()
            self.hit.append(whom)
        for worker in workers_of(driver.pid) if whom == "worker" else []:
            os.kill(worker, signal.SIGKILL)
            self.hit.append(whom)

    def _bury(self) -> None:
        assert self._driver is not None
        self._driver.kill()
        _, told = self._driver.communicate()
        assert "Traceback" not in told
        group = self._driver.pid
        wait_for(lambda: group_is_gone(group), 20)
        self._driver = None

    def end(self) -> None:
        if self._driver is not None:
            self._bury()


def disturbed(
    folder: Path, grid: str, *, rounds: int, seed: int, longest: float, workers: int
) -> Story:
    """Let `rounds` kills hit, over as many whole runs as that takes, and one that is left alone."""
    write_suite(folder, grid)
    assert go(folder, "calm", workers).code == 0
    wanted = left_by(folder / "calm")
    killer = Killer(folder, seed, longest, workers)
    try:
        for number in range(4 * rounds):
            if not killer.round() and len(killer.hit) < rounds:
                assert_same(left_by(killer.out), wanted)
                killer.out = folder / f"out-{number}"
            if len(killer.hit) >= rounds:
                break
    finally:
        killer.end()
    return Story(killer.hit, go(folder, killer.out.name, workers), killer.out, wanted)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((FEW, 3, 0, 2.5, 1), id="3"),
        pytest.param((MORE, 20, 1, 5.0, 1), id="20", marks=pytest.mark.slow),
        pytest.param((MORE, 20, 2, 5.0, 2), id="20-of-two-workers", marks=pytest.mark.slow),
    ],
)
def story(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Story:
    grid, rounds, seed, longest, workers = request.param
    folder = tmp_path_factory.mktemp("killed")
    return disturbed(folder, grid, rounds=rounds, seed=seed, longest=longest, workers=workers)


def test_kills_hit_both(story):
    assert len(story.hit) >= 3
    assert set(story.hit) == {"driver", "worker"}


def test_the_last_run_finishes(story):
    assert story.last.code == 0
    assert story.last.err.splitlines()[-1].endswith(" kept, 0 failed")


def test_what_is_left_is_that_of_an_undisturbed_run(story):
    assert_same(left_by(story.out), story.wanted)


def test_nothing_is_half_and_nothing_is_left_over(story):
    assert_tidy(story.out)

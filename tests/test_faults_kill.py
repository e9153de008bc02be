"""kill -9 of the driver and of workers at random moments: the end is that of an undisturbed run.

`test_runner.py` kills both once, in the fast tier.
"""

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from helpers_faults import assert_same, assert_tidy, left_by, workers_of
from helpers_runner import Ran, cli, group_is_gone, start, wait_for, write_suite

GRID = '[grid]\n"model.head" = ["linear", "etf"]\n"train.epochs" = [3]\nseed = [0, 1, 2]\n'
ROUNDS, LONGEST = 20, 5.0


def asked(folder: Path, out: str, workers: int) -> tuple[object, ...]:
    return "run", folder / "tiny.toml", "--out", folder / out, "--workers", workers


def go(folder: Path, out: str, workers: int) -> Ran:
    return cli(*asked(folder, out, workers))


def until_it_works(driver: "subprocess.Popen[str]") -> None:
    wait_for(lambda: driver.poll() is not None or bool(workers_of(driver.pid)))


def bury(driver: "subprocess.Popen[str]") -> None:
    driver.kill()
    _, told = driver.communicate()
    assert "Traceback" not in told
    wait_for(lambda: group_is_gone(driver.pid), 20)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_is_that_of_an_undisturbed_run(tmp_path: Path, workers: int) -> None:
    """So many kills hit, over as many whole runs as that takes, and one run is left alone."""
    write_suite(tmp_path, GRID)
    assert go(tmp_path, "calm", workers).code == 0
    wanted, draws = left_by(tmp_path / "calm"), random.Random(workers)
    hit: list[str] = []
    number, driver = 0, None
    try:
        while len(hit) < ROUNDS:
            out = f"out-{number}"
            driver = driver or start(*asked(tmp_path, out, workers), stdout=subprocess.DEVNULL)
            until_it_works(driver)
            try:
                driver.wait(timeout=draws.uniform(0, LONGEST))
            except subprocess.TimeoutExpired:
                if len(hit) % 2:
                    bury(driver)
                    hit, driver = [*hit, "driver"], None
                else:
                    for worker in workers_of(driver.pid):
                        os.kill(worker, signal.SIGKILL)
                        hit.append("worker")
                left_by(tmp_path / out)  # what is half raises
            else:
                bury(driver)
                assert_same(left_by(tmp_path / out), wanted)
                number, driver = number + 1, None
    finally:
        if driver is not None:
            bury(driver)
    assert set(hit) == {"driver", "worker"}
    last = go(tmp_path, out, workers)
    assert last.code == 0
    assert last.err.splitlines()[-1].endswith(" kept, 0 failed")
    assert_same(left_by(tmp_path / out), wanted)
    assert_tidy(tmp_path / out)

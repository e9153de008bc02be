"""The wall clock may jump: nothing is decided by it, or by the times of files in order.

What is measured, waited for or shown as left comes from the monotonic clock, which does not jump.
"""

import ast
import dataclasses
import datetime as calendar
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import helpers_report
import pytest
from helpers_faults import Disk, Left, assert_same, assert_tidy, left_by, one_process, using
from helpers_runner import cli, write_suite

from robust_nc.pipeline import make_record as recording
from robust_nc.record import read_record, write_record
from robust_nc.report.board.sql import query

ROOT = Path(__file__).parent.parent
ONE = '[grid]\n"evaluation.examples" = [40]\n"train.epochs" = [2]\n'
HOUR, YEAR = 3600.0, 365 * 86400.0

# Who reads the wall clock or the times of files, and what for.
READERS = {
    "pipeline/make_record.py": "when a record was made",
    "verification/check.py": "when a receipt was made",
    "verification/challenge.py": "when a challenge was made",
    "report/board/index.py": "whether a file is the one that was read: equal or not",
    "engines/ray/files.py": "whether a file is the one that was sent: equal or not",
    "attacks/autoattack.py": "a seed where the original takes the time",
}
WALL = {"time", "time_ns", "now", "utcnow", "today", "getmtime", "getctime"}
STAMPS = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "st_atime"}


def reads_the_wall_clock(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in STAMPS:
            return True
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in WALL:
            owner = called.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if name in {"time", "datetime", "date", "path"}:
                return True
    return False


def test_nobody_else_reads_the_wall_clock():
    found = {
        str(path.relative_to(ROOT)).removeprefix("robust_nc/")
        for folder in ("robust_nc", "attacks")
        for path in (ROOT / folder).rglob("*.py")
        if reads_the_wall_clock(path)
    }
    assert found <= READERS.keys()
    assert "pipeline/make_record.py" in found


class Clock:
    """A wall clock that is `off` by so many seconds."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.off = 0.0
        true = time.time

        class Jumping(calendar.datetime):
            @classmethod
            def now(cls, tz: calendar.tzinfo | None = None) -> "Jumping":
                return cls.fromtimestamp(true() + self.off, tz)

        patch.setattr(time, "time", lambda: true() + self.off)
        patch.setattr(time, "time_ns", lambda: int((true() + self.off) * 1e9))
        patch.setattr(recording, "datetime", Jumping)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture(autouse=True)
def in_this_process() -> Iterator[None]:
    with one_process():
        yield


class Calm(NamedTuple):
    """A run under a clock that goes right: its suite, what it left, how many writes it took."""

    suite: Path
    left: Left
    writes: int


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    folder = tmp_path_factory.mktemp("calm")
    suite, out = write_suite(folder, ONE), folder / "out"
    with one_process(), using(Disk(out)) as disk:
        assert cli("run", suite, "--out", out).code == 0
    return Calm(suite, left_by(out), len(disk.seen))


def shift_times(folder: Path, seconds: float) -> None:
    """Let all files look as if they were written later or earlier."""
    for path in folder.rglob("*"):
        times = path.stat()
        os.utime(path, (times.st_atime + seconds, times.st_mtime + seconds))


@pytest.mark.parametrize("jump", [-HOUR, YEAR], ids=["back", "ahead"])
def test_a_run_that_was_broken_off_goes_on_under_another_clock(calm, tmp_path, clock, jump):
    out = tmp_path / "out"
    with using(Disk(out, full_at=2 * calm.writes // 3, number=errno.ENOSPC)):
        assert cli("run", calm.suite, "--out", out).code == 1
    assert list(out.glob("checkpoints/*/last.json"))
    clock.off = jump
    assert cli("run", calm.suite, "--out", out).code == 0
    (path,) = out.glob("*/*.json")
    made = calendar.datetime.fromisoformat(read_record(path).record.created).timestamp()
    assert abs(made - time.time()) < HOUR / 2  # the record says what the clock said
    assert_same(left_by(out), calm.left)
    assert_tidy(out)
    for shift in (YEAR, -2 * YEAR):
        shift_times(out, shift)
        ran = cli("run", calm.suite, "--out", out)
        assert ran.err.endswith("0 cells made, 1 kept, 0 failed\n")


def test_a_clock_that_jumps_while_a_cell_is_made(calm, tmp_path, clock):
    """At every write it is another hour, or another year."""
    out = tmp_path / "out"

    class Jumping(Disk):
        def write(self, event: str, path: str) -> None:
            clock.off = (-HOUR, YEAR, 0.0)[len(self.seen) % 3]
            super().write(event, path)

    with using(Jumping(out)):
        assert cli("run", calm.suite, "--out", out).code == 0
    assert_same(left_by(out), calm.left)


def test_the_board_sees_a_record_that_is_older_than_the_one_it_replaced(tmp_path):
    results = tmp_path / "results"
    helpers_report.write_grid(results, objectives=("pgd",), heads=("etf",), seeds=2)
    assert query(results, "select max(seed) from records").rows == [(1,)]
    (path, *_) = sorted(results.rglob("*.json"))
    old = path.stat()
    record = read_record(path).record
    write_record(path, dataclasses.replace(record, seed=7))
    for seconds in (-HOUR, 0.0, YEAR):
        os.utime(path, (old.st_atime, old.st_mtime + seconds))
        assert query(results, "select max(seed) from records").rows == [(7,)]

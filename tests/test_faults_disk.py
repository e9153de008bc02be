"""A disk that is full, or cannot be written, at any write of a run: one sentence, nothing half.

Whatever failed, the next run that is not disturbed ends with the record of one that never was. The
wall clock may jump meanwhile: nothing is decided by the times of files in order.
"""

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import helpers_report
import pytest
from helpers_faults import (
    Disk,
    Left,
    assert_same,
    assert_tidy,
    left_by,
    one_process,
    using,
)
from helpers_runner import Ran, cli, write_suite

from robust_nc.record import read_record, write_record
from robust_nc.report.board.sql import query

ONE = '[grid]\n"evaluation.examples" = [40]\n"train.epochs" = [2]\n'
HOUR, YEAR = 3600.0, 365 * 86400.0


class Calm(NamedTuple):
    """A run that nothing disturbed: its suite, what it left, and its writes in order."""

    suite: Path
    out: Path
    left: Left
    writes: tuple[str, ...]


def go(suite: Path, out: Path, *options: object) -> Ran:
    return cli("run", suite, "--out", out, *options)


@pytest.fixture(autouse=True, scope="module")
def in_this_process() -> Iterator[None]:
    with one_process():
        yield


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, in_this_process: None) -> Calm:
    folder = tmp_path_factory.mktemp("calm")
    suite, out = write_suite(folder, ONE), folder / "out"
    with using(Disk(out)) as disk:
        assert go(suite, out).code == 0
    return Calm(suite, out, left_by(out), tuple(disk.seen))


def assert_one_sentence(ran: Ran, reason: str) -> None:
    """One sentence names the place and the remedy, and no traceback comes with it."""
    assert ran.code in {1, 2}
    told = [line for line in ran.err.splitlines() if reason in line]
    assert len(told) == 1, ran.err
    assert "unexpected" not in ran.err
    assert "Traceback" not in ran.err
    assert "--out" in told[0] or "free some space" in told[0] or "log" in told[0]


def fail_and_mend(
    calm: Calm, out: Path, full_at: int, *, only_once: bool = False, number: int = errno.ENOSPC
) -> None:
    """Let a write fail, and look at what is left then and after a run that nothing disturbs."""
    with using(Disk(out, full_at=full_at, only_once=only_once, number=number)) as disk:
        ran = go(calm.suite, out)
    told = f"write {full_at}, {disk.seen[full_at]}"
    if ran.code or not only_once:
        assert_one_sentence(ran, os.strerror(number))
    # What was begun cannot be removed either on a disk that is read-only; the next run does that.
    assert number == errno.EROFS or list(out.rglob("*.part")) == [], told
    left_by(out)  # what is half raises
    assert go(calm.suite, out).code == 0, told
    assert_same(left_by(out), calm.left)
    assert_tidy(out)


def test_writes_are_counted(calm):
    """Or the tests below would try nothing."""
    for name in (".lock", "log.jsonl", "safetensors", "last.json", "best.jsonl", ".evidence"):
        assert any(name in write for write in calm.writes), name
    assert sum(write.startswith("fsync ") for write in calm.writes) >= 8
    assert any(write.startswith("os.rename ") and ".parquet" in write for write in calm.writes)


@pytest.mark.parametrize(
    ("share", "number"),
    [(0.1, errno.ENOSPC), (0.5, errno.EROFS), (0.5, errno.ENOSPC), (0.9, errno.ENOSPC)],
)
def test_a_disk_that_is_full_or_read_only_from_some_write_on(calm, tmp_path, share, number):
    fail_and_mend(calm, tmp_path / "out", int(share * len(calm.writes)), number=number)


@pytest.mark.slow
@pytest.mark.parametrize("only_once", [False, True], ids=["full", "once"])
def test_any_write_may_fail(calm, tmp_path, only_once):
    for at in range(len(calm.writes)):
        fail_and_mend(calm, tmp_path / str(at), at, only_once=only_once)


class TestPlacesThatCannotBeWritten:
    """Results that are read-only, or another's: nothing is made, what is there is shown."""

    def test_a_run_says_so_and_what_is_there_can_be_read(self, calm, tmp_path):
        out, number = tmp_path / "out", errno.EACCES
        shutil.copytree(calm.out, out)
        with using(Disk(out, full_at=0, number=number)):
            ran = go(calm.suite, out)
            shown = cli("board", out)
            listed = go(calm.suite, out, "--overwrite", "only-cache")
        assert_one_sentence(ran, os.strerror(number))
        assert (shown.code, shown.err) == (0, "")
        assert "small_cnn-linear" in shown.out
        assert listed.code == 0
        assert listed.err.endswith("0 cells made, 1 kept, 0 failed\n")
        assert left_by(out) == calm.left

    def test_a_record_that_is_read_only_is_kept_and_a_damaged_one_made_again(self, calm, tmp_path):
        out = shutil.copytree(calm.out, tmp_path / "out")
        (record,) = out.glob("*/*.json")
        record.chmod(0o444)
        assert go(calm.suite, out).err.endswith("0 cells made, 1 kept, 0 failed\n")
        record.chmod(0o644)
        record.write_text(record.read_text()[:200])
        record.chmod(0o444)
        assert go(calm.suite, out).err.endswith("1 cells made, 0 kept, 0 failed\n")
        assert_same(left_by(out), calm.left)


IN_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from helpers_faults import one_process
from helpers_runner import cli
suite, disk = Path(sys.argv[1]), Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], check=True)
with one_process():
    for size in (4, 16, 72, 140, 1000):
        subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
        ran = cli("run", suite, "--out", disk / "out")
        print(size, ran.code, ran.err.count("No space left"), "unexpected" in ran.err)
        assert not list(disk.rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    ran, shown = cli("run", suite, "--out", disk / "out"), cli("board", disk / "out")
    print("read-only", ran.code, ran.err.count("Read-only file system"), shown.code)
subprocess.run(["cp", "-r", disk / "out", sys.argv[3]], check=True)
"""


def own_mounts() -> bool:
    """Whether a process may mount a disk that only it sees."""
    try:
        tried = subprocess.run(
            ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True
        )
    except FileNotFoundError:
        return False
    return tried.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not own_mounts(), reason="no file system can be mounted here")
def test_a_real_disk_that_is_full_and_grows(calm, tmp_path):
    """The run goes on each time that there is more room, and ends with the same record."""
    (tmp_path / "disk").mkdir()
    arguments = [calm.suite, tmp_path / "disk", tmp_path / "copy"]
    ran = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-c", IN_A_SMALL_DISK, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    assert ran.returncode == 0, ran.stderr
    *growing, last = [line.split() for line in ran.stdout.splitlines()]
    assert growing[-1] == ["1000", "0", "0", "False"]
    assert sum(code in "12" and told == "1" for _, code, told, _ in growing) >= 3
    assert all(odd == "False" for *_, odd in growing)
    assert last == ["read-only", "2", "1", "0"]
    assert_same(left_by(tmp_path / "copy"), calm.left)
    assert_tidy(tmp_path / "copy")


def shift_times(folder: Path, seconds: float) -> None:
    """Let all files look as if they were written later or earlier."""
    for path in folder.rglob("*"):
        times = path.stat()
        os.utime(path, (times.st_atime + seconds, times.st_mtime + seconds))


def test_a_run_that_was_broken_off_goes_on_under_another_clock(calm, tmp_path):
    out = tmp_path / "out"
    with using(Disk(out, full_at=2 * len(calm.writes) // 3)):
        assert go(calm.suite, out).code == 1
    assert list(out.glob("checkpoints/*/last.json"))
    shift_times(out, HOUR)
    assert go(calm.suite, out).code == 0
    assert_same(left_by(out), calm.left)
    assert_tidy(out)
    for shift in (YEAR, -2 * YEAR):
        shift_times(out, shift)
        assert go(calm.suite, out).err.endswith("0 cells made, 1 kept, 0 failed\n")


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

"""The runner: killed at any moment it goes on, what is finished is kept, chosen cells alone run."""

import itertools
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers_runner import (
    QUIET,
    Ran,
    cli,
    group_is_gone,
    record_times,
    records,
    start,
    times,
    tiny,
    wait_for,
    write_suite,
)

from robust_nc.config import cell_id, training_id
from robust_nc.engines.options import RunOptions
from robust_nc.engines.run_suite import SuiteReport, run_suite
from robust_nc.exceptions import ConfigError, StorageError
from robust_nc.pipeline.selection import select_cells
from robust_nc.record import Record, same_record
from robust_nc.record.folder import checkpoint_folder, record_path, rows_path
from robust_nc.training.progress import TrainEvent, read_log
from robust_nc.training.run import train_cell


class Finished(NamedTuple):
    """A run that nobody disturbed."""

    folder: Path
    out: Path
    ran: Ran


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    suite = write_suite(folder)
    return Finished(folder, folder / "out", cli("run", suite, "--out", folder / "out", *ALONE))


ALONE = ("--workers", 1)
OPTIONS = RunOptions("tiny", workers=1)


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage (times of files are kept)."""
    shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(folder: Path, *options: object) -> Ran:
    return cli("run", folder / "tiny.toml", "--out", folder / "out", *ALONE, *options)


def assert_same(found: dict[str, Record], wanted: dict[str, Record]) -> None:
    assert found.keys() == wanted.keys()
    assert all(same_record(found[cell], wanted[cell]) for cell in wanted)


class TestAFinishedRun:
    def test_cells_are_named_by_the_digest_of_their_configuration(self, finished):
        suite = tiny(finished.folder)
        assert set(records(finished.out)) == {cell_id(cell.config) for cell in suite.cells}
        for cell in suite.cells:
            assert record_path(finished.out, cell.model, cell.id).is_file()
            assert rows_path(finished.out, cell.model, cell.id).is_file()

    def test_cells_that_are_judged_differently_share_their_weights(self, finished):
        folders = {training_id(cell.config) for cell in tiny(finished.folder).cells}
        assert len(folders) == 2
        found = records(finished.out).values()
        assert {path.name for path in (finished.out / "checkpoints").iterdir()} == folders
        assert len({record.weights.best.sha256 for record in found}) == 2
        assert {record.data.examples for record in found} == {40, 30}

    def test_results_go_to_stdout_and_progress_to_stderr(self, finished):
        code, out, err = finished.ran
        assert code == 0
        assert "small_cnn-etf-standard" in out
        assert "seed 0: clean" not in out
        assert "[4/4] small_cnn-" in err
        assert err.endswith("4 cells made, 0 kept, 0 failed\n")
        assert not list(finished.out.rglob("*.part"))


class TestOverwrite:
    @pytest.mark.parametrize("options", [(), ("--overwrite", "never")])
    def test_finished_cells_are_kept_and_by_never_even_without_rows(self, copy, options):
        """Records of others in the folder are left alone."""
        cell, stranger = tiny(copy).cells[0], copy / "out" / "notes" / "mine.json"
        stranger.parent.mkdir()
        stranger.write_text("{}")
        if options:
            rows_path(copy / "out", cell.model, cell.id).unlink()
        before = times(copy / "out", "*.*")
        ran = run(copy, *options)
        assert (ran.code, ran.err.splitlines()[-1]) == (0, "0 cells made, 4 kept, 0 failed")
        assert "small_cnn-etf-standard" in ran.out
        assert times(copy / "out", "*.*") == before

    def test_what_a_kill_behind_the_record_left_is_removed(self, copy):
        first, second, *_ = tiny(copy).cells
        cache = copy / "out" / "cache"
        for name in (f"{first.id}-best.jsonl", f"{first.id}-geometry.parquet"):
            (cache / name).write_bytes(b"")
        assert run(copy).code == 0
        assert list(cache.iterdir()) == []
        rows_path(copy / "out", second.model, second.id).unlink()
        kept = cache / f"{second.id}-geometry.parquet"
        kept.write_bytes(b"")
        assert run(copy, "--overwrite", "never").code == 0
        assert kept.exists(), "a record without rows is made again by the next run"

    def test_only_cache_computes_nothing_and_names_what_is_missing(self, copy):
        first, second, *_ = tiny(copy).cells
        record_path(copy / "out", first.model, first.id).unlink()
        rows_path(copy / "out", second.model, second.id).write_text("not what was written")
        before = times(copy / "out", "*.*")
        ran = run(copy, "--overwrite", "only-cache")
        assert ran.code == 1
        missing = [line for line in ran.err.splitlines() if line.startswith("missing: ")]
        assert missing == [
            f"missing: {c.model} seed 0, cell {i} ({c.id})" for i, c in enumerate((first, second))
        ]
        assert times(copy / "out", "*.*") == before

    def test_only_cache_leaves_no_folder_where_there_was_none(self, tmp_path):
        write_suite(tmp_path)
        ran = run(tmp_path, "--overwrite", "only-cache")
        assert ran.code == 1
        assert ran.err.count("missing: ") == 4
        assert not (tmp_path / "out").exists()


class Mended(NamedTuple):
    """A run that lost a worker and was damaged after it, and the run that mended it."""

    folder: Path
    report: SuiteReport
    refused: str
    retried: list[tuple[str, str]]
    first_epoch: list[dict[str, Any]]
    logs: dict[Path, list[dict[str, Any]]]
    ran: Ran


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> Mended:
    """Of the four cells one is killed and lost, one truncated, and two are half trained."""
    folder = tmp_path_factory.mktemp("mended")
    suite, out = tiny(folder), folder / "out"
    refused: list[str] = []
    retried: list[tuple[str, str]] = []

    def meanwhile(event: object) -> None:
        if not refused:
            with pytest.raises(StorageError) as raised:
                run_suite(suite, out, OPTIONS, hooks=QUIET)
            refused.append(str(raised.value))
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid or 0, signal.SIGKILL)

    hooks = QUIET._replace(
        on_event=meanwhile, on_retry=lambda cell, why: retried.append((cell, why))
    )
    report = run_suite(suite, out, OPTIONS, hooks=hooks)
    record_path(out, suite.cells[0].model, suite.cells[0].id).unlink()
    truncated = record_path(out, suite.cells[1].model, suite.cells[1].id)
    truncated.write_text(truncated.read_text()[:500])
    truncated.with_name(f".{truncated.name}.x.part").write_text("half of a rec")
    config = suite.cells[2].config
    checkpoints = checkpoint_folder(out, training_id(config))
    shutil.rmtree(checkpoints)
    rows_path(out, suite.cells[2].model, suite.cells[2].id).unlink()
    record_path(out, suite.cells[3].model, suite.cells[3].id).unlink()

    def stop(event: TrainEvent) -> None:
        if event.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_cell(config, folder=checkpoints, report=stop, save_seconds=0.0)
    first_epoch = read_log(checkpoints / "log.jsonl")
    logs = {path: read_log(path) for path in out.rglob("log.jsonl")}
    return Mended(folder, report, refused[0], retried, first_epoch, logs, run(folder))


class TestResume:
    def test_a_second_run_into_the_folder_is_refused(self, mended):
        assert mended.refused.startswith("another run is writing to ")

    def test_a_killed_worker_costs_one_sentence(self, mended):
        assert len(mended.report.made) == 4
        assert mended.report.failed == {}
        ((cell, message),) = mended.retried
        assert cell == tiny(mended.folder).cells[0].id
        assert message.startswith("its worker process was ended by signal 9")
        assert "\n" not in message

    def test_what_was_trained_is_not_trained_again(self, mended):
        """Seconds in the log tell one training from another."""
        config = tiny(mended.folder).cells[0].config
        log = checkpoint_folder(mended.folder / "out", training_id(config)) / "log.jsonl"
        assert read_log(log) == mended.logs[log]
        assert len(mended.logs[log]) == 2

    def test_a_half_trained_cell_goes_on_from_its_checkpoint(self, mended):
        config = tiny(mended.folder).cells[2].config
        log = read_log(checkpoint_folder(mended.folder / "out", training_id(config)) / "log.jsonl")
        assert [row["epoch"] for row in log] == [1, 2]
        assert len(mended.first_epoch) == 1
        assert log[0] == mended.first_epoch[0]

    def test_the_end_is_that_of_an_undisturbed_run(self, mended, finished):
        assert mended.ran.code == 0
        assert mended.ran.err.splitlines()[-1] == "4 cells made, 0 kept, 0 failed"
        found, wanted = records(mended.folder / "out"), records(finished.out)
        assert found.keys() == wanted.keys()
        for cell in wanted:
            assert found[cell].scores == wanted[cell].scores
        same = [cell.id for cell in tiny(mended.folder).cells[:2]]  # trained by workers alone
        assert_same({c: found[c] for c in same}, {c: wanted[c] for c in same})
        assert not list(mended.folder.rglob("*.part"))


class Interrupted(NamedTuple):
    """How a driver that was sent a signal ended, and what it left."""

    process: "subprocess.Popen[str]"
    err: str
    records: dict[str, Record]
    times: dict[str, int]


def interrupt(folder: Path, number: int, when: Callable[[], bool], *options: object) -> Interrupted:
    """Start a run, send its driver (and nobody else) a signal, and wait until it is gone."""
    out = folder / "out"
    process = start("run", folder / "tiny.toml", "--out", out, *options)
    try:
        wait_for(lambda: process.poll() is not None or when())
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        wait_for(lambda: group_is_gone(process.pid), 10)
    finally:
        process.kill()
    return Interrupted(process, err, records(out), record_times(out))


@pytest.fixture(scope="module")
def story(
    finished: Finished, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Interrupted]]:
    """A finished run that is started over and then ended by Ctrl-C, SIGTERM and SIGKILL in turn."""
    folder = tmp_path_factory.mktemp("story")
    shutil.copytree(finished.folder, folder, dirs_exist_ok=True)
    out, began = folder / "out", time.time()

    def anew() -> bool:
        """Two of four cells are still to be done, and one at least has been begun again."""
        fresh = [path for path in out.rglob("last.json") if path.stat().st_mtime >= began]
        return bool(fresh) and len(record_times(out)) <= 2

    def made(count: int) -> Callable[[], bool]:
        return lambda: len(record_times(out)) >= count

    return folder, [
        interrupt(folder, signal.SIGINT, anew, *ALONE, "--overwrite", "always"),
        interrupt(folder, signal.SIGTERM, made(1), *ALONE),
        interrupt(folder, signal.SIGKILL, made(2), *ALONE),
    ]


class TestSignals:
    def test_an_interrupt_says_what_to_type(self, story):
        folder, ended = story
        process, err, *_ = ended[0]
        assert process.returncode == 130
        go_on = f"robust-nc run {folder / 'tiny.toml'} --out {folder / 'out'} --workers 1"
        assert err.splitlines()[-1] == (
            f"interrupted; nothing finished is lost. Go on with: {go_on}"
        )
        assert "Traceback" not in err

    def test_sigterm_says_how_far_it_came_and_what_to_type(self, story):
        folder, ended = story
        process, err, found, _ = ended[1]
        assert process.returncode == 143
        told = re.fullmatch(
            r"stopped as asked with (\d) of 4 cells done, (\d) under way \(each goes on from its "
            r"last save\) and (\d) not begun; go on with: (.*)",
            err.splitlines()[-1],
        )
        assert told
        done, under_way, left = map(int, told.groups()[:3])
        assert (done, done + under_way + left) == (len(found), 4)
        assert under_way <= 1
        go_on = f"robust-nc run {folder / 'tiny.toml'} --out {folder / 'out'} --workers 1"
        assert told[4] == go_on
        assert "Traceback" not in err

    def test_always_starts_over(self, story, finished):
        _, ended = story
        assert len(ended[0].records) <= 3  # all four were there
        assert not ended[2].times.items() & record_times(finished.out).items()

    def test_a_kill_ends_the_driver_at_once(self, story):
        assert story[1][2].process.returncode == -signal.SIGKILL

    def test_what_was_finished_stays_untouched(self, story):
        for earlier, later in itertools.pairwise(story[1]):
            assert earlier.times.items() <= later.times.items()

    def test_the_run_goes_on_to_the_same_end(self, story, finished):
        folder, (*_, killed) = story
        ran = run(folder)
        assert ran.code == 0
        kept = len(killed.records)
        assert kept >= 2
        assert ran.err.splitlines()[-1] == f"{4 - kept} cells made, {kept} kept, 0 failed"
        assert killed.times.items() <= record_times(folder / "out").items()
        assert_same(records(folder / "out"), records(finished.out))
        assert not list(folder.rglob("*.part"))


def test_without_ray_the_engine_says_how_to_get_it(tmp_path, monkeypatch):
    for part in ("cell_tasks", "inbox", "run", "executor"):
        monkeypatch.delitem(sys.modules, f"robust_nc.engines.ray.{part}", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    ran = cli("run", write_suite(tmp_path, ""), "--out", tmp_path / "out", "--engine", "ray")
    assert ran.code == 2
    assert "needs Ray, which is not installed; pip install 'robust_nc[ray]'" in ran.err
    assert ran.err.count("\n") == 2  # the suite, and the sentence


EIGHT = """
[grid]
"train.objective" = ["standard", { name = "pgd", steps = 2 }]
"threat.eps" = ["8/255", 0.5]
seed = [0, 1]
"""


@pytest.mark.parametrize(
    ("numbers", "where", "chosen"),
    [
        ((), (), list(range(8))),
        ((6, 1, 6), (), [1, 6]),
        ((), ("train.objective=pgd",), [4, 5, 6, 7]),
        ((), ("objective = pgd", "seed=1"), [5, 7]),
        ((), ("train.objective={name='pgd', steps=2}",), [4, 5, 6, 7]),
        ((), ("train.objective.steps=2", "eps=8/255"), [4, 5]),
        ((), ('train.objective="standard"',), []),
        ((0, 5), ("seed=1",), [5]),
        (
            (),
            ("threat.norm=Linf", "train.compile=false", "augment=[]", "eps=0.5"),
            [2, 3, 6, 7],
        ),
    ],
)
def test_cells_are_chosen_by_number_and_by_what_they_are(tmp_path, numbers, where, chosen):
    suite = tiny(tmp_path, EIGHT)
    if not chosen:
        with pytest.raises(ConfigError, match=r"train\.objective is pgd, standard"):
            select_cells(suite, numbers, where)
        return
    found = select_cells(suite, numbers, where)
    assert [suite.cells.index(cell) for cell in found.cells] == chosen
    assert found.name == suite.name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cells", 8], "tiny has cells 0 to 7, found number 8"),
        (["--cells", -1], "tiny has cells 0 to 7, found number -1"),
        (["--where", "train.objectiv=pgd"], "has the key 'train.objectiv' (did you mean train.obj"),
        (["--where", "steps=2"], "may be measure.steps or train.objective.steps; write the whole"),
        (["--where", "seed"], "--where takes KEY=VALUE, such as train.objective=pgd, found 'seed'"),
        (["--where", "seed=5"], "no cell of tiny has seed=5; seed is 0, 1"),
        (["--where", "train.compile=1"], "no cell of tiny has train.compile=1"),
        (["--cells", 0, 2, "--where", "seed=1"], "no cell of tiny among numbers 0 2 has seed=1"),
        (["--minutes", 0], "--minutes must be a number above 0, found 0"),
        (["--minutes", "nan"], "--minutes must be a number above 0, found nan"),
    ],
)
@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_what_cannot_be_chosen_is_one_sentence(tmp_path, options, said, plan):
    path = write_suite(tmp_path, EIGHT)
    ran = cli("run", path, "--out", tmp_path / "out", *options, *plan)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert not (tmp_path / "out").exists()


def test_claims_need_all_cells():
    ran = cli("run", "claims", "--where", "seed=0")
    assert (ran.code, ran.out) == (2, "")
    assert "claims need all of theirs" in ran.err


def test_chosen_cells_alone_are_made_and_the_others_left(tmp_path):
    suite, out = tiny(tmp_path), tmp_path / "out"
    one = run(tmp_path, "--cells", 3)
    assert one.code == 0
    assert "tiny: 1 of 4 cells into" in one.err
    assert f"[1/1] {suite.cells[3].model} seed 0, cell 3: clean" in one.err
    assert set(records(out)) == {suite.cells[3].id}
    assert suite.cells[3].model in one.out
    two = run(tmp_path, "--where", "model.head=etf")
    assert two.err.splitlines()[-1] == "1 cells made, 1 kept, 0 failed"
    assert set(records(out)) == {cell.id for cell in suite.cells[2:]}
    left = run(tmp_path, "--overwrite", "only-cache", "--cells", 1, 2)
    assert left.code == 1
    assert left.err.splitlines()[-1] == (
        f"missing: {suite.cells[1].model} seed 0, cell 1 ({suite.cells[1].id})"
    )


def test_minutes_end_a_run_as_a_wish_to_stop_and_the_next_goes_on(tmp_path):
    suite, out = tiny(tmp_path), tmp_path / "out"
    cut = run(tmp_path, "--cells", 1, "--minutes", 0.02)
    assert cut.code == 143
    assert "Traceback" not in cut.err
    assert cut.err.splitlines()[-1] == (
        "stopped as asked with 0 of 1 cells done, 1 under way (each goes on from its last save) "
        f"and 0 not begun; go on with: robust-nc run {tmp_path / 'tiny.toml'} --out {out} "
        "--workers 1 --cells 1 --minutes 0.02"
    )
    ended = run(tmp_path, "--cells", 1, "--minutes", 30)
    assert ended.code == 0
    assert set(records(out)) == {suite.cells[1].id}

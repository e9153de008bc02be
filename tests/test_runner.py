"""The runner: killed at any moment it goes on, what is finished is kept, chosen cells alone run."""

import importlib
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
from typing import NamedTuple

import pytest
from helpers_faults import assert_same, assert_tidy, left_by, one_process, workers_of
from helpers_runner import (
    Ran,
    cli,
    group_is_gone,
    record_times,
    records,
    signalled,
    start,
    times,
    tiny,
    wait_for,
    write_suite,
)

from robust_nc.config import cell_id, training_id
from robust_nc.exceptions import ConfigError
from robust_nc.pipeline.selection import select_cells
from robust_nc.record.folder import record_path, rows_path


class Finished(NamedTuple):
    """A run that nobody disturbed."""

    folder: Path
    out: Path
    ran: Ran


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    write_suite(folder)
    return Finished(folder, folder / "out", run(folder))


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage (times of files are kept)."""
    return shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)


def asked(folder: Path, *options: object) -> tuple[object, ...]:
    return "run", folder / "tiny.toml", "--out", folder / "out", "--workers", 1, *options


def run(folder: Path, *options: object) -> Ran:
    return cli(*asked(folder, *options))


class TestAFinishedRun:
    def test_cells_are_named_by_their_configuration_and_share_weights_by_their_training(
        self, finished
    ):
        cells, found = tiny(finished.folder).cells, records(finished.out)
        assert set(found) == {cell.id for cell in cells} == {cell_id(c.config) for c in cells}
        for cell in cells:
            assert record_path(finished.out, cell.model, cell.id).is_file()
            assert rows_path(finished.out, cell.model, cell.id).is_file()
        folders = {training_id(cell.config) for cell in cells}
        assert len(folders) == 2
        assert {path.name for path in (finished.out / "checkpoints").iterdir()} == folders
        assert len({record.weights.best.sha256 for record in found.values()}) == 2
        assert {record.data.examples for record in found.values()} == {40, 30}

    def test_results_go_to_stdout_and_progress_to_stderr(self, finished):
        code, out, err = finished.ran
        assert code == 0
        assert "small_cnn-etf-standard" in out
        assert "seed 0: clean" not in out
        assert "[4/4] small_cnn-" in err
        assert err.endswith("4 cells made, 0 kept, 0 failed\n")
        assert_tidy(finished.out)


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


class Ended(NamedTuple):
    """How a run that was disturbed ended, and when what it left was written."""

    ran: Ran
    times: dict[str, int]


def killed(folder: Path) -> Ran:
    """Kill the worker of a run at its third cell, and its driver at its fourth."""
    driver = start(*asked(folder), stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(record_times(folder / "out")) >= 2 and bool(workers_of(driver.pid)))
        (worker,) = workers_of(driver.pid)
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: workers_of(driver.pid) not in ([], [worker]))
        wait_for(lambda: len(record_times(folder / "out")) >= 3)
        driver.kill()
        _, err = driver.communicate(timeout=60)
        wait_for(lambda: group_is_gone(driver.pid), 20)
    finally:
        driver.kill()
    return Ran(driver.returncode, "", err)


@pytest.fixture(scope="module")
def story(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Ended]]:
    """A finished run that is started over and then ended by Ctrl-C, SIGTERM and SIGKILL in turn."""
    folder = tmp_path_factory.mktemp("story")
    shutil.copytree(finished.folder, folder, dirs_exist_ok=True)
    out, began = folder / "out", time.time()

    def anew() -> bool:
        """Two of four cells are still to be done, and one at least has been begun again."""
        fresh = [path for path in out.rglob("last.json") if path.stat().st_mtime >= began]
        return bool(fresh) and len(record_times(out)) <= 2

    def terminated() -> Ran:
        before = len(record_times(out))
        return signalled(signal.SIGTERM, lambda: len(record_times(out)) > before, *asked(folder))

    disturbances: list[Callable[[], Ran]] = [
        lambda: signalled(signal.SIGINT, anew, *asked(folder, "--overwrite", "always")),
        terminated,
        lambda: killed(folder),
    ]
    ended = []
    for call in disturbances:
        ended.append(Ended(call(), record_times(out)))
        assert multiprocessing.active_children() == []
    return folder, ended


class TestSignals:
    def test_an_interrupt_says_what_to_type(self, story):
        folder, ((ran, _), *_) = story
        assert ran.code == 130
        go_on = f"robust-nc run {folder / 'tiny.toml'} --out {folder / 'out'} --workers 1"
        assert ran.err.splitlines()[-1] == (
            f"interrupted; nothing finished is lost. Go on with: {go_on}"
        )

    def test_sigterm_says_how_far_it_came_and_what_to_type(self, story):
        folder, (_, (ran, found), _) = story
        assert ran.code == 143
        told = re.fullmatch(
            r"stopped as asked with (\d) of 4 cells done, (\d) under way \(each goes on from its "
            r"last save\) and (\d) not begun; go on with: (.*)",
            ran.err.splitlines()[-1],
        )
        assert told
        done, under_way, left = map(int, told.groups()[:3])
        assert (done, done + under_way + left) == (len(found), 4)
        assert under_way <= 1
        go_on = f"robust-nc run {folder / 'tiny.toml'} --out {folder / 'out'} --workers 1"
        assert told[4] == go_on

    def test_a_killed_worker_costs_one_sentence(self, story):
        _, (*_, (ran, _)) = story
        assert ran.code == -signal.SIGKILL
        (told,) = [line for line in ran.err.splitlines() if "its worker process" in line]
        assert "was ended by signal 9" in told
        assert told.endswith("; it is tried again (2 of 3)")

    def test_always_starts_over_and_what_was_finished_since_stays_untouched(self, story, finished):
        _, ended = story
        assert all("Traceback" not in ran.err for ran, _ in ended)
        assert len(ended[0].times) <= 3  # all four were there
        assert not ended[2].times.items() & record_times(finished.out).items()
        for earlier, later in itertools.pairwise(ended):
            assert earlier.times.items() <= later.times.items()

    def test_the_run_goes_on_to_the_same_end(self, story, finished):
        folder, (*_, (_, before)) = story
        ran = run(folder, "--minutes", 30)
        assert ran.code == 0
        kept = len(before)
        assert kept >= 3
        assert ran.err.splitlines()[-1] == f"{4 - kept} cells made, {kept} kept, 0 failed"
        assert before.items() <= record_times(folder / "out").items()
        assert_same(left_by(folder / "out"), left_by(finished.out))
        assert_tidy(folder / "out")


def test_minutes_end_a_run_as_a_wish_to_stop(tmp_path):
    importlib.import_module("torch._dynamo")  # as the first training of a process does, slowly
    write_suite(tmp_path, '[grid]\n"train.epochs" = [4000]\n')
    with one_process():
        cut = run(tmp_path, "--minutes", 0.02)
    assert cut.code == 143
    assert "Traceback" not in cut.err
    assert cut.err.splitlines()[-1] == (
        "stopped as asked with 0 of 1 cells done, 1 under way (each goes on from its last save) "
        f"and 0 not begun; go on with: robust-nc run {tmp_path / 'tiny.toml'} "
        f"--out {tmp_path / 'out'} --workers 1 --minutes 0.02"
    )


def test_without_ray_the_engine_says_how_to_get_it(tmp_path, monkeypatch):
    for part in ("cell_tasks", "inbox", "run"):
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
        ((), ("objective = pgd", "seed=1"), [5, 7]),
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
        (["--where", "train.objectiv=pgd"], "has the key 'train.objectiv' (did you mean train.obj"),
        (["--where", "steps=2"], "may be measure.steps or train.objective.steps; write the whole"),
        (["--where", "seed"], "--where takes KEY=VALUE, such as train.objective=pgd, found 'seed'"),
        (["--where", "seed=5"], "no cell of tiny has seed=5; seed is 0, 1"),
        (["--cells", 0, 2, "--where", "seed=1"], "no cell of tiny among numbers 0 2 has seed=1"),
        (["--minutes", "nan"], "--minutes must be a number above 0, found nan"),
        (["--workers", 0, "--plan"], "--workers must be at least 1, found 0"),
        (["--address", "auto", "--plan"], "--address is for a cluster; add --engine ray"),
        (["--engine", "ray", "--shards", 0], "shards must be at least 1, found 0"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(tmp_path, options, said):
    path = write_suite(tmp_path, EIGHT)
    ran = cli("run", path, "--out", tmp_path / "out", *options)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert not (tmp_path / "out").exists()


def test_chosen_cells_alone_are_made_and_the_others_left(tmp_path):
    suite, out = tiny(tmp_path), tmp_path / "out"
    with one_process():
        one = run(tmp_path, "--cells", 3)
    assert one.code == 0
    assert "tiny: 1 of 4 cells into" in one.err
    assert f"[1/1] {suite.cells[3].model} seed 0, cell 3: clean" in one.err
    assert set(records(out)) == {suite.cells[3].id}
    assert suite.cells[3].model in one.out
    with one_process():
        two = run(tmp_path, "--where", "model.head=etf")
    assert two.err.splitlines()[-1] == "1 cells made, 1 kept, 0 failed"
    assert set(records(out)) == {cell.id for cell in suite.cells[2:]}
    left = run(tmp_path, "--overwrite", "only-cache", "--cells", 1, 2)
    assert left.code == 1
    assert left.err.splitlines()[-1] == (
        f"missing: {suite.cells[1].model} seed 0, cell 1 ({suite.cells[1].id})"
    )

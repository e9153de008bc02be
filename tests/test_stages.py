"""A cell in stages, wherever each is done, leaves the record of a cell in one piece."""

import shutil
from pathlib import Path

import pytest
from helpers_stages import do, elsewhere, in_stages, left, one_cell, whole

from robust_nc.config import training_id
from robust_nc.evaluation.log import end_of_log
from robust_nc.exceptions import CheckpointError, StoppedError
from robust_nc.pipeline import stages
from robust_nc.pipeline.stages import (
    is_judged,
    is_trained,
    judge_stage,
    measure_stage,
    needs,
    note_seconds,
    noted_seconds,
    verdict_parts,
)
from robust_nc.pipeline.suite import Cell
from robust_nc.pipeline.verdict_parts import VerdictPart
from robust_nc.record import read_record
from robust_nc.record.folder import caches, checkpoint_folder, part_log, part_logs, record_path
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import no_report
from robust_nc.training.loop import Trainer

BLOCKS = '"evaluation.block" = [8]\n"evaluation.protocol" = ["pgd"]\n'


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    """A cell whose 20 images are judged in blocks of 8, by two attacks."""
    return one_cell(tmp_path_factory.mktemp("suite"), BLOCKS)


@pytest.fixture(scope="module")
def done(cell: Cell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That cell, done in one piece."""
    out = tmp_path_factory.mktemp("whole")
    whole(cell, out)
    return out


@pytest.fixture(scope="module")
def begun(cell: Cell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That cell with all stages behind it but the record."""
    out = tmp_path_factory.mktemp("begun")
    do(cell, "train", out)
    for part in verdict_parts(cell, out, None):
        do(cell, "judge", out, part)
    do(cell, "measure", out)
    return out


def copied(out: Path, to: Path) -> Path:
    shutil.copytree(out, to)
    return to


@pytest.mark.parametrize("backwards", [False, True])
def test_stages_in_folders_of_their_own_leave_the_same_record(
    backwards: bool, cell: Cell, done: Path, tmp_path: Path
) -> None:
    parts = in_stages(cell, tmp_path, backwards=backwards)
    assert [part[1:] for part in parts if part.which == "best"] == [(0, 8), (8, 16), (16, 20)]
    assert left(cell, tmp_path) == left(cell, done)
    broken = left(cell, done)["verdict"]["broken_by"]
    assert {-1, 0} <= set(broken), "some stand, and some were broken"


def test_nothing_is_left_of_the_caches(cell: Cell, done: Path) -> None:
    assert caches(done, cell.id) == ()
    assert not list((done / "cache").iterdir())


def test_seconds_are_the_sums_of_the_stages(cell: Cell, begun: Path, tmp_path: Path) -> None:
    out = copied(begun, tmp_path / "out")
    logs = [path for which in ("best", "last") for path in part_logs(out, cell.id, which).values()]
    ends = [end_of_log(path) for path in logs]
    parts = sum(end["seconds"] for end in ends if end is not None)
    (out / "cache" / f"{cell.id}-train.json").write_text('{"seconds": 1234.5}')
    geometry = stages.geometry_of(cell, out)
    assert geometry is not None
    result = whole(cell, out)
    seconds = read_record(record_path(out, cell.model, cell.id)).record.seconds
    assert list(seconds) == ["train", "attack", "evidence", "measure"]
    assert seconds["train"] == 1234.5
    assert seconds["attack"] > parts > 0
    assert seconds["measure"] > geometry.seconds > 0
    assert result.seconds == sum(seconds.values())


def test_the_seconds_of_a_training_are_those_of_all_its_sessions(
    cell: Cell, tmp_path: Path
) -> None:
    noted = tmp_path / "cache" / f"{cell.id}-train.json"
    stopping.wish()
    try:
        with pytest.raises(StoppedError):
            do(cell, "train", tmp_path)
    finally:
        stopping.clear()
    assert (noted_seconds(noted) or 0) > 0
    note_seconds(noted, 100)
    do(cell, "train", tmp_path)
    assert (noted_seconds(noted) or 0) > 100


def test_the_seconds_of_a_training_are_no_less_than_those_of_its_steps(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that was killed has noted nothing; the rows of its epochs are saved."""
    train_cell = stages.train_cell
    monkeypatch.setattr(
        stages, "train_cell", lambda *given, **more: train_cell(*given, **more)._replace(seconds=99)
    )
    do(cell, "train", tmp_path)
    assert noted_seconds(tmp_path / "cache" / f"{cell.id}-train.json") == 99


@pytest.mark.parametrize("kept", range(5))
def test_killed_between_stages_it_goes_on_and_redoes_nothing(
    kept: int, cell: Cell, begun: Path, done: Path, tmp_path: Path, monkeypatch
) -> None:
    """With the first so many of: training, the first part, all parts, the geometry."""
    out, cache = copied(begun, tmp_path / "out"), tmp_path / "out" / "cache"
    logs = [path for path in caches(out, cell.id) if path.suffix == ".jsonl"]
    assert len(logs) == 6, "three parts, of the best and the last weights"
    gone = {0: logs, 1: logs, 2: logs[1:]}.get(kept, [])
    if kept < 4:
        gone = [*gone, cache / f"{cell.id}-geometry.parquet"]
    for path in gone:
        path.unlink()
    if kept == 0:
        shutil.rmtree(checkpoint_folder(out, training_id(cell.config)))
    calls = dict.fromkeys(("_step", "evaluate_part", "profile_cell"), 0)
    for owner, name in ((Trainer, "_step"), (stages, "evaluate_part"), (stages, "profile_cell")):
        call = getattr(owner, name)

        def counting(*given, name=name, call=call, **options):
            calls[name] += 1
            return call(*given, **options)

        monkeypatch.setattr(owner, name, counting)
    whole(cell, out)
    assert bool(calls["_step"]) == (kept == 0)
    assert calls["evaluate_part"] == {0: 6, 1: 6, 2: 5}.get(kept, 0)
    assert calls["profile_cell"] == (kept < 4)
    assert left(cell, out) == left(cell, done)


def test_a_stage_that_is_done_is_not_done_again(cell: Cell, begun: Path, monkeypatch) -> None:
    def fail(*given, **options):
        raise AssertionError

    monkeypatch.setattr(stages, "train_cell", fail)
    part = VerdictPart("best", 0, 8)
    assert is_trained(cell, begun)
    assert is_judged(cell, part, begun)
    assert verdict_parts(cell, begun, None) == []
    before = part_log(begun, cell.id, *part).read_bytes()
    do(cell, "train", begun)
    do(cell, "judge", begun, part)
    do(cell, "measure", begun)
    assert part_log(begun, cell.id, *part).read_bytes() == before


def test_a_part_that_is_half_done_goes_on(
    cell: Cell, begun: Path, done: Path, tmp_path: Path, monkeypatch
) -> None:
    out = copied(begun, tmp_path / "out")
    path = part_log(out, cell.id, "best", 8, 16)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) > 3
    half = len(lines) // 2
    path.write_bytes(b"".join(lines[:half]))
    assert verdict_parts(cell, out, None) == [VerdictPart("best", 8, 16)]
    elsewhere(cell, "judge", out, VerdictPart("best", 8, 16))
    again = path.read_bytes().splitlines(keepends=True)
    assert again[:half] == lines[:half], "what was there is kept"
    assert len(again) <= len(lines), "and not done again"
    elsewhere(cell, "record", out)
    assert left(cell, out)["verdict"] == left(cell, done)["verdict"]


@pytest.mark.parametrize("closed", [False, True])
def test_the_log_of_other_weights_is_discarded(
    closed: bool, cell: Cell, begun: Path, done: Path, tmp_path: Path
) -> None:
    out = copied(begun, tmp_path / "out")
    path = part_log(out, cell.id, "best", 0, 8)
    lines = path.read_bytes().splitlines(keepends=True)
    other = part_log(out, cell.id, "best", 8, 16).read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(other[:-1] + (lines[-1:] if closed else [])))
    if not closed:
        elsewhere(cell, "judge", out, VerdictPart("best", 0, 8))
        assert path.read_bytes().splitlines()[:-1] == [line[:-1] for line in lines[:-1]]
    elsewhere(cell, "record", out)
    assert left(cell, out) == left(cell, done)


def test_what_was_left_of_other_weights_is_not_taken(cell: Cell, begun: Path, monkeypatch) -> None:
    assert is_judged(cell, VerdictPart("best", 0, 8), begun)
    monkeypatch.setattr(stages, "_weights", lambda cell, which, out: "0" * 64)
    assert not is_judged(cell, VerdictPart("best", 0, 8), begun)
    assert stages.geometry_of(cell, begun) is None


@pytest.mark.parametrize("content", [b"{", None], ids=["damaged", "gone"])
def test_the_training_puts_back_what_says_which_weights_are_best(
    content: bytes | None, cell: Cell, begun: Path, tmp_path: Path
) -> None:
    out = copied(begun, tmp_path / "out")
    best = checkpoint_folder(out, training_id(cell.config)) / "best.json"
    noted, whole_one = out / "cache" / f"{cell.id}-train.json", best.read_bytes()
    seconds = noted.read_bytes()
    best.unlink() if content is None else best.write_bytes(content)
    assert not is_trained(cell, out)
    elsewhere(cell, "train", out)
    assert best.read_bytes() == whole_one
    assert noted.read_bytes() == seconds
    assert verdict_parts(cell, out, None) == []


def test_untrained_cells_are_neither_judged_nor_measured(cell: Cell, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not finished"):
        judge_stage(cell, VerdictPart("best", 0, 8), tmp_path, None, report=no_report)
    with pytest.raises(CheckpointError, match="not finished"):
        measure_stage(cell, tmp_path, None, report=no_report)
    with pytest.raises(CheckpointError, match="not finished"):
        verdict_parts(cell, tmp_path, None)
    assert not list(tmp_path.rglob("*.*"))


def test_a_stage_needs_its_checkpoints_and_what_it_goes_on_from(
    cell: Cell, begun: Path, tmp_path: Path
) -> None:
    folder, part = checkpoint_folder(begun, training_id(cell.config)), VerdictPart("last", 8, 16)
    cache = begun / "cache"
    assert needs(cell, "train", begun) == (folder, cache / f"{cell.id}-train.json")
    assert needs(cell, "judge", begun, part=part) == (folder, cache / f"{cell.id}-last-8-16.jsonl")
    assert needs(cell, "measure", begun) == (folder, cache / f"{cell.id}-geometry.parquet")
    assert set(needs(cell, "record", begun)) == {folder, *cache.iterdir()}
    assert needs(cell, "record", tmp_path) == ()

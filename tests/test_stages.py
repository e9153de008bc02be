"""A cell in stages, wherever each is done, leaves the record of a cell in one piece.

Verdicts are cut in parts: how, that the cut does not tell, and what cannot be cut.
"""

import contextlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_faults import assert_same, left_by
from helpers_runner import tiny

from robust_nc.config import RunConfig, read, training_id
from robust_nc.evaluation.log import close_log, end_of_log, open_log
from robust_nc.evaluation.state import Entry
from robust_nc.exceptions import StoppedError
from robust_nc.pipeline import stages
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.stages import (
    CellResult,
    Stage,
    is_trained,
    judge_stage,
    measure_stage,
    needs,
    train_stage,
    verdict_parts,
)
from robust_nc.pipeline.suite import Cell
from robust_nc.pipeline.verdict_parts import VerdictPart, join_logs, parts_of, spans
from robust_nc.record import read_record
from robust_nc.record.folder import (
    caches,
    checkpoint_folder,
    part_log,
    part_logs,
    record_path,
)
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import no_report
from robust_nc.training.loop import Trainer

# After twenty epochs an attack breaks some images, and with this seed the best is not the last.
BASE = """
[grid]
"threat.eps" = [0.06]
"train.epochs" = [20]
"evaluation.examples" = [20]
"evaluation.sweep" = [[]]
seed = [2]
"""


def one_cell(folder: Path, grid: str = "") -> Cell:
    """Return the only cell of the tiny suite with these lines in its grid."""
    (cell,) = tiny(folder, BASE + grid).cells
    return cell


def whole(cell: Cell, out: Path) -> CellResult:
    return run_cell(cell, "tiny", out, None, report=no_report)


def do(cell: Cell, stage: Stage, out: Path, part: VerdictPart | None = None) -> None:
    """Do a stage in `out` itself."""
    if stage == "train":
        train_stage(cell, out, None, report=no_report)
    elif stage == "judge":
        assert part is not None
        judge_stage(cell, part, out, None, report=no_report)
    elif stage == "measure":
        measure_stage(cell, out, None, report=no_report)
    else:
        whole(cell, out)


def elsewhere(cell: Cell, stage: Stage, out: Path, part: VerdictPart | None = None) -> None:
    """Do a stage in a fresh folder that holds only what it needs, and bring home what is left."""
    with tempfile.TemporaryDirectory() as name:
        there, given = Path(name), needs(cell, stage, out, part=part)
        for path in given:
            target = there / path.relative_to(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target)
        do(cell, stage, there, part)
        for path in given:
            if not (there / path.relative_to(out)).exists():
                path.unlink()
        shutil.copytree(there, out, dirs_exist_ok=True)


def in_stages(cell: Cell, out: Path, *, width: int = 1) -> list[VerdictPart]:
    """Do all stages, each elsewhere, parts in the opposite order; return the parts."""
    elsewhere(cell, "train", out)
    parts = verdict_parts(cell, out, None, width=width)
    for part in parts[::-1]:
        elsewhere(cell, "judge", out, part)
    elsewhere(cell, "measure", out)
    elsewhere(cell, "record", out)
    return parts


def record_in(out: Path) -> dict[str, Any]:
    (record,) = left_by(out).records.values()
    return record


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


@contextlib.contextmanager
def stopped() -> Iterator[None]:
    """A block that ends by a wish to stop."""
    try:
        with pytest.raises(StoppedError):
            yield
    finally:
        stopping.clear()


def copied(out: Path, to: Path) -> Path:
    shutil.copytree(out, to)
    return to


def test_stages_in_folders_of_their_own_leave_the_same_record(
    cell: Cell, done: Path, tmp_path: Path
) -> None:
    parts = in_stages(cell, tmp_path)
    assert [part[1:] for part in parts if part.which == "best"] == [(0, 8), (8, 16), (16, 20)]
    assert_same(left_by(tmp_path), left_by(done))
    broken = record_in(done)["verdict"]["broken_by"]
    assert {-1, 0} <= set(broken), "some stand, and some were broken"
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


@pytest.mark.parametrize("kept", [0, 2, 3])
def test_killed_between_stages_it_goes_on_and_redoes_nothing(
    kept: int, cell: Cell, begun: Path, done: Path, tmp_path: Path, monkeypatch
) -> None:
    """With the first so many of: training, the first part, all parts."""
    out, cache = copied(begun, tmp_path / "out"), tmp_path / "out" / "cache"
    logs = [path for path in caches(out, cell.id) if path.suffix == ".jsonl"]
    assert len(logs) == 6, "three parts, of the best and the last weights"
    gone = {0: logs, 2: logs[1:]}.get(kept, [])
    for path in (*gone, cache / f"{cell.id}-geometry.parquet"):
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
    assert calls["evaluate_part"] == {0: 6, 2: 5}.get(kept, 0)
    assert calls["profile_cell"] == 1
    assert_same(left_by(out), left_by(done))


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
    assert record_in(out)["verdict"] == record_in(done)["verdict"]


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
    assert_same(left_by(out), left_by(done))


def test_the_training_puts_back_what_says_which_weights_are_best(
    cell: Cell, begun: Path, tmp_path: Path
) -> None:
    out = copied(begun, tmp_path / "out")
    best = checkpoint_folder(out, training_id(cell.config)) / "best.json"
    noted, whole_one = out / "cache" / f"{cell.id}-train.json", best.read_bytes()
    seconds = noted.read_bytes()
    best.write_bytes(b"{")
    assert not is_trained(cell, out)
    elsewhere(cell, "train", out)
    assert best.read_bytes() == whole_one
    assert noted.read_bytes() == seconds
    assert verdict_parts(cell, out, None) == []


OWN = """
def factory():
    def attack(model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        return images + ball.eps * images.new_ones(()).copysign(0.5 - images)
    return attack
"""


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    """A cell with three verdicts and no blocks."""
    grid = '"evaluation.protocol" = ["pgd"]\n"evaluation.beside" = ["pgd_ce"]\n'
    return one_cell(tmp_path_factory.mktemp("suite"), grid)


@pytest.fixture(scope="module")
def uncut_done(uncut: Cell, done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That cell, of the same weights, done in one piece."""
    out = tmp_path_factory.mktemp("whole")
    copied(done / "checkpoints", out / "checkpoints")
    whole(uncut, out)
    return out


@pytest.fixture
def trained(uncut: Cell, uncut_done: Path, tmp_path: Path) -> Path:
    """That cell, trained."""
    return copied(uncut_done / "checkpoints", tmp_path / "out" / "checkpoints").parent


def places(parts: list[VerdictPart], which: str = "best") -> list[tuple[int, int]]:
    return [part[1:] for part in parts if part.which == which]


def test_the_cut_does_not_tell(uncut: Cell, uncut_done: Path, trained: Path) -> None:
    parts = in_stages(uncut, trained, width=3)
    for which in ("best", "last", "beside"):
        assert places(parts, which) == [(0, 7), (7, 14), (14, 20)]
    found, wanted = record_in(trained), record_in(uncut_done)
    for name in ("verdict", "passes", "scores", "attacks", "accelerated", "warnings", "summary"):
        assert found[name] == wanted[name], name
    assert {-2, -1, 0} <= set(wanted["verdict"]["broken_by"]), "or this proves little"


def test_parts_are_cut_around_those_that_were_begun(uncut: Cell, trained: Path) -> None:
    do(uncut, "judge", trained, VerdictPart("best", 5, 10))
    part_log(trained, uncut.id, "best", 12, 16).write_bytes(b"")
    parts = verdict_parts(uncut, trained, None, width=2)
    assert places(parts) == [(0, 5), (10, 12), (12, 16), (16, 20)]
    assert places(parts, "last") == [(0, 10), (10, 20)]


def test_what_was_begun_in_other_parts_or_in_one_piece_is_taken_over(
    uncut: Cell, uncut_done: Path, trained: Path
) -> None:
    """A part, one that overlaps it, one half done, and a whole verdict that was begun."""
    fresh = copied(trained, trained / "fresh")
    for start, stop in ((0, 9), (4, 12), (12, 20)):
        do(uncut, "judge", trained, VerdictPart("best", start, stop))
    half = part_log(trained, uncut.id, "best", 12, 20)
    half.write_bytes(b"".join(half.read_bytes().splitlines(keepends=True)[:3]))
    asked = []

    def stop(share: float, status: str) -> None:
        asked.append(status)
        if len(asked) > 2:
            stopping.wish()

    with stopped():
        run_cell(uncut, "tiny", fresh, None, report=stop)
    begun = fresh / "cache" / f"{uncut.id}-best.jsonl"
    shutil.copyfile(begun, trained / "cache" / begun.name)
    whole(uncut, trained)
    assert record_in(trained)["verdict"] == record_in(uncut_done)["verdict"]
    assert part_logs(trained, uncut.id, "best") == {}


def test_blocks_are_kept_whatever_the_width() -> None:
    config = read(RunConfig, {"evaluation": {"block": 4}})
    for width in (1, 2, 50):
        found = parts_of(config, "best", [(0, 5)], count=10, width=width)
        assert places(found) == [(0, 4), (4, 8), (8, 10)]
    assert parts_of(config, "best", [], count=4, width=3) == []


@pytest.mark.parametrize("settings", [{"protocol": "rand"}, {"attack": "own.py:factory"}])
def test_what_depends_on_the_cut_is_cut_in_blocks_only(settings, tmp_path, monkeypatch) -> None:
    """Random output, and an attack that gets batches."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    config = read(RunConfig, {"evaluation": settings | {"beside": "pgd_ce"}})
    assert parts_of(config, "best", [], count=10, width=2) == []
    assert places(parts_of(config, "beside", [], count=10, width=2), "beside") == [(0, 5), (5, 10)]
    config = read(RunConfig, {"evaluation": settings | {"block": 5}})
    assert places(parts_of(config, "best", [], count=10, width=2)) == [(0, 5), (5, 10)]


@pytest.mark.parametrize("width", [1, 2, 3, 7, 40])
def test_spans_cover_every_image_once(width: int) -> None:
    chance = random.Random(width)
    for _ in range(20):
        count = chance.randint(1, 40)
        edges = sorted(chance.sample(range(count + 1), min(4, count + 1)))
        found = list(zip(edges[::2], edges[1::2], strict=False))
        cuts = spans(found, count, block=None, width=width)
        assert [row for start, stop in cuts for row in range(start, stop)] == list(range(count))
        assert set(found) <= set(cuts)
        assert max(stop - start for start, stop in set(cuts) - set(found) or {(0, 1)}) <= (
            -(-count // width)
        )


def test_an_own_attack_is_judged_in_blocks_to_the_bit(done: Path, tmp_path: Path) -> None:
    """It gets batches and does not count its passes: they are shared within a block."""
    (tmp_path / "own.py").write_text(OWN)
    grid = f'"evaluation.attack" = ["{tmp_path / "own.py"}:factory"]\n"evaluation.block" = [9]\n'
    uncut = one_cell(tmp_path, grid)
    for place in ("whole", "stages"):
        copied(done / "checkpoints", tmp_path / place / "checkpoints")
    whole(uncut, tmp_path / "whole")
    parts = in_stages(uncut, tmp_path / "stages")
    assert places(parts) == [(0, 9), (9, 18), (18, 20)]
    assert_same(left_by(tmp_path / "stages"), left_by(tmp_path / "whole"))
    assert len(record_in(tmp_path / "stages")["attacks"]) == 2


Told = list[tuple[int, list[int], list[bool]]]


def write_log(path: Path, lines: Told) -> None:
    """Write a log of images from 0 on: turns, which images they tried, and which still stand."""
    none = torch.zeros(0)
    moved = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, 2, 2), none, torch.zeros(0, 3)
    with open_log(path, lambda: path.stem) as found:
        for turn, rows, robust in lines:
            numbers = [torch.ones(len(rows), dtype=torch.int64)] * 3
            found.put(turn, Entry(torch.tensor(rows), torch.tensor(robust), *numbers, *moved), {})


def test_of_each_image_the_furthest_part_alone_counts(tmp_path: Path) -> None:
    """What a finished part does not name was wrong as it is; what is half done changes nothing."""
    whole, half, ended = (VerdictPart("best", 0, stop) for stop in (5, 4, 3))
    logs = {half: tmp_path / "half.jsonl", ended: tmp_path / "ended.jsonl"}
    write_log(logs[half], [(0, [0, 1, 2, 3], [True] * 4)])
    write_log(logs[ended], [(0, [1, 2], [True] * 2), (1, [1, 2], [False] * 2)])
    close_log(logs[ended], {})
    names = {whole: "whole", half: "half", ended: "ended"}
    join_logs(whole, logs, names, log=tmp_path / "whole.jsonl")
    lines = open_log(tmp_path / "whole.jsonl", lambda: "whole").lines()
    found = [(line.turn, Entry(*line.tensors)) for line in lines]
    assert [(turn, each.rows.tolist(), each.robust.tolist()) for turn, each in found] == [
        (0, [1, 2], [True, True]),
        (1, [1, 2], [False, False]),
        (0, [3], [True]),
    ]

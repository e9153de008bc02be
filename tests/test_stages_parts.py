"""Verdicts in parts: how they are cut, that the cut does not tell, what cannot be cut."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_stages import do, elsewhere, in_stages, left, one_cell, whole
from torch import Tensor

from robust_nc.config import RunConfig, read
from robust_nc.evaluation.log import EvaluationLog, close_log, open_log
from robust_nc.evaluation.scoring import Guarded
from robust_nc.evaluation.state import Entry
from robust_nc.exceptions import StoppedError
from robust_nc.pipeline.stages import is_judged, judge_stage, verdict_parts
from robust_nc.pipeline.suite import Cell
from robust_nc.pipeline.verdict_parts import PartLog, VerdictPart, join, parts_of, spans
from robust_nc.record.folder import part_log, part_logs
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import no_report

OWN = """
def factory():
    def attack(model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        return images + ball.eps * images.new_ones(()).copysign(0.5 - images)
    return attack
"""


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    """A cell with three verdicts and no blocks."""
    grid = '"evaluation.protocol" = ["pgd"]\n"evaluation.beside" = ["pgd_ce"]\n'
    return one_cell(tmp_path_factory.mktemp("suite"), grid)


@pytest.fixture(scope="module")
def done(cell: Cell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That cell, done in one piece."""
    out = tmp_path_factory.mktemp("whole")
    whole(cell, out)
    return out


@pytest.fixture
def trained(cell: Cell, done: Path, tmp_path: Path) -> Path:
    """That cell, trained."""
    shutil.copytree(done / "checkpoints", tmp_path / "out" / "checkpoints")
    return tmp_path / "out"


def places(parts: list[VerdictPart], which: str = "best") -> list[tuple[int, int]]:
    return [part[1:] for part in parts if part.which == which]


def test_the_cut_does_not_tell(cell: Cell, done: Path, tmp_path: Path) -> None:
    parts = in_stages(cell, tmp_path, width=3, backwards=True)
    for which in ("best", "last", "beside"):
        assert places(parts, which) == [(0, 7), (7, 14), (14, 20)]
    found, wanted = left(cell, tmp_path), left(cell, done)
    for name in ("verdict", "passes", "scores", "attacks", "accelerated", "warnings", "summary"):
        assert found[name] == wanted[name], name


def test_one_part_is_the_whole_and_left_to_the_end(cell: Cell, trained: Path) -> None:
    assert verdict_parts(cell, trained, None) == []
    assert verdict_parts(cell, trained, None, width=1) == []
    assert len(places(verdict_parts(cell, trained, None, width=100))) == 20


def test_parts_are_cut_around_those_that_were_begun(cell: Cell, trained: Path) -> None:
    do(cell, "judge", trained, VerdictPart("best", 5, 10))
    part_log(trained, cell.id, "best", 12, 16).write_bytes(b"")
    parts = verdict_parts(cell, trained, None, width=2)
    assert places(parts) == [(0, 5), (10, 12), (12, 16), (16, 20)]
    assert places(parts, "last") == [(0, 10), (10, 20)]


def test_what_was_begun_in_other_parts_or_in_one_piece_is_taken_over(
    cell: Cell, done: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part, one that overlaps it, one half done, and a whole verdict that was begun."""
    shutil.copytree(trained, trained / "fresh")
    fresh = trained / "fresh"
    for part in (
        VerdictPart("best", 0, 9),
        VerdictPart("best", 4, 12),
        VerdictPart("best", 12, 20),
    ):
        do(cell, "judge", trained, part)
    half = part_log(trained, cell.id, "best", 12, 20)
    half.write_bytes(b"".join(half.read_bytes().splitlines(keepends=True)[:3]))
    asked = []

    def stop(share: float, status: str) -> None:
        asked.append(status)
        if len(asked) > 2:
            stopping.wish()

    from robust_nc.pipeline.cell import run_cell

    try:
        with pytest.raises(StoppedError):
            run_cell(cell, "tiny", fresh, None, report=stop)
    finally:
        stopping.clear()
    begun = fresh / "cache" / f"{cell.id}-best.jsonl"
    shutil.copyfile(begun, trained / "cache" / begun.name)
    whole(cell, trained)
    assert left(cell, trained)["verdict"] == left(cell, done)["verdict"]
    assert part_logs(trained, cell.id, "best") == {}


def test_blocks_are_kept_whatever_the_width() -> None:
    config = read(RunConfig, {"evaluation": {"block": 4}})
    for width in (1, 2, 50):
        found = parts_of(config, "best", [(0, 5)], count=10, width=width)
        assert places(found) == [(0, 4), (4, 8), (8, 10)]
    assert parts_of(config, "best", [], count=4, width=3) == []


@pytest.mark.parametrize(
    "settings",
    [{"protocol": "rand"}, {"attack": "torchattacks:PGD"}],
    ids=["random output", "an attack that gets batches"],
)
def test_what_depends_on_the_cut_is_cut_in_blocks_only(settings, monkeypatch) -> None:
    monkeypatch.setattr("robust_nc.pipeline.verdict_parts.find_attack", lambda name, options: print)
    config = read(RunConfig, {"evaluation": settings | {"beside": "pgd_ce"}})
    assert parts_of(config, "best", [], count=10, width=2) == []
    assert places(parts_of(config, "beside", [], count=10, width=2), "beside") == [(0, 5), (5, 10)]
    config = read(RunConfig, {"evaluation": settings | {"block": 5}})
    assert places(parts_of(config, "best", [], count=10, width=2)) == [(0, 5), (5, 10)]


@pytest.mark.parametrize("width", [1, 2, 3, 7, 40])
def test_spans_cover_every_image_once(width: int) -> None:
    chance = random.Random(width)
    for _ in range(50):
        count = chance.randint(1, 40)
        edges = sorted(chance.sample(range(count + 1), min(4, count + 1)))
        found = list(zip(edges[::2], edges[1::2], strict=False))
        cuts = spans(found, count, block=None, width=width)
        assert [row for start, stop in cuts for row in range(start, stop)] == list(range(count))
        assert set(found) <= set(cuts)
        assert max(stop - start for start, stop in set(cuts) - set(found) or {(0, 1)}) <= (
            -(-count // width)
        )


def test_an_own_attack_is_judged_in_blocks_to_the_bit(tmp_path: Path) -> None:
    """It gets batches and does not count its passes: they are shared within a block."""
    (tmp_path / "own.py").write_text(OWN)
    grid = f'"evaluation.attack" = ["{tmp_path / "own.py"}:factory"]\n"evaluation.block" = [9]\n'
    cell = one_cell(tmp_path, grid)
    whole(cell, tmp_path / "whole")
    parts = in_stages(cell, tmp_path / "stages")
    assert places(parts) == [(0, 9), (9, 18), (18, 20)]
    found = left(cell, tmp_path / "stages")
    assert found == left(cell, tmp_path / "whole")
    assert len(found["attacks"]) == 2


def test_a_stop_within_a_part_keeps_what_was_finished(
    cell: Cell, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, put = VerdictPart("best", 0, 20), EvaluationLog.put
    told: list[str] = []

    def first_time(self: EvaluationLog, *given: object) -> None:
        put(self, *given)
        told.append("")
        if len(told) == 1:
            stopping.wish()

    with monkeypatch.context() as patched:
        patched.setattr(EvaluationLog, "put", first_time)
        try:
            with pytest.raises(StoppedError):
                do(cell, "judge", trained, part)
        finally:
            stopping.clear()
    assert not is_judged(cell, part, trained)
    path = part_log(trained, cell.id, *part)
    kept = path.read_bytes().splitlines(keepends=True)
    assert 2 <= len(kept) <= 3
    elsewhere(cell, "judge", trained, part)
    assert is_judged(cell, part, trained)
    assert path.read_bytes().splitlines(keepends=True)[: len(kept)] == kept


def test_memory_that_runs_out_within_a_part_changes_no_verdict(
    cell: Cell, done: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, chance, failures = Guarded.forward, random.Random(3), []

    def failing(self: Guarded, images: Tensor) -> Tensor:
        if len(images) > 1 and len(failures) < 3 and chance.random() < 0.1:
            failures.append(len(images))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images)

    with monkeypatch.context() as patched:
        patched.setattr(Guarded, "forward", failing)
        for part in (VerdictPart("best", 0, 10), VerdictPart("best", 10, 20)):
            judge_stage(cell, part, trained, None, report=no_report)
    assert len(failures) == 3
    whole(cell, trained)
    assert left(cell, trained)["verdict"] == left(cell, done)["verdict"]


def test_flags_are_of_both_kinds(cell: Cell, done: Path) -> None:
    broken = np.array(left(cell, done)["verdict"]["broken_by"])
    assert {-2, -1, 0} <= set(broken.tolist()), "or the tests above prove little"


# Logs of parts, joined: of each example one source alone, the furthest one


Told = list[tuple[int, list[int], list[bool]]]


def entry(rows: list[int], *, robust: bool) -> Entry:
    """What a turn left of some examples, whose points did not move."""
    flags, none = torch.full((len(rows),), robust), torch.zeros(0)
    numbers = [torch.full((len(rows),), 1)] * 3
    moved = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, 2, 2), none, torch.zeros(0, 3)
    return Entry(torch.tensor(rows), flags, *numbers, *moved)


def log(folder: Path, name: str, start: int, stop: int, lines: Told, *, ended: bool) -> PartLog:
    """Write a log; rows count from its first image."""
    path = folder / f"{name}.jsonl"
    with open_log(path, lambda: name) as found:
        for turn, rows, robust in lines:
            found.put(turn, entry(rows, robust=robust[0]), {})
    if ended:
        close_log(path, {})
    return PartLog(path, name, start, stop)


def joined(folder: Path, count: int, *shards: PartLog) -> Told:
    join(folder / "whole.jsonl", "whole", count, shards)
    lines = open_log(folder / "whole.jsonl", lambda: "whole").lines()
    found = [(line.turn, Entry(*line.tensors)) for line in lines]
    return [(turn, each.rows.tolist(), each.robust.tolist()) for turn, each in found]


def test_what_is_half_done_takes_nothing_back(tmp_path: Path) -> None:
    """Image 2 was broken in the second turn of one part; the other has it standing after one."""
    half = log(tmp_path, "half", 1, 4, [(0, [0, 1, 2], [True])], ended=False)
    whole_part = log(
        tmp_path, "ended", 0, 3, [(0, [1, 2], [True]), (1, [1, 2], [False])], ended=True
    )
    assert joined(tmp_path, 4, half, whole_part) == [
        (0, [1, 2], [True, True]),
        (1, [1, 2], [False, False]),
        (0, [3], [True]),
    ]


def test_an_image_that_a_finished_part_does_not_name_was_wrong_as_it_is(tmp_path: Path) -> None:
    """No attack had to try it; what another part says of it would be of another machine."""
    ended = log(tmp_path, "ended", 0, 2, [(0, [0], [True])], ended=True)
    half = log(tmp_path, "half", 0, 3, [(0, [0, 1, 2], [True])], ended=False)
    assert joined(tmp_path, 3, ended, half) == [(0, [0], [True]), (0, [2], [True])]


def test_the_log_of_other_weights_is_left_out_and_removed(tmp_path: Path) -> None:
    mine = log(tmp_path, "mine", 0, 1, [(0, [0], [True])], ended=True)
    other = log(tmp_path, "other", 1, 2, [(0, [0], [False])], ended=True)
    assert joined(tmp_path, 2, mine, other._replace(name="not its name")) == [(0, [0], [True])]
    assert not other.path.exists()

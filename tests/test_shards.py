"""Logs of parts, joined: of each example one source alone, the furthest one."""

from pathlib import Path

import torch

from robust_nc.evaluation.log import close_log, open_log
from robust_nc.evaluation.state import Entry
from robust_nc.pipeline.verdict_parts import PartLog, join

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

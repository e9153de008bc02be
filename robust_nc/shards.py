"""Verdicts on parts of the examples, joined into the verdict on all of them by their logs.

Examples are cut by their place in the test split. What a log says of an example stands on its own,
so logs are joined example by example, in the order of the parts.

>>> import pathlib, tempfile, torch
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> flags, none = torch.ones(1, dtype=torch.bool), torch.zeros(0)
>>> points = none.to(torch.int64), torch.zeros(0, 1, 2, 2), none, torch.zeros(0, 3)
>>> entry = torch.tensor([0]), flags, *[torch.tensor([-1])] * 3, *points
>>> with open_log(folder / "2-3.jsonl", lambda: "part") as log:
...     log.put(0, entry, {})
>>> join(folder / "all.jsonl", "all", 3, [Shard(folder / "2-3.jsonl", "part", 2, 3)])
>>> [line.tensors[0].tolist() for line in open_log(folder / "all.jsonl", lambda: "all").lines()]
[[2]]
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from robust_nc.evaluation.log import EvaluationLog, Line, end_of_log, open_log, write_log
from robust_nc.evaluation.state import Entry
from robust_nc.exceptions import RecordError
from robust_nc.io.files import remove_file
from robust_nc.runtime.executor import cut


class Shard(NamedTuple):
    """The log of images `start` to `stop`, and the name of its evaluation."""

    path: Path
    name: str
    start: int
    stop: int


def spans(
    found: Sequence[tuple[int, int]], count: int, *, block: int | None, width: int
) -> list[tuple[int, int]]:
    """Cut `count` examples into blocks, or around the parts that are there into about `width`.

    >>> spans([], 5, block=2, width=9), spans([(2, 4)], 10, block=None, width=2)
    ([(0, 2), (2, 4), (4, 5)], [(0, 2), (2, 4), (4, 9), (9, 10)])
    """
    if block is not None:
        return [(part.start, part.stop) for part in cut(count, block=block)]
    size = cut(count, width=width)[0].stop
    taken, at = [], 0
    for start, stop in [*sorted(found), (count, count)]:
        taken += [(at + p.start, at + p.stop) for p in cut(start - at, block=size) if start > at]
        taken += [(start, stop)] if stop > start else []
        at = stop
    return taken


def apart(found: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Choose parts that do not overlap, the first ones first; those beyond `count` are none.

    >>> apart([(4, 8), (0, 5), (0, 4)], 8)
    [(4, 8), (0, 4)]
    """
    chosen: list[tuple[int, int]] = []
    for start, stop in found:
        if start < stop <= count and all(stop <= a or b <= start for a, b in chosen):
            chosen.append((start, stop))
    return chosen


def join(log: Path, name: str, count: int, shards: Sequence[Shard]) -> None:
    """Write the log of the evaluation `name` of `count` examples from those of its parts.

    Finished parts come first, then what the log has itself, then parts that are half done: of each
    example the first is taken. The log of another evaluation is left out, and removed.
    """
    whole = Shard(log, name, 0, count)
    ended = [shard for shard in shards if end_of_log(shard.path) is not None]
    rest = [shard for shard in shards if shard not in ended]
    sources = [*ended, *([whole] if log.exists() else []), *rest]
    opened = [(shard, found) for shard in sources if (found := _own(shard)) is not None]
    write_log(log, name, _lines(opened, count))


def _own(shard: Shard) -> EvaluationLog | None:
    try:
        return open_log(shard.path, lambda: shard.name)
    except RecordError:  # left by other weights: worth nothing now
        remove_file(shard.path)
        return None


def _lines(
    opened: Sequence[tuple[Shard, EvaluationLog]], count: int
) -> Iterator[tuple[Line, dict[str, str]]]:
    taken = torch.zeros(count, dtype=torch.bool)
    warnings: dict[str, str] = {}
    for shard, log in opened:
        free = ~taken
        if log.ended is not None:
            taken[shard.start : shard.stop] = True
        warnings = warnings | log.warnings
        for line in log.lines():
            entry = Entry(*line.tensors).moved_to(shard.start)
            taken[entry.rows] = True
            entry = entry.only(free[entry.rows])
            if len(entry.rows):
                yield Line(line.turn, tuple(entry)), warnings

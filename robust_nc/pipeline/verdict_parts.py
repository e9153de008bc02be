"""The verdicts on a cell: which there are, how they are cut into parts, and how one is made.

>>> from robust_nc.config import RunConfig
>>> parts_of(RunConfig(), "best", [], count=10, width=3)
[VerdictPart(which='best', start=0, stop=4), VerdictPart(which='best', start=4, stop=8), \
VerdictPart(which='best', start=8, stop=10)]
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robust_nc.config import RunConfig
from robust_nc.data.base import Split
from robust_nc.data.load import to_unit
from robust_nc.evaluation.evaluate_model import Outcome, divisible, evaluate, evaluation_name
from robust_nc.evaluation.log import EvaluationLog, Line, end_of_log, open_log, write_log
from robust_nc.evaluation.state import Entry
from robust_nc.exceptions import RecordError
from robust_nc.io.files import remove_file
from robust_nc.plugins import find_attack
from robust_nc.runtime.executor import cut_rows
from robust_nc.runtime.progress import Progress
from robust_nc.training.run import Trained
from robust_nc.types import Attack


def spans(
    found: Sequence[tuple[int, int]], count: int, *, block: int | None, width: int
) -> list[tuple[int, int]]:
    """Cut `count` examples into blocks, or around the parts that are there into about `width`.

    >>> spans([], 5, block=2, width=9), spans([(2, 4)], 10, block=None, width=2)
    ([(0, 2), (2, 4), (4, 5)], [(0, 2), (2, 4), (4, 9), (9, 10)])
    """
    if block is not None:
        return [(part.start, part.stop) for part in cut_rows(count, block=block)]
    size = cut_rows(count, width=width)[0].stop
    taken, at = [], 0
    for start, stop in [*sorted(found), (count, count)]:
        taken += [
            (at + p.start, at + p.stop) for p in cut_rows(start - at, block=size) if start > at
        ]
        taken += [(start, stop)] if stop > start else []
        at = stop
    return taken


def without_overlap(found: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Choose parts that do not overlap, the first ones first; those beyond `count` are none.

    >>> without_overlap([(4, 8), (0, 5), (0, 4)], 8)
    [(4, 8), (0, 4)]
    """
    chosen: list[tuple[int, int]] = []
    for start, stop in found:
        if start < stop <= count and all(stop <= a or b <= start for a, b in chosen):
            chosen.append((start, stop))
    return chosen


class VerdictPart(NamedTuple):
    """Test images `start` to `stop` of one verdict: `best`, `last` or `beside`."""

    which: str
    start: int
    stop: int


def parts_of(
    config: RunConfig, which: str, found: Sequence[tuple[int, int]], *, count: int, width: int
) -> list[VerdictPart]:
    """Cut a verdict on `count` images into blocks, or into about `width` parts around those found.

    There are none where one would be the whole, nor of a verdict that would depend on the cut
    (`evaluation.divisible`), unless `evaluation.block` says how to cut it.
    """
    block = config.evaluation.block
    if block is None and not divisible(*_asked(config, which), config.threat.ball()):
        return []
    cuts = spans(found, count, block=block, width=width)
    return [VerdictPart(which, *cut) for cut in cuts] if len(cuts) > 1 else []


def evaluate_part(
    config: RunConfig,
    part: VerdictPart,
    trained: Trained,
    test: Split,
    *,
    log: Path,
    checks: bool,
    report: Callable[[Progress], None],
) -> Outcome:
    """Make the verdict on a part of the test images; killed, it goes on from its log.

    The id of an example is its place in the test split, whatever part it is in.
    """
    settings = config.evaluation
    attempt = partial(
        evaluate,
        **_identity(config, part, trained, test),
        batch_size=settings.batch_size,
        tune=settings.block is None,  # by the clock, and two machines would not agree
        checks=checks,
        log=log,
        report=report,
    )
    return evaluate_on(log, attempt)


def evaluate_on(log: Path, evaluate: Callable[[], Outcome]) -> Outcome:
    """Make a verdict that goes on from its log, or begins anew where the log is of another one."""
    try:
        return evaluate()
    except RecordError:  # left by other weights or code: a log of ours, worth nothing now
        remove_file(log)
        return evaluate()


def log_name(config: RunConfig, part: VerdictPart, trained: Trained, test: Split) -> str:
    """Return what names the log of `evaluate_part`."""
    return evaluation_name(**_identity(config, part, trained, test))


def _identity(
    config: RunConfig, part: VerdictPart, trained: Trained, test: Split
) -> dict[str, Any]:
    """Return the arguments of `evaluate` that a verdict depends on."""
    protocol, attack = _asked(config, part.which)
    rows = slice(part.start, part.stop)
    return {
        "model": trained.last if part.which == "last" else trained.best,
        "images": to_unit(test.images[rows]),
        "labels": test.labels[rows],
        "ball": config.threat.ball(),
        "protocol": protocol,
        "attack": attack,
        "seed": config.seed,
        "ids": torch.arange(part.start, part.stop),
        "precision": config.evaluation.precision,
    }


def remove_others(
    config: RunConfig, logs: Mapping[VerdictPart, Path], trained: Trained, test: Split
) -> None:
    """Remove logs that were left by other weights of this cell, or for other images."""
    for part, path in logs.items():
        _open_own(path, log_name(config, part, trained, test))


def _open_own(path: Path, name: str) -> EvaluationLog | None:
    """Open the log of the evaluation `name`, or remove that of another one."""
    try:
        return open_log(path, lambda: name)
    except RecordError:
        remove_file(path)
        return None


def join_parts(
    config: RunConfig,
    whole: VerdictPart,
    logs: Mapping[VerdictPart, Path],
    trained: Trained,
    test: Split,
    *,
    log: Path,
) -> None:
    """Write the log of the whole verdict from those of its parts, as far as they belong to it."""
    names = {part: log_name(config, part, trained, test) for part in (whole, *logs)}
    join_logs(whole, logs, names, log=log)


def join_logs(
    whole: VerdictPart,
    logs: Mapping[VerdictPart, Path],
    names: Mapping[VerdictPart, str],
    *,
    log: Path,
) -> None:
    """Write the log of the evaluation `names[whole]` from those of its parts, each with its name.

    Finished parts come first, then what the log has itself, then parts that are half done: of each
    example the first is taken. The log of another evaluation is left out, and removed.
    """
    ended = [(part, path) for part, path in logs.items() if end_of_log(path) is not None]
    rest = [one for one in logs.items() if one not in ended]
    sources = [*ended, *([(whole, log)] if log.exists() else []), *rest]
    opened = [(part, _open_own(path, names[part])) for part, path in sources]
    found = [(part, own) for part, own in opened if own is not None]
    write_log(log, names[whole], _lines(found, whole.stop))


def _lines(
    opened: Sequence[tuple[VerdictPart, EvaluationLog]], count: int
) -> Iterator[tuple[Line, dict[str, str]]]:
    taken = torch.zeros(count, dtype=torch.bool)
    warnings: dict[str, str] = {}
    for part, log in opened:
        free = ~taken
        if log.ended is not None:
            taken[part.start : part.stop] = True
        warnings = warnings | log.warnings
        for line in log.lines():
            entry = Entry(*line.tensors).moved_to(part.start)
            taken[entry.rows] = True
            entry = entry.only(free[entry.rows])
            if len(entry.rows):
                yield Line(line.turn, tuple(entry)), warnings


def _asked(config: RunConfig, which: str) -> tuple[str, Attack | None]:
    """Return the protocol of a verdict, and the author's own attack that goes with it."""
    settings = config.evaluation
    if which == "beside":  # the own attack would make a weaker protocol stronger
        assert settings.beside is not None
        return settings.beside, None
    own = settings.attack
    return settings.protocol, None if own is None else find_attack(own.name, own.options)

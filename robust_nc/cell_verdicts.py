"""The verdicts on a cell: which there are, how they are cut into parts, and how one is made.

>>> from robust_nc.config import RunConfig
>>> parts_of(RunConfig(), "best", [], count=10, width=3)
[Part(which='best', start=0, stop=4), Part(which='best', start=4, stop=8), \
Part(which='best', start=8, stop=10)]
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from robust_nc.config import RunConfig
from robust_nc.data.base import Split
from robust_nc.data.load import to_unit
from robust_nc.evaluation.evaluate_model import Outcome, divisible, evaluate, evaluation_name
from robust_nc.evaluation.log import open_log
from robust_nc.exceptions import RecordError
from robust_nc.io.files import remove_file
from robust_nc.models.classifier import Classifier
from robust_nc.plugins import find_attack
from robust_nc.runtime.progress import Progress
from robust_nc.shards import Shard, join, spans
from robust_nc.training.run import Trained
from robust_nc.types import Attack


class Part(NamedTuple):
    """Test images `start` to `stop` of one verdict: `best`, `last` or `beside`."""

    which: str
    start: int
    stop: int


class Question(NamedTuple):
    """A model and the protocol it is asked by, with an attack of the author's own, or None."""

    model: Classifier
    protocol: str
    attack: Attack | None


def parts_of(
    config: RunConfig, which: str, found: Sequence[tuple[int, int]], *, count: int, width: int
) -> list[Part]:
    """Cut a verdict on `count` images into blocks, or into about `width` parts around those found.

    There are none where one would be the whole, nor of a verdict that would depend on the cut
    (`evaluation.divisible`), unless `evaluation.block` says how to cut it.
    """
    block = config.evaluation.block
    if block is None and not divisible(*_asked(config, which), config.threat.ball()):
        return []
    cuts = spans(found, count, block=block, width=width)
    return [Part(which, *cut) for cut in cuts] if len(cuts) > 1 else []


def judge(
    config: RunConfig,
    part: Part,
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
    settings, question = config.evaluation, _question(config, part.which, trained)

    def attempt() -> Outcome:
        return evaluate(
            question.model,
            *_examples(part, test),
            config.threat.ball(),
            protocol=question.protocol,
            attack=question.attack,
            seed=config.seed,
            ids=torch.arange(part.start, part.stop),
            batch_size=settings.batch_size,
            precision=settings.precision,
            tune=settings.block is None,  # by the clock, and two machines would not agree
            checks=checks,
            log=log,
            report=report,
        )

    try:
        return attempt()
    except RecordError:  # left by other weights of this cell: a log of ours, worth nothing now
        remove_file(log)
        return attempt()


def log_name(config: RunConfig, part: Part, trained: Trained, test: Split) -> str:
    """Return what names the log of `judge`."""
    question = _question(config, part.which, trained)
    return evaluation_name(
        question.model,
        *_examples(part, test),
        config.threat.ball(),
        protocol=question.protocol,
        attack=question.attack,
        seed=config.seed,
        ids=torch.arange(part.start, part.stop),
        precision=config.evaluation.precision,
    )


def remove_others(
    config: RunConfig, logs: Mapping[Part, Path], trained: Trained, test: Split
) -> None:
    """Remove logs that were left by other weights of this cell, or for other images."""
    for part, path in logs.items():
        name = log_name(config, part, trained, test)
        try:
            open_log(path, lambda name=name: name)  # type: ignore[misc]
        except RecordError:
            remove_file(path)


def join_parts(
    config: RunConfig,
    whole: Part,
    logs: Mapping[Part, Path],
    trained: Trained,
    test: Split,
    *,
    log: Path,
) -> None:
    """Write the log of the whole verdict from those of its parts, as far as they belong to it."""
    shards = [
        Shard(path, log_name(config, part, trained, test), part.start, part.stop)
        for part, path in logs.items()
    ]
    join(log, log_name(config, whole, trained, test), whole.stop, shards)


def _question(config: RunConfig, which: str, trained: Trained) -> Question:
    return Question(trained.last if which == "last" else trained.best, *_asked(config, which))


def _asked(config: RunConfig, which: str) -> tuple[str, Attack | None]:
    """Return the protocol of a verdict, and the author's own attack that goes with it."""
    settings = config.evaluation
    if which == "beside":  # the own attack would make a weaker protocol stronger
        assert settings.beside is not None
        return settings.beside, None
    own = settings.attack
    return settings.protocol, None if own is None else find_attack(own.name, own.options)


def _examples(part: Part, test: Split) -> tuple[Tensor, Tensor]:
    rows = slice(part.start, part.stop)
    return to_unit(test.images[rows]), test.labels[rows]

"""`robust-nc challenge`: lower a record by adversarial examples that hold.

>>> import torch
>>> none = torch.arange(0)
>>> _lines(Tried(none, none, none, none, none, claimed=9, examples=10))
['nothing counts: robust accuracy stays at 90.00%']
"""

import contextlib
import sys
from collections.abc import Callable
from functools import partial

from rich.console import Console

from robust_nc.cli.options import ChallengeOptions
from robust_nc.exceptions import RecordError
from robust_nc.io.digests import state_digest, state_digests
from robust_nc.io.text import printable
from robust_nc.record.schema import Record, read_record
from robust_nc.verification.challenge import Tried, read_points, try_points, write_challenge
from robust_nc.verification.consistency import found_in_flags, inconsistencies
from robust_nc.verification.originals import examples_of, model_of


def challenge_command(options: ChallengeOptions, stderr: Console) -> int:
    """Try the evidence against a record; 0 where it lowers it, 1 where nothing counts."""
    record, evidence = options.record, options.evidence
    stored = read_record(record)
    if found_in_flags(inconsistencies(stored)):
        raise RecordError(f"{record} contradicts itself; see `robust-nc verify {record}`")
    examples = examples_of(stored.record, options.root)
    points = read_points(evidence, examples.images)
    tell = partial(stderr.print, markup=False, highlight=False, soft_wrap=True)
    asked = model_of(stored.record, options.model, examples, tell, trusted=options.trusted)
    with contextlib.redirect_stdout(sys.stderr), asked as judge:  # the code of a model may print
        _check_model(stored.record, state_digest(state_digests(judge)), tell)
        tried = try_points(stored, judge, examples, points.rows, points.points)
    for line in _lines(tried):
        print(printable(line))
    if not len(tried.counted):
        return 1
    path = write_challenge(stored, tried, evidence, judge, folder=options.out)
    tell(f"wrote {path}, and its evidence beside it")
    return 0


def _check_model(record: Record, state: str, tell: Callable[[str], None]) -> None:
    """Refuse a challenge by another model than the record's."""
    if record.weights.state is None:
        tell("the record does not say which tensors were judged, so any model is taken for its own")
    elif record.weights.state != state:
        raise RecordError(
            f"this is another model than the one of the record: its tensors have the digest "
            f"{state[:16]}, those that were judged {record.weights.state[:16]}"
        )


def _lines(tried: Tried) -> list[str]:
    left_out = {
        "lie outside of the ball or the pixel bounds": tried.outside,
        "are misclassified by less than the tolerance": tried.near,
        "are classified correctly": tried.withstood,
        "were not claimed robust": tried.known,
    }
    found = [f"{len(rows):,} {why}: not counted" for why, rows in left_out.items() if len(rows)]
    if len(tried.counted):
        found.append(
            f"{len(tried.counted):,} examples count: robust accuracy falls from "
            f"{tried.before:.2%} to {tried.left:.2%}"
        )
    else:
        found.append(f"nothing counts: robust accuracy stays at {tried.before:.2%}")
    return found

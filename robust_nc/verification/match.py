"""Evidence against the record that names it, and against the images that it starts from.

What is wrong is a `Finding`: the field, file or tensor, and what was found there.

>>> print(Finding("verdict.robust", "differs from the evidence in example 3"))
verdict.robust: differs from the evidence in example 3
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robust_nc.evidence.contents import Evidence
from robust_nc.exceptions import RecordError, UnknownNameError
from robust_nc.io.digests import state_digest
from robust_nc.plugins import find_protocol
from robust_nc.record.schema import Record, Verdict, unpack_flags
from robust_nc.threat import Ball
from robust_nc.verification.originals import Examples, ball_of

MOST_NAMED = 5
_MOST_DRAWS = 1_000  # for a protocol that is not known here
_CHUNK = 1_000  # images in float64 at a time


class Finding(NamedTuple):
    """Something that is not as it should be: where, and what was found."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def header_findings(record: Record, evidence: Evidence, rows: int | None = None) -> list[Finding]:
    """Compare what evidence says of itself with what its record says: flags, ball, data, passes.

    `rows`: the evidence was cut to the first examples, whose passes the record does not tell.
    Empty where they agree.
    """
    found = _flag_findings(record, evidence, rows)
    try:
        if evidence.ball != ball_of(record.config):
            text = f"is {ball_of(record.config)} (eps {ball_of(record.config).eps!r}), but the "
            text += f"evidence is for {evidence.ball} (eps {evidence.ball.eps!r})"
            found.append(Finding("config.threat", text))
    except RecordError as error:
        found.append(Finding("config.threat", str(error)))
    if evidence.fingerprint != record.data.fingerprint:
        found.append(Finding("data.fingerprint", "is not that of the evidence: other images"))
    if evidence.seed != record.seed:  # it keys the draws of a random model
        text = f"is {evidence.seed}, but the record's is {record.seed}"
        found.append(Finding("evidence.seed", text))
    for name, spent in (("forward", evidence.forwards), ("backward", evidence.backwards)):
        told = getattr(record.passes, name)
        if rows is None and told != int(spent.sum()):
            text = f"is {told:,}, but those of the evidence add up to {int(spent.sum()):,}"
            found.append(Finding(f"passes.{name}", text))
    state = record.weights.state
    if state is not None and state_digest(evidence.weights) != state:
        found.append(Finding("weights.state", "is not that of the tensors that the evidence names"))
    drawn = draws_finding(record, evidence)
    return found + ([] if drawn is None else [drawn])


def draws_finding(record: Record, evidence: Evidence) -> Finding | None:
    """Say so where the evidence takes another number of draws than the protocol."""
    try:
        wanted = find_protocol(record.protocol).draws
    except UnknownNameError:  # of a suite with attacks of its own
        wanted = min(max(evidence.draws, 1), _MOST_DRAWS)
    if evidence.draws == wanted:
        return None
    text = f"are {evidence.draws}, but protocol {record.protocol!r} takes {wanted}"
    return Finding("evidence.draws", text)


def _flag_findings(record: Record, evidence: Evidence, rows: int | None) -> list[Finding]:
    verdict = record.verdict
    found = []
    try:
        pairs = {
            "clean_correct": unpack_flags(verdict.clean_correct),
            "robust": unpack_flags(verdict.robust),
            "broken_by": attack_codes(verdict),
        }
    except RecordError as error:
        return [Finding("verdict", str(error))]
    for name, flags in pairs.items():
        told = flags[:rows]
        proven: npt.NDArray[np.int64] = getattr(evidence, name).numpy().astype(np.int64)
        if len(told) != len(proven):
            text = f"is of {len(told)} examples, but the evidence of {len(proven)}"
            found.append(Finding(f"verdict.{name}", text))
        elif (told != proven).any():
            places = np.flatnonzero(told != proven)
            text = f"differs from the evidence in {name_rows(places.tolist())}"
            found.append(Finding(f"verdict.{name}", text))
    wanted = (evidence.clean_correct & ~evidence.robust).nonzero().flatten()
    if not torch.equal(wanted, evidence.broken):
        text = f"has adversarial examples for {len(evidence.broken)} of {len(wanted)} broken ones"
        found.append(Finding("evidence", text))
    file = record.evidence
    if file is not None and file.rows == rows and file.broken != len(wanted):
        text = f"is {file.broken}, but {len(wanted)} examples are broken"
        found.append(Finding("evidence.broken", text))
    return found


def attack_codes(verdict: Verdict) -> npt.NDArray[np.int64]:
    """Return `broken_by` (N,); what no record of ours has becomes -3."""
    codes = [code if -2 <= code < 2**31 else -3 for code in verdict.broken_by]
    return np.array(codes, dtype=np.int64)


def original_findings(evidence: Evidence, examples: Examples) -> list[Finding]:
    """Check labels, ids, and that each adversarial is in the ball and the bounds of its original.

    Empty where all is well.
    """
    if len(evidence.labels) != len(examples.labels):
        text = f"is of {len(evidence.labels)} examples, the data of {len(examples.labels)}"
        return [Finding("evidence", text)]
    found = []
    for name in ("labels", "ids"):
        different = (getattr(evidence, name) != getattr(examples, name)).nonzero().flatten()
        if len(different):
            text = f"differ from the data's in {name_rows(different.tolist())}"
            found.append(Finding(f"evidence.{name}", text))
    if evidence.adversarials.shape[1:] != examples.images.shape[1:]:
        shapes = [tuple(part.shape[1:]) for part in (evidence.adversarials, examples.images)]
        text = f"are of shape {shapes[0]}, their originals of {shapes[1]}"
        return [*found, Finding("evidence.adversarials", text)]
    origins = examples.images[evidence.broken]
    outside = (~inside(evidence.ball, evidence.adversarials, origins)).nonzero().flatten()
    if len(outside):
        names = name_rows(evidence.broken[outside].tolist())
        text = f"{len(outside)} lie outside the ball of their originals or the bounds: {names}"
        found.append(Finding("evidence.adversarials", text))
    return found


def inside(ball: Ball, points: Tensor, origins: Tensor) -> Tensor:
    """Whether each point `(B, C, H, W)` is in the ball and the bounds of its original, `(B,)`."""
    pairs = zip(torch.split(points, _CHUNK), torch.split(origins, _CHUNK), strict=True)
    return torch.cat([ball.contains(*pair) for pair in pairs] or [torch.ones(0, dtype=torch.bool)])


def name_rows(rows: list[int]) -> str:
    """Name examples by their rows.

    >>> name_rows([3]), name_rows([1, 2, 3, 4, 5, 6, 7])
    ('example 3', 'examples 1, 2, 3, 4, 5 and 2 more')
    """
    more = len(rows) - MOST_NAMED
    shown = ", ".join(map(str, rows[:MOST_NAMED])) + (f" and {more} more" if more > 0 else "")
    return f"example{'s' if len(rows) > 1 else ''} {shown}"

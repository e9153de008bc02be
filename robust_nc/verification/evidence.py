"""The evidence of a record: against its record, its original images, and its model.

What is wrong is a `Finding`: the field, file or tensor, and what was found there. With the model,
two forward passes prove an upper bound on its robust accuracy.

>>> print(Finding("verdict.robust", "differs from the evidence in example 3"))
verdict.robust: differs from the evidence in example 3
>>> nothing = EvidenceCheck()
>>> nothing.proves, nothing.upper is None
(False, True)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robust_nc.evaluation.sanity.output import output_warnings
from robust_nc.evidence.file import Evidence, read_evidence
from robust_nc.exceptions import InputError, RecordError
from robust_nc.io.digests import count_parameters, state_digest, state_digests
from robust_nc.io.files import sha256_of
from robust_nc.io.untrusted import file_name
from robust_nc.record.schema import Record, Stored, Verdict, unpack_flags
from robust_nc.runtime.torch_state import device_of, untouched
from robust_nc.threat import Ball
from robust_nc.verification.originals import RecordExamples, ball_of, protocol_draws
from robust_nc.verification.rejudge import (
    Repeated,
    bounded,
    look_again,
    repeated_clean,
    repeated_flips,
)

MOST_NAMED = 5
_MOST_DRAWS = 1_000  # for a protocol that is not known here
_CHUNK = 1_000  # images in float64 at a time
_RANDOM, _PROBES = "random-output", 8  # the warning, and images that are asked about again


class Finding(NamedTuple):
    """Something that is not as it should be: where, and what was found."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(kw_only=True, eq=False)
class EvidenceCheck:
    """What was found: all that is wrong, and all that could not be checked.

    `adversarials`, `clean` are the verdicts made again, by example (None without a model or the
    images); `same_model` whether its tensors are those that were judged (None: not known); `upper`
    the share of examples that are not proven to be broken, an upper bound on robust accuracy.
    """

    wrong: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    evidence: Evidence | None = None
    rows: int | None = None  # of evidence that was cut: the first examples, which it is about
    placed: bool = False  # labels compared, and each adversarial in the ball of its original
    same_model: bool | None = None
    adversarials: Repeated | None = None
    clean: Repeated | None = None
    upper: float | None = None

    @property
    def proves(self) -> bool:
        """Whether the upper bound is proven, and nothing at all is wrong."""
        known = self.upper is not None and self.rows is None
        return known and bool(self.same_model) and not self.wrong


def check_evidence(
    stored: Stored, *, examples: RecordExamples | None, model: nn.Module | None
) -> EvidenceCheck:
    """Check the evidence beside a record, as far as what is given allows.

    `examples` are those of the record (`originals.examples_of`), `model` maps images to logits and
    is left as it was found. Nothing is raised for what is wrong with the evidence.
    """
    found = EvidenceCheck()
    found.evidence = _evidence(stored, examples, found)
    if found.evidence is not None:
        found.wrong += header_findings(stored.record, found.evidence, found.rows)
        examples = _first(examples, found.rows)
        if examples is not None:
            misplaced = original_findings(found.evidence, examples)
            found.placed = not misplaced
            found.wrong += misplaced
    if model is not None:
        _compare_weights(stored, model, found)
        if found.evidence is not None and examples is not None:
            _look(stored, model, examples, found)
            _ask_again(stored, model, examples, found)
    return found


def find_evidence(stored: Stored) -> Path | None:
    """Return where the evidence of a record lies, or None where it has none or it is elsewhere.

    Raises `RecordError` for a name that is a path.
    """
    if stored.record.evidence is None:
        return None
    path = stored.path.parent / file_name(stored.record.evidence.name, what="evidence.name")
    return path if path.is_file() else None


def _evidence(
    stored: Stored, examples: RecordExamples | None, found: EvidenceCheck
) -> Evidence | None:
    """Read the evidence; a file that was changed is named and still looked into."""
    told = stored.record.evidence
    if told is None:
        found.unchecked.append("the record carries no evidence")
        return None
    try:
        path = find_evidence(stored)
    except RecordError as error:
        found.wrong.append(Finding("evidence.name", str(error)))
        return None
    if path is None:
        found.unchecked.append(
            f"its evidence {told.name} ({told.bytes:,} bytes, SHA-256 {told.sha256[:16]}...) is "
            "not beside it"
        )
        return None
    if (told.rows is None) != (told.full is None):
        text = "says that it was cut, and not of what, or of what, and not where"
        found.wrong.append(Finding("evidence.full", text))
    size, digest = path.stat().st_size, sha256_of(path)
    full = told.full is not None and digest == told.full
    found.rows = None if full else told.rows
    if found.rows is not None:
        found.unchecked.append(
            f"examples after the first {found.rows:,}: their evidence is in another file, with "
            f"SHA-256 {str(told.full)[:16]}..."
        )
    if not full and (size, digest) != (told.bytes, told.sha256):
        text = f"{path.name} is not the file that the record names: {size:,} bytes with SHA-256 "
        text += f"{digest[:16]}..., not {told.bytes:,} bytes with {told.sha256[:16]}..."
        found.wrong.append(Finding("evidence.sha256", text))
    try:
        examples = _first(examples, found.rows)
        return read_evidence(path, None if examples is None else examples.images)
    except (RecordError, InputError) as error:
        found.wrong.append(Finding("evidence", str(error)))
        return None


def _first(examples: RecordExamples | None, rows: int | None) -> RecordExamples | None:
    """Return the first examples (all for None); `fingerprint` stays that of all."""
    if examples is None:
        return None
    images, labels, ids = (part[:rows] for part in examples[:3])
    return examples._replace(images=images, labels=labels, ids=ids)


def _compare_weights(stored: Stored, model: nn.Module, found: EvidenceCheck) -> None:
    """Compare digests of tensors with those of the evidence, else with the record's digest."""
    told, counted = stored.record.weights.parameters, count_parameters(model)
    if told != counted:
        text = f"are {told:,}, but the model has {counted:,}"
        found.wrong.append(Finding("weights.parameters", text))
    digests, state = state_digests(model), stored.record.weights.state
    if found.evidence is not None:
        found.same_model = dict(found.evidence.weights) == digests
        if not found.same_model:
            found.wrong.append(Finding("model", _differing(found.evidence.weights, digests)))
    elif state is not None:
        found.same_model = state == state_digest(digests)
        if not found.same_model:
            text = "this is another model: its tensors do not have the digest weights.state"
            found.wrong.append(Finding("model", text))
    else:
        found.unchecked.append("the record does not say which tensors were judged")


def _differing(told: Mapping[str, str], here: Mapping[str, str]) -> str:
    names = sorted(name for name in told.keys() | here.keys() if told.get(name) != here.get(name))
    more = len(names) - MOST_NAMED
    shown = ", ".join(name[:80] for name in names[:MOST_NAMED])
    shown += f" and {more} more" if more > 0 else ""
    differ = "tensor differs" if len(names) == 1 else "tensors differ"
    return f"this is another model: {len(names)} {differ} from what was judged: {shown}"


def _look(stored: Stored, model: nn.Module, examples: RecordExamples, found: EvidenceCheck) -> None:
    """Pass every clean image and every adversarial through the model."""
    evidence = found.evidence
    assert evidence is not None
    if not found.placed or draws_finding(stored.record, evidence) is not None:
        found.unchecked.append("verdicts were not made again: the evidence does not fit the data")
        return
    labels, draws, seed = examples.labels, evidence.draws, evidence.seed
    try:
        clean = look_again(
            model, examples.images, labels, draws=draws, seed=seed, what="clean images"
        )
        attacked = look_again(
            model,
            evidence.adversarials,
            labels[evidence.broken],
            draws=draws,
            seed=seed,
            what="adversarial images",
        )
    except InputError as error:
        found.wrong.append(Finding("model", str(error)))
        return
    found.clean = repeated_clean(bounded(clean, clean), evidence.clean_correct, draws)
    found.adversarials = repeated_flips(bounded(attacked, clean), evidence.margins, draws)
    _refuted(found, "clean verdict", found.clean.refuted.nonzero().flatten())
    _refuted(found, "adversarial", evidence.broken[found.adversarials.refuted])
    wrong = ~evidence.clean_correct & found.clean.proven
    broken = int(found.adversarials.proven.sum()) + int(wrong.sum())
    found.upper = (len(labels) - broken) / max(len(labels), 1)


def _refuted(found: EvidenceCheck, what: str, rows: Tensor) -> None:
    if len(rows):
        text = f"the model refutes {len(rows)}: {name_rows(rows.tolist())}"
        found.wrong.append(Finding(f"{what}s", text))


def _ask_again(
    stored: Stored, model: nn.Module, examples: RecordExamples, found: EvidenceCheck
) -> None:
    """Name a model that answers at random, where its record was ranked as if it did not."""
    record, evidence = stored.record, found.evidence
    assert evidence is not None
    if evidence.draws > 1 or _RANDOM in {one.name for one in record.warnings}:
        return
    probes = examples.images[:_PROBES].to(device_of(model))
    try:
        with torch.inference_mode(False), torch.no_grad(), untouched(model):
            warned = output_warnings(model, probes, model(probes), seed=evidence.seed)
    except Exception as error:  # a stranger's model may raise anything
        found.unchecked.append(f"whether the model answers at random: {type(error).__name__}")
        return
    if _RANDOM in {one.name for one in warned}:
        text = f"leave out {_RANDOM}: the model gives other logits when it is asked again"
        found.wrong.append(Finding("warnings", text))


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
    wanted = protocol_draws(record.protocol) or min(max(evidence.draws, 1), _MOST_DRAWS)
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


def original_findings(evidence: Evidence, examples: RecordExamples) -> list[Finding]:
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

"""All that can be checked of one record, and the state that it earns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from robust_nc.exceptions import DataError, InputError, RecordError
from robust_nc.io.files import sha256_of
from robust_nc.pipeline.finished_model import AppraisalConfig
from robust_nc.record.schema import Record, Stored, unpack_flags
from robust_nc.record.standing import (
    CHECKED,
    CLAIMED,
    REPRODUCED,
    Receipt,
    State,
    counted_receipt,
    read_challenge,
)
from robust_nc.runtime.environment import hardware, versions
from robust_nc.runtime.torch_state import default_device
from robust_nc.verification.audit import CLAIM, POINT, Audit, Remeasured, audit, remeasure
from robust_nc.verification.challenge import judged_challenges
from robust_nc.verification.consistency import found_in_flags, inconsistencies, settings_of
from robust_nc.verification.evidence import EvidenceCheck, Finding, check_evidence
from robust_nc.verification.options import CheckOptions
from robust_nc.verification.originals import RecordExamples, examples_of, model_of
from robust_nc.zoo.code import Tell
from robust_nc.zoo.reference import runs_code

_REMEASURED = 300  # test images whose leaps are measured again, if no number is given

Show = Callable[[str, float, str], None]


@dataclass(kw_only=True, eq=False)
class RecordCheck:
    """What was found of a record. `unchecked` says what could not be looked at, and why."""

    stored: Stored
    inconsistent: list[Finding]
    evidence: EvidenceCheck = field(default_factory=EvidenceCheck)
    challenges: dict[Path, str] = field(default_factory=dict)  # "" where one holds
    audit: Audit | None = None
    geometry: Remeasured | None = None
    isolated: bool = False  # no code of strangers ran in this process
    unchecked: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """All that is not as it should be."""
        false = ((path, reason) for path, reason in self.challenges.items() if reason)
        return [*self._own, *(Finding(f"challenge {path.name}", why) for path, why in false)]

    @property
    def robust(self) -> npt.NDArray[np.bool_]:
        """Flags `(N,)` that are left by challenges that hold, and by audits that count."""
        flags, counted = unpack_flags(self.stored.record.verdict.robust), self._counted
        for path, reason in self.challenges.items():
            if not reason:
                flags[list(read_challenge(path).broken)] = False
        flags[list(counted)] = False
        return flags

    @property
    def _counted(self) -> tuple[int, ...]:
        """Rows that an earlier audit broke."""
        receipt = counted_receipt(self.stored)
        return () if receipt is None else receipt.broke

    @property
    def _own(self) -> list[Finding]:
        """What is wrong with the record; a challenge that does not hold is anyone's."""
        found = [*self.inconsistent, *self.evidence.wrong]
        if self.audit is not None and self.audit.refutes:
            text = "more than 1 % of it breaks, with 99.9 % confidence"
            found.append(Finding("verdict.robust", text))
        if self.geometry is not None:
            if not self.geometry.consistent:
                found.append(Finding(f"summary.{CLAIM}", "is not what was measured again"))
            found += [Finding("rows", text) for text in self.geometry.differing]
        return found

    @property
    def state(self) -> State:
        """How far the record is checked; none of the states says that all of it is true."""
        proven = self.evidence.same_model and self.evidence.adversarials is not None
        measured = self.geometry is not None or self.stored.record.summary.get(CLAIM) is None
        if self._own or not proven or not measured:
            return CLAIMED
        again = self.isolated and self.audit is not None and self.audit.bound <= POINT
        return REPRODUCED if again else CHECKED

    def receipt(self, signer: str) -> Receipt:
        """Put down what was found, for the record as it lies there."""
        record, repeated, audited = self.stored.record, self.evidence.adversarials, self.audit
        broke = () if audited is None else audited.broke.tolist()
        return Receipt(
            record=sha256_of(self.stored.path),
            evidence=None if record.evidence is None else record.evidence.sha256,
            state=self.state,
            signer=signer,
            proven=0 if repeated is None else int(repeated.proven.sum()),
            tolerated=0 if repeated is None else int(repeated.tolerated.sum()),
            audited=0 if audited is None else len(audited.rows),
            broke=tuple(sorted({*self._counted, *broke})),
            bound=None if audited is None else audited.bound,
            seed=None if audited is None else audited.seed,
            isolated=self.isolated,
            challenges=tuple(sha256_of(path) for path, no in self.challenges.items() if not no),
            versions=versions(),
            hardware=hardware(default_device()),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def check_record(stored: Stored, options: CheckOptions, *, tell: Tell, show: Show) -> RecordCheck:
    """Check a record with what there is: its data if they are here, its model if it is given.

    `tell` is called with what the user should know, `show` with a stage, a share and a line. Raises
    for a model that cannot be opened (`ConfigError`, `CheckpointError`, `InputError`); what is
    wrong with the record is in what is returned.
    """
    found = RecordCheck(stored=stored, inconsistent=inconsistencies(stored))
    examples = _examples(stored.record, options.root, found)
    if options.model is None or examples is None:
        if options.model is not None:
            found.unchecked.append("the model was not asked: that needs the images")
        show("verify", 0.0, "evidence")
        found.evidence = check_evidence(stored, examples=examples, model=None)
        return found
    found.isolated = not (options.trusted and runs_code(options.model))
    asked = model_of(stored.record, options.model, examples, tell, trusted=options.trusted)
    with asked as model:
        show("verify", 0.0, "evidence")
        found.evidence = check_evidence(stored, examples=examples, model=model)
        if not found_in_flags(found.inconsistent):
            show("verify", 0.5, "challenges")
            found.challenges = judged_challenges(stored, model, examples)
            if options.again:
                _audit(found, options, model, examples, show)
    return found


def _examples(record: Record, root: Path | None, found: RecordCheck) -> RecordExamples | None:
    try:
        return examples_of(record, root)
    except RecordError as error:
        found.inconsistent.append(Finding("config.data", str(error)))
    except DataError as error:
        found.unchecked.append(f"adversarials were not compared with their originals: {error}")
    return None


def _audit(
    found: RecordCheck,
    options: CheckOptions,
    model: nn.Module,
    examples: RecordExamples,
    show: Show,
) -> None:
    """Attack again, and measure the geometry again where the record is of one set of weights."""
    assert options.seed is not None
    if found.evidence.same_model is False:
        found.unchecked.append("no audit: the model is another one")
        return
    count = None if options.reproduce else options.audit
    try:
        found.audit = audit(
            found.stored,
            model,
            examples,
            robust=found.robust,
            count=count,
            seed=options.seed,
            report=lambda progress: show("audit", progress.share, str(progress)),
        )
    except RecordError as error:
        found.unchecked.append(f"no audit: {error}")
    try:
        settings = settings_of(found.stored.record)
        if isinstance(settings, AppraisalConfig):
            found.geometry = remeasure(
                found.stored,
                settings,
                model,
                examples,
                count=count or _REMEASURED,
                seed=options.seed,
                root=options.root,
                report=lambda share, text: show("geometry", share, text),
            )
    except (RecordError, DataError, InputError) as error:
        found.unchecked.append(f"geometry was not measured again: {error}")

"""All that can be checked of one record, and the badges that it earns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from torch import nn

from robust_nc.exceptions import DataError, InputError, RecordError
from robust_nc.io.files import sha256_of
from robust_nc.pipeline.finished_model import AppraisalConfig
from robust_nc.record.schema import Record, Stored
from robust_nc.record.standing import PROVEN, SCHEMA_OK, Receipt
from robust_nc.runtime.environment import hardware, versions
from robust_nc.runtime.torch_state import default_device
from robust_nc.verification.audit import CLAIM, Audit, Remeasured, audit, remeasure
from robust_nc.verification.challenge import challenge_findings
from robust_nc.verification.consistency import found_in_flags, inconsistencies, settings_of
from robust_nc.verification.evidence import EvidenceCheck, Finding, check_evidence
from robust_nc.verification.options import CheckOptions
from robust_nc.verification.originals import RecordExamples, examples_of, model_of
from robust_nc.zoo.code import Tell

Show = Callable[[str, float, str], None]


@dataclass(kw_only=True, eq=False)
class RecordCheck:
    """What was found of a record. `unchecked` says what could not be looked at, and why."""

    stored: Stored
    inconsistent: list[Finding]
    evidence: EvidenceCheck = field(default_factory=EvidenceCheck)
    challenges: list[Finding] = field(default_factory=list)
    audit: Audit | None = None
    geometry: Remeasured | None = None
    unchecked: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """All that is not as it should be."""
        return [*self._own, *self.challenges]

    @property
    def _own(self) -> list[Finding]:
        """What is wrong with the record; a challenge that does not hold is anyone's."""
        found = [*self.inconsistent, *self.evidence.wrong]
        if self.audit is not None and self.audit.refutes:
            found.append(Finding("verdict.robust", "the audit breaks more than 1 % (95 %) of it"))
        if self.geometry is not None and not self.geometry.consistent:
            found.append(Finding(f"summary.{CLAIM}", "is not what was measured again"))
        return found

    @property
    def badges(self) -> tuple[str, ...]:
        """Badges earned; none says that all of a record is true."""
        if self.inconsistent:
            return ()
        badges = [SCHEMA_OK]
        if self.evidence.proves:
            badges.append(PROVEN)
        if self.audit is not None and self.evidence.same_model and not self._own:
            badges.append(f"audited {len(self.audit.rows)}")
        return tuple(badges)

    def receipt(self) -> Receipt:
        """Put down what was found, for the record as it lies there."""
        record, repeated = self.stored.record, self.evidence.adversarials
        return Receipt(
            record=sha256_of(self.stored.path),
            evidence=None if record.evidence is None else record.evidence.sha256,
            badges=self.badges,
            proven=0 if repeated is None else int(repeated.proven.sum()),
            tolerated=0 if repeated is None else int(repeated.tolerated.sum()),
            audited=0 if self.audit is None else len(self.audit.rows),
            overclaim=None if self.audit is None else self.audit.overclaim,
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
    model = None
    if options.model is not None and examples is None:
        found.unchecked.append("the model was not asked: that needs the images")
    elif options.model is not None and examples is not None:
        model = model_of(stored.record, options.model, examples, tell)
    show("verify", 0.0, "evidence")
    found.evidence = check_evidence(stored, examples=examples, model=model)
    if model is not None and examples is not None and not found_in_flags(found.inconsistent):
        show("verify", 0.5, "challenges")
        found.challenges = challenge_findings(stored, model, examples)
        if options.audit is not None:
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
    assert options.audit is not None
    assert options.seed is not None
    if found.evidence.same_model is False:
        found.unchecked.append("no audit: the model is another one")
        return
    try:
        found.audit = audit(
            found.stored,
            model,
            examples,
            count=options.audit,
            seed=options.seed,
            report=lambda progress: show("audit", progress.share, str(progress)),
        )
    except (InputError, RecordError) as error:
        found.unchecked.append(f"no audit: {error}")
    try:
        settings = settings_of(found.stored.record)
        if isinstance(settings, AppraisalConfig):
            found.geometry = remeasure(
                found.stored.record,
                settings,
                model,
                examples,
                count=options.audit,
                seed=options.seed,
                root=options.root,
                report=lambda share, text: show("geometry", share, text),
            )
    except (RecordError, DataError, InputError) as error:
        found.unchecked.append(f"geometry was not measured again: {error}")

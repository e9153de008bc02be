"""From the appraisal of a model to its record.

>>> from robust_nc.appraisal.settings import Appraisal, Judged
>>> Appraised.__annotations__["settings"] is Appraisal
True
"""

from typing import NamedTuple

import pandas as pd
from torch import nn

from robust_nc.appraisal.datasets import Given
from robust_nc.appraisal.settings import SUITE, Appraisal, appraisal_id
from robust_nc.config import plain
from robust_nc.evaluation.evaluate_model import Outcome
from robust_nc.record.schema import Card, Facts, File, Record, Weights, tidy
from robust_nc.record.seals import sealed
from robust_nc.recording import (
    Kept,
    accuracies,
    attack_uses,
    cautions,
    clean_train,
    now,
    passes_spent,
    summary,
    verdict_flags,
    which_examples,
)
from robust_nc.runtime.environment import hardware, versions
from robust_nc.runtime.torch_state import device_of
from robust_nc.types import Warned
from robust_nc.verdicts import Verdicts, verdict_rows


class Appraised(NamedTuple):
    """All that an appraisal made: `head` and `objective` are known of our own checkpoints alone."""

    settings: Appraisal
    name: str
    head: str
    objective: str
    card: Card | None
    given: Given
    model: nn.Module
    outcome: Outcome
    doubts: tuple[Warned, ...]
    kept: Kept
    rows: pd.DataFrame
    file: File
    seconds: dict[str, float]


def make_appraisal(found: Appraised) -> Record:
    """Put together the record of an appraisal, sealed."""
    outcome, settings = found.outcome, found.settings
    record = Record(
        cell=appraisal_id(settings),
        suite=SUITE,
        model=found.name,
        objective=found.objective,
        head=found.head,
        config=plain(settings),
        seed=settings.seed,
        data=_facts(found),
        weights=Weights(
            parameters=sum(parameter.numel() for parameter in found.model.parameters()),
            state=found.kept.state,
        ),
        protocol=settings.evaluation.protocol,
        attacks=attack_uses(outcome),
        accelerated=outcome.accelerated,
        passes=passes_spent(outcome),
        verdict=verdict_flags(outcome),
        scores=accuracies(outcome) | clean_train(found.rows),
        summary=summary(found.rows),
        rows=found.file,
        warnings=cautions((*found.doubts, *outcome.warnings)),
        seconds=found.seconds,
        versions=versions(),
        hardware=hardware(device_of(found.model)),
        created=now(),
        card=found.card,
        evidence=found.kept.file,
    )
    return sealed(record)


def outcome_rows(outcome: Outcome, settings: Appraisal) -> pd.DataFrame:
    """Return the accuracies of the verdict as tidy rows."""
    rows = verdict_rows(Verdicts(outcome, outcome, None), settings.evaluation)
    return tidy([row for row in rows if row["note"] != "last"])


def _facts(found: Appraised) -> Facts:
    count, given = len(found.given.test.labels), found.given
    return Facts(
        dataset=given.part.name,
        split="test",
        examples=count,
        which=which_examples(count),
        fingerprint=found.kept.fingerprint,
        num_classes=given.shape.num_classes,
    )

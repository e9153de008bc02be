"""What the appraisal of a finished model depends on: its configuration, whose digest names it.

>>> settings = Appraisal(model=Judged(reference="mine.py:net", state="00"))
>>> len(appraisal_id(settings))
16
"""

from typing import Annotated, Literal

from pydantic import Field

from robust_nc.config import (
    Component,
    EvaluationConfig,
    MeasureConfig,
    Part,
    Positive,
    ThreatConfig,
    configuration,
    plain,
)
from robust_nc.io.files import digest

SUITE = "evaluated"  # `Record.suite` of an appraisal, and its folder in results/


@configuration
class Judged:
    """The model: as it was asked for, and the digest of its tensors."""

    reference: str
    state: str


@configuration
class JudgedData:
    """The images: the first `examples` of a split in the official order (None: all)."""

    dataset: Part = Field(default_factory=lambda: Component(name="digits"))
    split: Literal["train", "test"] = "test"
    examples: Positive | None = None


@configuration
class Appraisal:
    """Everything that the record of a finished model depends on; `measure` None: no geometry."""

    model: Judged
    data: JudgedData = Field(default_factory=JudgedData)
    threat: ThreatConfig = Field(default_factory=ThreatConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    measure: MeasureConfig | None = None
    seed: Annotated[int, Field(ge=0)] = 0


def appraisal_id(settings: Appraisal) -> str:
    """Name an appraisal: the first 16 hexadecimal digits of its configuration's digest."""
    return digest(plain(settings))[:16]

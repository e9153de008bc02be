"""The answer to a claim as a file: all that is needed to check it again from the records.

>>> import tempfile, pathlib
>>> read_answers(pathlib.Path(tempfile.mkdtemp()))
()
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from robust_nc.claims.deciding import Word
from robust_nc.claims.reading import Claim
from robust_nc.config import configuration, plain, read
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.files import write_text
from robust_nc.statistics.significance import ALPHA

SCHEMA = 1


@configuration
class SeedValue:
    """A quantity of one seed; `value` is `of`, or `of` less `against` where there is one."""

    seed: int
    of: float
    against: float | None
    value: float


@configuration
class Missing:
    """A cell that has no value, and the reason."""

    side: str  # of | against
    seed: int
    reason: str


@configuration
class Note:
    """What the rows of a cell say about its value: names of warnings of adaptive verdicts."""

    side: str
    seed: int
    note: str


@configuration
class Summary:
    """Values by seed, their mean, and its interval: Student t at `level`, or (None) the range."""

    values: tuple[SeedValue, ...]
    missing: tuple[Missing, ...]
    mean: float | None
    low: float | None
    high: float | None
    level: float | None


@configuration
class Tested:
    """One test: the claim's quantity under the options of one variant, and what came of it."""

    quantity: str
    summary: Summary
    p: float | None
    p_holm: float | None
    verdict: Word
    reason: str
    notes: tuple[Note, ...] = ()


@configuration
class Beside:
    """A quantity that was told and decided nothing, with 95 % intervals; `side` as `Missing`."""

    quantity: str
    side: str
    meaning: str
    summary: Summary


@configuration
class Premise:
    """A quantity of one cell that must reach a minimum; None where the cell has no value."""

    quantity: str
    minimum: float
    side: str
    seed: int
    value: float | None
    holds: bool


@configuration
class Scale:
    """What a claim was measured on; `of` and `against` are models of the suite.

    `train_limit` and `test_limit` None: the whole split. `validation` is the share of train that is
    held out; `train_measured` and `test_measured` count the examples of the geometry.
    """

    dataset: str
    train_limit: int | None
    validation: float
    test_limit: int | None
    train_measured: int
    test_measured: int
    judged: int
    ball: str
    backbone: str
    epochs: int
    protocol: str
    of: str
    against: str | None
    seeds: tuple[int, ...]


@configuration
class Used:
    """A record that the answer rests on: its SHA-256, and those of its rows and last weights."""

    side: str
    seed: int
    cell: str
    model: str
    record: str
    rows: str
    weights: str


@configuration
class Answer:
    """A claim as it was asked, its verdict, and what the verdict rests on.

    `claim_digest` is the SHA-256 of the claim's entry as canonical JSON. `tests` are one per
    variant; `family` counts the tests of all claims of the file, which Holm's method adjusts for at
    `alpha`. `versions` and `hardware` are those of the records, each once.
    """

    schema_version: int = SCHEMA
    claim: Claim
    claim_digest: str
    verdict: Word
    reason: str
    meaning: str
    tests: tuple[Tested, ...]
    family: int
    alpha: float = ALPHA
    premise: tuple[Premise, ...] = ()
    beside: tuple[Beside, ...] = ()
    scale: Scale
    records: tuple[Used, ...]
    versions: tuple[dict[str, str], ...]
    hardware: tuple[dict[str, Any], ...] = Field(default_factory=tuple)


def write_answer(folder: Path, answer: Answer) -> Path:
    """Write `<folder>/<id>.json`, atomically."""
    path = folder / f"{answer.claim.id}.json"
    write_text(path, json.dumps(plain(answer), indent=1, allow_nan=False) + "\n")
    return path


def read_answers(folder: Path) -> tuple[Answer, ...]:
    """Read all answers of a folder, sorted by file name, or raise `RecordError`."""
    answers = []
    for path in sorted(folder.glob("*.json")):
        try:
            answers.append(read(Answer, json.loads(path.read_text()), source=str(path)))
        except (OSError, ValueError) as error:
            why = error if isinstance(error, ConfigError) else f"{path}: {error}"
            raise RecordError(f"not an answer to a claim: {why}") from None
    return tuple(answers)

"""Evidence that was cut for a submission is checked as far as it goes, and proves no more."""

import dataclasses
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers_exchange import appraised, resealed
from helpers_runner import cli

from robust_nc.exchange.submission import EXAMPLES, ready
from robust_nc.record import Stored, read_record
from robust_nc.verification.evidence import check_evidence
from robust_nc.verification.originals import RecordExamples, examples_of

COUNT = EXAMPLES + 500


class Submitted(NamedTuple):
    """A record with more examples than are taken, its submission, and the images."""

    whole: Stored
    cut: Stored
    evidence: Path
    examples: RecordExamples


@pytest.fixture
def submitted(tmp_path: Path) -> Submitted:
    whole = appraised(tmp_path / "out", count=COUNT)
    examples = examples_of(whole.record, None)
    made = ready(whole, tmp_path / "results", examples.images)
    return Submitted(whole, read_record(made[0]), made[1], examples)


def test_it_is_placed_and_proves_no_bound(submitted: Submitted) -> None:
    found = check_evidence(submitted.cut, examples=submitted.examples, model=None)
    assert (found.wrong, found.rows, found.placed, found.proves) == ([], EXAMPLES, True, False)
    assert any("first 1,000" in reason for reason in found.unchecked)


def test_it_is_compared_with_the_record_without_the_images(submitted: Submitted) -> None:
    found = check_evidence(submitted.cut, examples=None, model=None)
    assert (found.wrong, found.rows) == ([], EXAMPLES)
    assert not found.placed


def test_the_full_file_in_its_place_counts_as_whole(submitted: Submitted) -> None:
    shutil.copy(submitted.whole.path.with_suffix(".evidence"), submitted.evidence)
    found = check_evidence(submitted.cut, examples=submitted.examples, model=None)
    assert (found.wrong, found.rows, found.placed) == ([], None, True)


@pytest.mark.parametrize("rows", [EXAMPLES - 100, EXAMPLES + 100])
def test_a_lie_about_its_length_is_found(submitted: Submitted, rows: int) -> None:
    record = submitted.cut.record
    assert record.evidence is not None
    told = dataclasses.replace(record.evidence, rows=rows)
    lying = resealed(dataclasses.replace(record, evidence=told), submitted.cut.path)
    assert check_evidence(lying, examples=submitted.examples, model=None).wrong


def test_the_command_says_what_it_is(submitted: Submitted) -> None:
    ran = cli("verify", submitted.cut.path)
    assert ran.code == 0
    assert "first 1,000" in ran.out

"""Receipts give badges to the very record that they are about; challenges take examples away."""

import json
from pathlib import Path

import helpers_report as helpers
import pytest

from robust_nc.exceptions import RecordError
from robust_nc.io.files import sha256_of
from robust_nc.record import Stored, read_record, unpack_flags
from robust_nc.record.standing import (
    PROVEN,
    SCHEMA_OK,
    best_badge,
    challenge_path,
    receipt_path,
    standing,
)

EVIDENCE = "ab" * 32


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return helpers.write_cell(tmp_path, helpers.config())


def leave_receipt(stored: Stored, **changes: object) -> None:
    values = {
        "record": sha256_of(stored.path),
        "evidence": None,
        "badges": [SCHEMA_OK, PROVEN],
        "created": "2026-01-01",
    }
    receipt_path(stored.path).write_text(json.dumps(values | changes))


def leave_challenge(stored: Stored, evidence: str = EVIDENCE, **changes: object) -> None:
    values = {
        "cell": stored.record.cell,
        "evidence": evidence,
        "broken": [0, 3],
        "created": "2026-01-01",
    }
    challenge_path(stored.path, evidence).write_text(json.dumps(values | changes))


def test_a_record_alone_stands_as_it_claims(stored: Stored) -> None:
    found = standing(stored)
    assert found.robust.tolist() == unpack_flags(stored.record.verdict.robust).tolist()
    assert (found.challenged, found.badges) == (0, ())


def test_a_receipt_of_this_record_gives_its_badges(stored: Stored) -> None:
    leave_receipt(stored)
    assert standing(stored).badges == (SCHEMA_OK, PROVEN)


@pytest.mark.parametrize("changes", [{"record": "0" * 64}, {"evidence": EVIDENCE}])
def test_a_receipt_of_another_state_gives_none(stored: Stored, changes: dict[str, str]) -> None:
    leave_receipt(stored, **changes)
    assert standing(stored).badges == ()


def test_a_changed_record_loses_its_badges(stored: Stored) -> None:
    leave_receipt(stored)
    stored.path.write_text(stored.path.read_text() + " ")
    assert standing(read_record(stored.path)).badges == ()


@pytest.mark.parametrize(
    "badge", ["verified", "audited", "audited 0", "audited -3", "audited 201", "<b>"]
)
def test_a_badge_that_there_is_not_is_refused(stored: Stored, badge: str) -> None:
    leave_receipt(stored, badges=[badge])
    with pytest.raises(RecordError, match=r"\.receipt holds a badge"):
        standing(stored)


def test_challenges_count_each_example_once(stored: Stored) -> None:
    claimed = unpack_flags(stored.record.verdict.robust)
    assert claimed[:4].all()
    leave_challenge(stored)
    leave_challenge(stored, "cd" * 32, broken=[3, 2])
    found = standing(stored)
    assert found.challenged == 3
    assert not found.robust[[0, 2, 3]].any()
    assert found.robust.sum() == claimed.sum() - 3


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": "other"},
        {"broken": [-1]},
        {"broken": [10_000]},
        {"broken": [10**30]},
        {"broken": ["0"]},
        {"more": 1},
    ],
)
def test_a_challenge_that_is_none_is_refused(stored: Stored, changes: dict[str, object]) -> None:
    leave_challenge(stored, **changes)
    with pytest.raises(RecordError, match=r"\.challenge"):
        standing(stored)


def test_challenges_of_a_record_whose_name_goes_on_are_none_of_ours(stored: Stored) -> None:
    longer = stored.path.with_name(f"{stored.path.stem}.more.json")
    values = {"cell": "other", "evidence": EVIDENCE, "broken": [0], "created": "2026-01-01"}
    challenge_path(longer, EVIDENCE).write_text(json.dumps(values))
    assert standing(stored).challenged == 0


def test_the_badge_that_says_most_is_shown() -> None:
    assert best_badge((PROVEN, SCHEMA_OK)) == PROVEN
    assert best_badge((PROVEN, "audited 300", SCHEMA_OK)) == "audited 300"
    assert best_badge(()) == ""
